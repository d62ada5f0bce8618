"""Undecoded: records of one log that wait for the schema registry, in the log's order.

For readers that may pass over nothing: what cannot be decoded now is kept and tried again, and what came behind it
waits, because order is meaning (a definition in force, a chain of transitions). Pure: who owns it offers again now and
then, and stops reading while much could pile up. The registry itself says how often it may be asked
(`schemas.registry`), so offering often costs nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from schemas.registry import RegistryUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class Undecoded(Generic[T]):
    """Hands records to `take`, each once and in order.

    `take` raises RegistryUnavailable before it has changed anything. A record of which it raises anything else counts
    as taken.

    >>> seen = []
    >>> records = Undecoded("a log", seen.append)
    >>> records.offer([1, 2]), records.offer(), seen
    (2, 0, [1, 2])
    """

    def __init__(self, name: str, take: Callable[[T], None]) -> None:
        """`name` is what the log line calls the records."""
        self.why: RegistryUnavailable | None = None
        """What is waited for; None when nothing waits."""
        self._name = name
        self._take = take
        self._records: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def offer(self, records: Iterable[T] = ()) -> int:
        """Take these behind all that wait, as far as the registry allows; returns how many were taken."""
        self._records.extend(records)
        num = 0
        while self._records:
            record = self._records.popleft()
            try:
                self._take(record)
            except RegistryUnavailable as error:
                self._records.appendleft(record)
                self._wait(error)
                return num
            num += 1
        if self.why is not None:
            self.why = None
            log.info("%s: read on, the schema registry answers again", self._name)
        return num

    def _wait(self, error: RegistryUnavailable) -> None:
        if self.why is None:
            log.error("%s: reading waits for a schema, nothing is passed over: %s", self._name, error)
        self.why = error
