"""`headrace dead-letters`: what could not be used and why, read from its topic for people and programs.

What a dead letter quotes came from outside: it is escaped, so that no record can write to a terminal what it likes.
"""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from deploy import reading
from schemas.codec import BadRecord, decode
from schemas.records import DeadLetter
from schemas.registry import open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

UNREADABLE = "no-dead-letter"
"""Reason shown for what stands in the topic and is none of headrace's."""
POLL_S = 0.2
BYTES_SHOWN = 60
HEADER = ("time", "record", "reason", "detail", "first bytes")
_WIDTHS = (24, 28, 16)
"""Least width of the first columns: lines that come one by one cannot know the widest."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter and when it was written."""

    letter: DeadLetter
    written_ms: int
    """Append time of the dead letter itself."""

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs: bytes as text where they are text, and always in hex."""
        letter = self.letter
        return {
            "time": _time(letter.time_ms),
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "reason": letter.reason,
            "detail": letter.detail,
            "first_bytes": letter.first_bytes.decode(errors="replace"),
            "first_bytes_hex": letter.first_bytes.hex(),
            "sha256": letter.sha256.hex(),
            "written": _time(self.written_ms),
        }

    def as_row(self) -> str:
        """One line under `HEADER`."""
        letter = self.letter
        where = f"{letter.topic}/{letter.partition}/{letter.offset}"
        return row(_time(letter.time_ms), where, letter.reason, letter.detail, _bytes(letter.first_bytes))


def row(*cells: str) -> str:
    """Cells as a line of the table, with nothing in it that a terminal obeys."""
    clean = [_printable(cell) for cell in cells]
    return "  ".join(
        [*(cell.ljust(width) for cell, width in zip(clean, _WIDTHS, strict=False)), *clean[len(_WIDTHS) :]]
    )


def newest(settings: CommonSettings, last: int, reason: str | None = None) -> tuple[list[Letter], dict[int, int]]:
    """(the `last` newest dead letters in the order in which they were written, next offset of each partition).

    With `reason` only those. Raises `UserError` when broker or topic is missing.
    """
    name, registry = topic(settings.namespace, "dead-letters"), open_registry(settings.schema_registry_url)
    following = _ends(settings, name)
    found: list[tuple[tuple[int, int, int], Letter]] = []
    for entry in reading.read_all(settings, name, tail=last if reason is None else None):
        following[entry.partition] = max(following.get(entry.partition, 0), entry.offset + 1)
        letter = letter_of(entry, registry)
        if reason in (None, letter.letter.reason):
            heapq.heappush(found, ((entry.time_ms, entry.partition, entry.offset), letter))
            if len(found) > last:
                heapq.heappop(found)
    return [letter for _, letter in sorted(found, key=lambda each: each[0])], following


def follow(settings: CommonSettings, following: dict[int, int], reason: str | None = None) -> Iterator[Letter]:
    """Dead letters as they come, from these offsets on, for ever. A broker that is away is waited for."""
    name, registry = topic(settings.namespace, "dead-letters"), open_registry(settings.schema_registry_url)
    reader = reading.consumer(settings)
    try:
        reader.assign([TopicPartition(name, partition, offset) for partition, offset in following.items()])
        while True:
            for message in reader.consume(reading.BATCH, POLL_S):
                error = message.error()
                if error is not None and not (error.retriable() or error.code() == KafkaError._PARTITION_EOF):
                    raise KafkaException(error)
                if error is None:
                    letter = letter_of(reading.entry_of(message), registry)
                    if reason in (None, letter.letter.reason):
                        yield letter
    finally:
        reader.close()


def letter_of(entry: reading.Entry, registry: Any) -> Letter:
    """The dead letter of a message; what is none is told in the form of one."""
    try:
        record = decode(entry.value, registry, expect=DeadLetter)
        assert isinstance(record, DeadLetter)
    except BadRecord as error:
        place = (entry.topic, entry.partition, entry.offset)
        record = DeadLetter(*place, UNREADABLE, str(error), entry.value[:256], b"", entry.time_ms)
    return Letter(record, entry.time_ms)


def _ends(settings: CommonSettings, name: str) -> dict[int, int]:
    reader = reading.consumer(settings)
    try:
        partitions = reading.partitions_of(reader, name, settings)
        return {partition: end for partition, (_, end) in reading.bounds(reader, name, partitions).items()}
    finally:
        reader.close()


def _time(time_ms: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(time_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bytes(content: bytes) -> str:
    """The beginning as text where all of it is, else in hex."""
    cut = content[:BYTES_SHOWN]
    try:
        shown = cut.decode()
    except UnicodeDecodeError as error:
        is_cut_letter = len(cut) < len(content) and error.start >= len(cut) - 3
        shown = cut[: error.start].decode() if is_cut_letter else f"0x{cut.hex()}"
    return (shown if shown.startswith("0x") or shown.isprintable() else f"0x{cut.hex()}") + (
        "…" if len(cut) < len(content) else ""
    )


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
