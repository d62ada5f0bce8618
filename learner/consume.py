"""Consume: the transitions topic, all partitions, from given offsets, through any outage.

A shell. Partitions are assigned, never subscribed: there is one learner, its offsets live in its checkpoint, and no
group can take a partition away. When the broker goes, librdkafka reconnects by itself; `schemas.outage` says so once,
and once when records come again. Nothing is lost: offsets advance only with records that were handed out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)

from learner.merge import Position
from schemas.broker_wait import ask, find_topics
from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.missing_topics import missing_of, topics_missing
from schemas.outage import Outage
from schemas.records import Progress
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic

ANSWER_S_MAX = 10.0
"""Of a broker that is there."""
BATCH_MESSAGES = 64
"""Messages handed out at once, at most 512 KiB each: by so much may the limit of waiting bytes be overstepped."""
QUEUE_KIB = 64 * 1024
"""Bytes that librdkafka fetches ahead."""
QUIET: dict[str, Any] = {"log_level": 2}
"""librdkafka repeats "connection refused" at every try of every client; an outage is said once, by `_on_error`."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message of a topic."""

    partition: int
    offset: int
    payload: bytes
    time_ms: int
    """Append time."""


def received(message: Message) -> Received:
    """A message without an error."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return Received(partition, offset, message.value() or b"", message.timestamp()[1])


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """What pins a checkpoint to a log."""

    topic_id: str
    """The broker's id: a topic that is deleted and made again has another one."""
    num_partitions: int


def require_topics(
    settings: CommonSettings, names: Sequence[str], stop: threading.Event | None = None
) -> dict[str, TopicIdentity]:
    """Identity of every topic of `names`, {} when `stop` was set while no broker answered.

    Waits for a broker up to `settings.broker_wait_s`. Raises UserError when none answers or a topic is missing.
    """
    asked = find_topics(settings, stop)
    if asked is None:
        return {}
    admin, found = asked
    missing = missing_of(names, found)
    if missing:
        raise topics_missing(settings, missing)

    def describe(timeout_s: float) -> dict[str, TopicIdentity]:
        described = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
        return {
            name: TopicIdentity(str(future.result().topic_id), len(found[name].partitions))
            for name, future in described.items()
        }

    try:
        return ask(settings, describe, stop) or {}
    except KafkaException as error:
        raise UserError(
            f"the broker does not describe {', '.join(names)}: {error.args[0].str()}",
            "see whether the broker is healthy (headrace broker status) and lets this user describe topics",
        ) from error


class TransitionsReader:
    """Records of all partitions in offset order each, starting at given positions."""

    def __init__(self, settings: CommonSettings, positions: Iterable[Position], outage: Outage) -> None:
        """`outage` hears of a broker that is gone or back. Raises UserError when a position is not in the log."""
        self._topic = topic(settings.namespace, "transitions")
        self.paused: set[int] = set()
        """Partitions that do not flow."""
        self._outage = outage
        self._consumer = Consumer(
            settings.librdkafka(
                **{
                    "group.id": f"{settings.namespace}.learner",  # required by the client, never used
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",  # a jump would be a hole that nobody asked for
                    "fetch.wait.max.ms": 100,
                    "fetch.queue.backoff.ms": 5,  # the default of 1,000 stalls a replay for a whole second
                    "queued.max.messages.kbytes": QUEUE_KIB,
                    "fetch.message.max.bytes": 4 << 20,
                    **QUIET,
                }
            ),
            error_cb=self._on_error,
            logger=logging.getLogger("headrace.kafka"),
        )
        wanted = {position.partition: position.offset for position in positions}
        for partition, offset in wanted.items():
            self._check(partition, offset)
        self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in sorted(wanted.items())])

    def _check(self, partition: int, offset: int) -> None:
        low, high = watermarks(self._consumer, self._topic, partition)
        if low <= offset <= high:
            return
        raise UserError(
            f"{self._topic}[{partition}]: the checkpoint continues at offset {offset}, the log holds {low} to {high}",
            "if the log was shortened or restored, move the checkpoint folder away: the learner then starts at the "
            "earliest Progress that is left",
        )

    def read(self, timeout_s: float) -> list[Received]:
        """What is there, waiting at most `timeout_s` for the first message. Raises UserError when an offset is gone."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        good = []
        for message in (first, *self._consumer.consume(BATCH_MESSAGES - 1, 0)):
            error = message.error()
            if error is None:
                good.append(received(message))
            else:
                self._judge(message, error)
        if good:
            self._outage.answered()
        return good

    def _judge(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise UserError(
                f"{self._topic}[{message.partition()}] offset {message.offset()} is no longer in the log",
                "the learner fell behind the topic's retention; raise it, and move the checkpoint folder away to start "
                "at the earliest Progress that is left",
            )
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            raise UserError(f"topic {self._topic} is gone", "create it with `headrace topics apply`")
        self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._outage.say("learning goes on by itself (%s)", error.str())

    def pause_only(self, partitions: Iterable[int]) -> None:
        """Pause exactly these partitions; the others flow."""
        wanted = set(partitions)
        pause, resume = sorted(wanted - self.paused), sorted(self.paused - wanted)
        if pause:
            self._consumer.pause([TopicPartition(self._topic, p) for p in pause])
        if resume:
            self._consumer.resume([TopicPartition(self._topic, p) for p in resume])
        self.paused = wanted

    def lag(self, partition: int, next_offset: int) -> int:
        """Records of a partition known to be in the log and not yet handed out; 0 while unknown."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return max(0, int(high) - next_offset)

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()


def watermarks(consumer: Consumer, name: str, partition: int) -> tuple[int, int]:
    """Low and high offset of a partition. Raises UserError when the broker does not say."""
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=ANSWER_S_MAX)
    except KafkaException as error:
        raise UserError(
            f"the broker does not say what {name}[{partition}] holds: {error}",
            "see whether the broker is healthy: headrace broker status",
        ) from error
    return int(low), int(high)


def first_positions(settings: CommonSettings, registry: Registry, num_partitions: int) -> list[Position]:
    """Where a learner without a checkpoint starts.

    A partition whose log still has its beginning is read from there; of any other the first Progress that is left is
    adopted (join.md rule 8), never the raw first block. Raises UserError when there is none.
    """
    name = topic(settings.namespace, "transitions")
    options = {
        "group.id": f"{settings.namespace}.learner-start",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        **QUIET,
    }
    consumer = Consumer(settings.librdkafka(**options), logger=logging.getLogger("headrace.kafka"))
    try:
        positions = []
        for partition in range(num_partitions):
            low, high = watermarks(consumer, name, partition)
            positions.append(
                Position(partition) if low == 0 else _first_progress(consumer, registry, name, partition, low, high)
            )
        return positions
    finally:
        consumer.close()


def _first_progress(consumer: Consumer, registry: Registry, name: str, partition: int, low: int, high: int) -> Position:
    consumer.assign([TopicPartition(name, partition, OFFSET_BEGINNING)])
    offset = low
    while offset < high:
        message = consumer.poll(ANSWER_S_MAX)
        if message is None or message.error() is not None:
            break
        found = received(message)
        offset = found.offset + 1
        try:
            record = decode(found.payload, registry)
        except BadRecord:
            continue
        if isinstance(record, Progress) and record.transitions_offset >= low:
            chains = {(chain.fingerprint, chain.kind): chain.hwm for chain in record.chains}
            return Position(partition, record.transitions_offset, record.time_ms, chains)
    raise UserError(
        f"{name}[{partition}] has lost its beginning and no Progress is left between offsets {low} and {high}",
        "start a join worker (it writes Progress every 250 ms), then the learner again",
    )
