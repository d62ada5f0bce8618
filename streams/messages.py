"""A consumed message's place and error, as plain integers.

The client's types allow None everywhere, for messages that were never in a log; those that a consumer returns were.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from confluent_kafka import Message

AnyMessage: TypeAlias = "Message[Any, Any]"


def place_of(message: AnyMessage) -> tuple[int, int]:
    """(partition, offset) of a consumed message; the offset of an event without one (end of partition) is the end."""
    partition, offset = message.partition(), message.offset()
    return (-1 if partition is None else partition), (-1 if offset is None else offset)


def code_of(message: AnyMessage) -> int | None:
    """Error code of an event that is no record, None for a record."""
    error = message.error()
    return None if error is None else error.code()
