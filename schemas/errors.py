"""Errors whose cause lies with the person at the keyboard: their files, settings, ports, brokers.

The command line prints these in one line and exits with a code other than 0; every other exception is our own
mistake or a bad record and has its own class beside the code that raises it.
"""

from __future__ import annotations


class UserError(Exception):
    """Something that only the user can put right.

    `message` says what happened, where, what was expected and what came; `remedy` says what to do next.

    >>> str(UserError('no broker at 127.0.0.1:9092', 'start one: headrace broker start'))
    'no broker at 127.0.0.1:9092. Remedy: start one: headrace broker start'
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. Remedy: {self.remedy}"
