"""Read a topic from one end to the other, for people: audit, status, apply, demo.

Owns the consumer and where it stops. Knows nothing of what the messages hold.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.missing_topics import topics_missing
from schemas.records import Decision
from schemas.registry import Registry
from schemas.settings import CommonSettings

BATCH = 2000
STALL_S = 30.0
"""How long a read may stand still before we say so."""
LEADER_S = 10.0
"""How long a new topic may take to get a leader."""
_NO_LEADER = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,  # the client's own word for the last one: its metadata are older than the topic
    KafkaError._UNKNOWN_TOPIC,
)

quiet = logging.getLogger("headrace.reading")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a topic."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    """Append time."""
    key: bytes
    value: bytes

    @property
    def where(self) -> str:
        """topic/partition/offset, as errors name it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def entry_of(message: Message) -> Entry:
    """The message without the client's wrapping."""
    _, time_ms = message.timestamp()
    return Entry(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        time_ms,
        message.key() or b"",
        message.value() or b"",
    )


def consumer(settings: CommonSettings, **options: object) -> Consumer:
    """A consumer that belongs to no group and commits nothing."""
    return Consumer(
        settings.librdkafka(
            **{
                "group.id": f"{settings.namespace}.reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 5,
                **options,
            }
        ),
        logger=quiet,
    )


def partitions_of(reader: Consumer, topic: str, settings: CommonSettings) -> list[int]:
    """Partitions of a topic. Raises `UserError` when broker or topic is missing."""
    try:
        found = reader.list_topics(topic, timeout=5).topics[topic]
    except KafkaException as error:
        raise UserError(
            f"no Kafka broker answers at {settings.bootstrap}",
            "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
        ) from error
    if found.error is not None or not found.partitions:
        raise topics_missing(settings, [topic])
    return sorted(found.partitions)


def bounds(reader: Consumer, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
    """(first offset, end offset) per partition now. Waits while a new topic has no leader yet."""
    return {p: _bounds(reader, TopicPartition(topic, p)) for p in partitions}


def _bounds(reader: Consumer, place: TopicPartition) -> tuple[int, int]:
    deadline = time.monotonic() + LEADER_S
    while True:
        try:
            first, end = reader.get_watermark_offsets(place, timeout=10)
            return int(first), int(end)
        except KafkaException as error:
            # A topic made a moment ago is known before its leader takes requests.
            if not error.args[0].retriable() and error.args[0].code() not in _NO_LEADER:
                raise
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def read_all(
    settings: CommonSettings, topic: str, partitions: Sequence[int] | None = None, tail: int | None = None
) -> Iterator[Entry]:
    """Every message that stands in the topic when the call begins, each partition in its order.

    With `tail` only the last so many offsets of each partition. Raises `UserError` when broker or topic is missing, or
    the broker stops answering.
    """
    reader = consumer(settings)
    try:
        there = partitions_of(reader, topic, settings)
        wanted = there if partitions is None else list(partitions)
        places = {p: place for p, place in bounds(reader, topic, wanted).items() if place[1] > place[0]}
        ends = {p: end for p, (_, end) in places.items()}
        starts = {p: first if tail is None else max(first, end - tail) for p, (first, end) in places.items()}
        yield from _between(reader, topic, starts, ends)
    finally:
        reader.close()


def _between(reader: Consumer, topic: str, starts: Mapping[int, int], ends: dict[int, int]) -> Iterator[Entry]:
    """Messages from `starts` to at least `ends` (exclusive) per partition, each partition in its order."""
    reader.assign([TopicPartition(topic, p, start) for p, start in starts.items()])
    moved = time.monotonic()
    while ends:
        for message in reader.consume(BATCH, 0.05):
            moved = time.monotonic()
            error = message.error()
            if error is None:
                yield entry_of(message)
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
        # Positions, not messages: a compacted topic ends in offsets that hold nothing.
        for place in reader.position([TopicPartition(topic, p) for p in ends]):
            if place.offset >= ends[place.partition]:
                del ends[place.partition]
        if time.monotonic() - moved > STALL_S:
            raise UserError(
                f"reading {topic} stood still for {STALL_S:.0f} s at partition {min(ends)}",
                "see whether the broker is healthy: headrace broker status",
            )


def read_span(settings: CommonSettings, topic: str, partition: int, start: int, stop: int) -> Iterator[Entry]:
    """Messages of one partition from offset `start` up to `stop` (exclusive), as far as the log holds them.

    Closing the iterator ends the reading. Raises `UserError` as `read_all`.
    """
    reader = consumer(settings)
    try:
        partitions_of(reader, topic, settings)
        first, end = _bounds(reader, TopicPartition(topic, partition))
        start, stop = max(start, first), min(stop, end)
        if start < stop:
            for entry in _between(reader, topic, {partition: start}, {partition: stop}):
                if entry.offset < stop:
                    yield entry
    finally:
        reader.close()


def offset_at(settings: CommonSettings, topic: str, partition: int, time_ms: int) -> int:
    """First offset whose append time is `time_ms` or later; the end of the log when there is none."""
    reader = consumer(settings)
    try:
        partitions_of(reader, topic, settings)
        first, end = _bounds(reader, TopicPartition(topic, partition))
        (found,) = reader.offsets_for_times([TopicPartition(topic, partition, max(0, time_ms))], timeout=10)
        return end if found.offset < 0 else max(first, int(found.offset))
    finally:
        reader.close()


def span_of(settings: CommonSettings, topic: str, partition: int) -> tuple[int, int]:
    """(first offset, end offset) of one partition now. Raises `UserError` when broker or topic is missing."""
    reader = consumer(settings)
    try:
        partitions_of(reader, topic, settings)
        return _bounds(reader, TopicPartition(topic, partition))
    finally:
        reader.close()


def decision_of(entry: Entry, registry: Registry) -> Decision:
    """The answer to a request: JSON when the request was, else Avro. Raises `BadRecord`."""
    if not entry.value.startswith(b"{"):
        decision = decode(entry.value, registry, expect=Decision)
        assert isinstance(decision, Decision)
        return decision
    try:
        fields = orjson.loads(entry.value)
        return Decision(**{**fields, "token": base64.b64decode(fields["token"])})
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecord("bad-json", f"a decision that cannot be read: {error}") from error


def record_of(entry: Entry, registry: Registry) -> object:
    """The record or block of any other topic of ours. Raises `BadRecord`."""
    return decode(entry.value, registry)
