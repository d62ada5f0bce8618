"""A connection that has just broken is an error of the connection, on uvloop too.

Where a peer has gone, a write raises nothing in asyncio and RuntimeError in uvloop. aiokafka (its issue 1038, open)
expects OSError at most: the task that follows the metadata ends without a word, the group's coordinator is never found
again, and the worker lives on without heartbeats or commits, or ends. `install` says it in aiokafka's own words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_METHODS = ("send", "_send_sasl_token")


def install() -> None:
    """For every aiokafka connection of this process; a second time changes nothing."""
    for name in _METHODS:
        method = getattr(AIOKafkaConnection, name)
        if not hasattr(method, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _translated(method))


def uninstall() -> None:
    """Aiokafka as it was, for tests."""
    for name in _METHODS:
        method = getattr(AIOKafkaConnection, name)
        setattr(AIOKafkaConnection, name, getattr(method, "__wrapped__", method))


def _translated(write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def translated(connection: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return write(connection, *arguments, **options)
        except RuntimeError as error:
            writer = connection._writer
            if writer is None or not writer.transport.is_closing():
                raise  # a mistake, and not this one
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            address = f"{connection._host}:{connection._port}"
            raise KafkaConnectionError(f"Connection at {address} broken: {error}") from error

    return translated
