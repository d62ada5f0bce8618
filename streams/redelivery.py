"""After a takeover: what did the journal already answer?

Offsets are committed after the answers, so a worker that takes over a partition reads some requests again. Each was
journaled with its request's partition and offset; those are answered as logged, not decided again (join.md, last
section).

A shell: reads the requests topic once per partition (the append time of the committed offset) and the journal from that
time to its present end. Blocks the caller for about as long as it takes to read a second of journal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.blocks import DecisionBlock
from schemas.codec import BadRecord, decode
from schemas.decision_columns import PROPENSITY_ONE
from schemas.outage import Outage
from schemas.records import Decision, Reason
from schemas.registry import RegisteredSchema, Registry, RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.task import TaskTable
from schemas.topics import topic
from streams.messages import code_of, place_of

log = logging.getLogger(__name__)

_UNREADABLE = (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)
"""Of a record batch that the client cannot decode and fetches again for ever (librdkafka's issues 3935 and 5260)."""

CLOCK_SLACK_MS = 2_000
"""Brokers' clocks differ: a decision may carry an earlier append time than its request."""
POLL_S = 0.2
CALL_S = 2.0
"""No longer: a signal is heard only between two calls."""
RETRY_S = 1.0
PATIENCE_S = 15.0
"""For one answer, asked for again and again: longer than between two looks of a client at who leads what."""
SILENCE_S_MAX = 30.0
"""Without a record and without the end of a log: a broker that is there answers a fetch within half a second."""

Place = tuple[int, int]
"""Partition and offset of a request."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Logged:
    """One row of the journal that answers a redelivered request."""

    block: DecisionBlock
    row: int


class _Stopped(Exception):
    """The process shall end; nobody needs the answer any more."""


class Redelivery:
    """Looks up earlier answers for the partitions that a worker is given."""

    def __init__(
        self,
        settings: CommonSettings,
        registry: Registry,
        table: TaskTable,
        num_partitions: int,
        stopping: threading.Event,
        beat: Callable[[], None],
        outage: Outage,
    ) -> None:
        """Once `stopping` is set nothing is waited for; `beat` is called every few seconds while something is."""
        self._settings = settings
        self._stopping = stopping
        self._beat = beat
        self._outage = outage
        self._registry = registry
        self._table = table
        self._num_partitions = num_partitions
        self._requests = topic(settings.namespace, "requests")
        self._journal = topic(settings.namespace, "journal")
        self._heard_s = 0.0

    def answered(self, committed: Mapping[int, int], now_ms: int) -> dict[Place, Logged]:
        """Rows of the journal for requests at or beyond `committed` (next offset per request partition).

        Waits for a broker that is gone, and for a schema registry that is away when a record of the journal needs it
        (none of our version does): deciding without knowing would decide twice. Requests older than the dedupe
        horizon are not looked for: they are answered `expired` anyway. Nothing is found once the process is told to
        stop: it decides no more.
        """
        while not self._stopping.is_set():
            consumer = self._consumer()
            try:
                return self._found(consumer, committed, now_ms)
            except _Stopped:
                return {}
            except KafkaException as error:  # with a new client: this one may never be answered (decision 24)
                self._miss(error)
            finally:
                consumer.close()
        return {}

    def _found(self, consumer: Consumer, committed: Mapping[int, int], now_ms: int) -> dict[Place, Logged]:
        """What `answered` returns. Raises KafkaException when a question is not answered in time."""
        since_ms = self._since(consumer, committed)
        if since_ms is None:
            return {}
        since_ms = max(since_ms, now_ms - self._table.dedupe_ms) - CLOCK_SLACK_MS
        found: dict[Place, Logged] = {}
        for message in self._read(consumer, self._journal_span(consumer, since_ms)):
            self._collect(message, committed, found)
        return found

    def _consumer(self) -> Consumer:
        return Consumer(
            self._settings.librdkafka(
                **{
                    "group.id": f"{self._settings.namespace}.redelivery",  # required by the client, never used
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "auto.offset.reset": "earliest",
                    "fetch.queue.backoff.ms": 5,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )

    def _since(self, consumer: Consumer, committed: Mapping[int, int]) -> int | None:
        """Earliest append time of the first uncommitted request of each partition; None when there is none."""
        starts = {}
        for partition, offset in committed.items():
            low, high = self._watermarks(consumer, self._requests, partition)
            if max(low, offset) < high:
                starts[partition] = max(low, offset)
        times: dict[int, int] = {}
        if not starts:
            return None
        consumer.assign([TopicPartition(self._requests, partition, offset) for partition, offset in starts.items()])
        ended: set[int] = set()
        while len(times.keys() | ended) < len(starts):
            message = self._poll(consumer)
            if message is None:
                continue
            partition, code = place_of(message)[0], code_of(message)
            if code is None:
                times.setdefault(partition, message.timestamp()[1])
            elif code == KafkaError._PARTITION_EOF:
                ended.add(partition)
            elif code in _UNREADABLE:  # for ever: what stands behind may have been answered, however long ago
                times.setdefault(partition, 0)
        return min(times.values(), default=None)

    def _poll(self, consumer: Consumer) -> Message | None:
        self._beat()
        if self._stopping.is_set():
            raise _Stopped
        message, now_s = consumer.poll(POLL_S), time.monotonic()
        if message is not None:
            self._heard_s = now_s
        elif now_s - self._heard_s > SILENCE_S_MAX:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"nothing was read for {SILENCE_S_MAX:g} s"))
        return message

    def _miss(self, error: KafkaException) -> None:
        """The broker did not answer: say so, and wait before it is asked again."""
        self._outage.say("looking for earlier answers: %s", error.args[0].str())
        self._beat()
        self._stopping.wait(RETRY_S)

    def _pause(self) -> None:
        self._beat()
        if self._stopping.wait(1.0):
            raise _Stopped
        self._heard_s = time.monotonic()  # what is waited for here is no broker

    def _watermarks(self, consumer: Consumer, name: str, partition: int) -> tuple[int, int]:
        place = TopicPartition(name, partition)
        low, high = self._answer(lambda: consumer.get_watermark_offsets(place, timeout=CALL_S))
        return low, high

    def _answer(self, question: Callable[[], T]) -> T:
        """Ask until it is answered. Raises KafkaException when that takes too long."""
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            self._beat()
            if self._stopping.is_set():
                raise _Stopped
            try:
                answer = question()
            except KafkaException as error:
                if time.monotonic() > give_up_s:
                    raise
                self._miss(error)
            else:
                self._heard_s = time.monotonic()
                return answer

    def _journal_span(self, consumer: Consumer, since_ms: int) -> dict[int, tuple[int, int]]:
        """(first offset appended at or after `since_ms`, present end) of each journal partition that has any."""
        wanted = [TopicPartition(self._journal, partition, since_ms) for partition in range(self._num_partitions)]
        span = {}
        for place in self._answer(lambda: consumer.offsets_for_times(wanted, timeout=CALL_S)):
            _, high = self._watermarks(consumer, self._journal, place.partition)
            if place.offset != OFFSET_END and 0 <= place.offset < high:
                span[place.partition] = (place.offset, high)
        return span

    def _read(self, consumer: Consumer, span: Mapping[int, tuple[int, int]]) -> Iterator[Message]:
        """Every message of the span, each partition in its order."""
        consumer.assign([TopicPartition(self._journal, partition, start) for partition, (start, _) in span.items()])
        left = {partition: end for partition, (_, end) in span.items()}
        while left:
            message = self._poll(consumer)
            if message is None or message.topic() != self._journal:
                continue
            partition, offset = place_of(message)
            if code_of(message) is not None:
                if code_of(message) == KafkaError._PARTITION_EOF:
                    left.pop(partition, None)
                continue
            end = left.get(partition, 0)
            if offset < end:
                yield message
            if offset + 1 >= end:
                left.pop(partition, None)

    def _collect(self, message: Message, committed: Mapping[int, int], found: dict[Place, Logged]) -> None:
        """Rows of one journal message that answer requests of ours; the first in the log wins."""
        payload = message.value()
        if payload is None or not self._is_decisions(payload):
            return
        try:
            block = decode(payload, self._registry, expect=DecisionBlock)
        except BadRecord as error:
            log.warning("%s[%d] offset %d: %s", message.topic(), message.partition(), message.offset(), error)
            return
        if block.request_topic != self._requests:
            return
        for row, (partition, offset) in enumerate(
            zip(block.request_partitions.tolist(), block.request_offsets.tolist(), strict=True)
        ):
            if partition in committed and offset >= committed[partition]:
                found.setdefault((partition, offset), Logged(block, row))

    def _is_decisions(self, payload: bytes) -> bool:
        """Whether the message is a DecisionBlock: told by its schema id, without decoding outcomes and ticks."""
        if len(payload) < 5:
            return False
        try:
            schema = self._schema_of(int.from_bytes(payload[1:5], "big"))
        except (BadRecord, KeyError):
            return False
        return bool(schema.name == "DecisionBlock")

    def _schema_of(self, schema_id: int) -> RegisteredSchema:
        """The schema; waits while the registry is away. Raises BadRecord when there is none."""
        has_told = False
        while True:
            try:
                return self._registry.schema_of(schema_id)
            except RegistryUnavailable as error:
                if not has_told:
                    log.error("%s: looking for earlier answers waits for a schema: %s", self._journal, error)
                has_told = True
                self._pause()


def answer_of(logged: Logged, table: TaskTable, now_ms: int) -> Decision | None:
    """The answer that the log holds; None when its task's definition is not known here."""
    block, row = logged.block, logged.row
    columns = block.columns
    chosen = int(columns.chosen[row, 0])
    sizes = columns.features.num_candidates
    first = int(np.sum(sizes[:row]))
    if columns.catalogue:
        task = table.get(block.fingerprint)
        if task is None:
            return None
        action_id = task.actions[chosen]
    else:
        action_id = block.action_ids[first + chosen]
    return Decision(
        decision_id=block.decision_ids[row],
        task=block.task,
        subject=block.subjects[row],
        actions=[action_id],
        propensities=[int(columns.propensities[first + chosen]) / PROPENSITY_ONE],
        snapshot_version=block.snapshot_version,
        reason=Reason(int(columns.reasons[row])).label,
        time_ms=now_ms,
    )
