"""Reading our own transitions back: what counts is not what was acked but what any reader would accept.

`read_state` is where a partition begins: the newest Progress in transitions[p] and everything after it, judged by the
reader rule (join.md rules 7, 8). `ReadBack` is how it goes on: one thread that reads the transitions of all owned
partitions and hands every record to the event loop, in log order per partition.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from schemas.blocks import TransitionBlock
from schemas.chain import ChainReader, Fork, Hole
from schemas.codec import BadRecord, decode
from schemas.records import Progress
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic

log = logging.getLogger(__name__)

POLL_S = 0.1
DRAIN_RECORDS = 500
SCAN_RECORDS_MIN = 64
"""First step back from the end when looking for a Progress; it doubles. One Progress per tick stands there."""
SCAN_WAIT_MS = 10
ANSWER_S = 10.0
REFUSED_MAX = 1_000
"""Dead letters that a rebuild writes at most: a flood of foreign records must not be held in memory."""
READ_BACK_EXPECTED = (TransitionBlock, Progress)

ReadRecord = TransitionBlock | Progress | BadRecord


@dataclass(frozen=True, slots=True)
class Read:
    """One record of transitions[p] as read back."""

    partition: int
    generation: int
    """The `follow` call that it answers: records of earlier ones are stale."""
    offset: int
    value: bytes
    """Not decoded: what is byte for byte what we wrote needs no decoding."""
    time_ms: int = 0
    """Append time."""


@dataclass(frozen=True, slots=True)
class ReadState:
    """What a new owner of a partition knows after reading its output."""

    progress: Progress | None
    """The newest countable one, None when there is none."""
    reader: ChainReader
    transitions_offset: int
    """First transitions offset not read."""
    journal_start: int
    """First offset that the journal partition still holds."""
    journal_end: int
    num_holes: int
    num_forks: int
    refused: tuple[tuple[Read, BadRecord], ...] = ()
    """Records that are none of ours, the newest `REFUSED_MAX`."""


def consumer(settings: CommonSettings, purpose: str, wait_ms: int = 500) -> Consumer:
    """A consumer that is told what to read: no group, no commits; replays without sleeping.

    `wait_ms`: how long the broker may hold an answer back while there is nothing new. Who reads here and then there
    waits for that too: the client asks for the next place when the last answer has come.
    """
    options = {
        "group.id": f"{settings.namespace}.{purpose}",  # required by the client, never used
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": 5,
        "fetch.wait.max.ms": wait_ms,
        "queued.max.messages.kbytes": 64 << 10,
    }
    return Consumer(settings.librdkafka(**options), logger=logging.getLogger("headrace.kafka"))


def read_state(settings: CommonSettings, registry: Registry, partition: int) -> ReadState:
    """Judge transitions[partition] from its newest Progress to its end. Blocks; call it in a thread.

    Raises KafkaException when the broker does not answer, RegistryUnavailable as `read_record` does.
    """
    where = TopicPartition(topic(settings.namespace, "transitions"), partition)
    journal = TopicPartition(topic(settings.namespace, "journal"), partition)
    client = consumer(settings, "read-state", SCAN_WAIT_MS)
    try:
        low, end = client.get_watermark_offsets(where, timeout=ANSWER_S)
        newest = newest_progress(client, registry, where, low, end)
        start = low if newest is None else max(low, newest.transitions_offset)
        refused: deque[tuple[Read, BadRecord]] = deque(maxlen=REFUSED_MAX)
        records = _sorted_out(_range(client, where, start, end), registry, refused)
        found = judge(newest, records, end, 0, 0)
        # Asked last: what a Progress has read was in the journal before it was written, whoever wrote it meanwhile.
        journal_start, journal_end = client.get_watermark_offsets(journal, timeout=ANSWER_S)
        return replace(found, journal_start=journal_start, journal_end=journal_end, refused=tuple(refused))
    finally:
        client.close()


def _sorted_out(
    messages: Iterable[Message], registry: Registry, refused: deque[tuple[Read, BadRecord]]
) -> Iterator[ReadRecord]:
    """What the messages hold; those that hold nothing of ours are kept in `refused`."""
    for message in messages:
        read = Read(message.partition() or 0, -1, message.offset() or 0, message.value() or b"", message.timestamp()[1])
        record = read_record(read.value, registry)
        if isinstance(record, BadRecord):
            refused.append((read, record))
        yield record


def judge(
    newest: Progress | None, records: Iterable[ReadRecord], end: int, journal_start: int, journal_end: int
) -> ReadState:
    """The reader state after `records`: those from `newest`'s transitions offset on, all of them when there is none."""
    reader, progress = ChainReader(), newest
    if newest is not None:
        reader.adopt(newest)
    num_holes = num_forks = 0
    for record in records:
        if isinstance(record, TransitionBlock):
            verdict = reader.offer(record)
            num_holes, num_forks = num_holes + isinstance(verdict, Hole), num_forks + isinstance(verdict, Fork)
        elif isinstance(record, Progress) and _is_newer(record, progress) and reader.covers(record):
            progress = record
    return ReadState(progress, reader, end, journal_start, journal_end, num_holes, num_forks)


def _is_newer(record: Progress, than: Progress | None) -> bool:
    return than is None or (record.time_ms, record.journal_offset) > (than.time_ms, than.journal_offset)


def newest_progress(client: Consumer, registry: Registry, where: TopicPartition, low: int, end: int) -> Progress | None:
    """The last Progress of the partition, looked for in doubling steps back from the end."""
    stop, step = end, SCAN_RECORDS_MIN
    while stop > low:
        start = max(low, stop - step)
        found = [read_record(message.value() or b"", registry) for message in _range(client, where, start, stop)]
        progresses = [record for record in found if isinstance(record, Progress)]
        if progresses:
            return progresses[-1]
        stop, step = start, step * 2
    return None


def _range(client: Consumer, where: TopicPartition, start: int, stop: int) -> Iterator[Message]:
    """Messages [start, stop) of a partition, each once."""
    if start >= stop:
        return
    client.assign([TopicPartition(where.topic, where.partition, start)])
    silent_since = time.monotonic()
    position = start
    while position < stop:
        for message in _drained(client):
            error, offset = message.error(), message.offset()
            if error is not None:
                raise KafkaException(error)
            if offset is None or offset < position:
                continue
            position, silent_since = offset + 1, time.monotonic()
            if offset < stop:
                yield message
        if time.monotonic() - silent_since > ANSWER_S:
            raise TimeoutError(f"{where.topic}[{where.partition}] was silent for {ANSWER_S:g} s at offset {position}")


def _drained(client: Consumer) -> list[Message]:
    """What there is, waiting for the first message only: `consume` alone waits for the number it is asked for."""
    first = client.poll(POLL_S)
    return [] if first is None else [first, *client.consume(DRAIN_RECORDS, 0)]


def read_record(value: bytes, registry: Registry) -> ReadRecord:
    """A record of ours, or why it is none: nobody else should write here, and whoever does must not stop us.

    Raises RegistryUnavailable when its schema cannot be fetched now: whether it counts is then not known, and nothing
    behind it can be judged. Never of a record that this version wrote.
    """
    try:
        record: TransitionBlock | Progress = decode(value, registry, expect=READ_BACK_EXPECTED)
    except BadRecord as error:
        return error
    return record


class ReadBack:
    """A thread that reads transitions[p] of every followed partition. `deliver` is called in that thread."""

    def __init__(self, settings: CommonSettings, deliver: Callable[[Sequence[Read]], None]) -> None:
        self._settings, self._deliver = settings, deliver
        self._topic = topic(settings.namespace, "transitions")
        self._orders: queue.SimpleQueue[tuple[int, int, int]] = queue.SimpleQueue()
        self._following: dict[int, tuple[int, int]] = {}
        """partition → (generation, next offset)"""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-back", daemon=True)

    def start(self) -> ReadBack:
        """Start the thread."""
        self._thread.start()
        return self

    def follow(self, partition: int, offset: int, generation: int) -> None:
        """Read transitions[partition] from `offset` on; every record is delivered with `generation`."""
        self._orders.put((partition, offset, generation))

    def unfollow(self, partition: int) -> None:
        """Stop reading a partition; records that are on their way may still be delivered."""
        self._orders.put((partition, -1, -1))

    def close(self) -> None:
        """Stop; waits up to a second."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        client = consumer(self._settings, "read-back")
        try:
            while not self._stopping.is_set():
                self._obey(client)
                if not self._following:
                    self._stopping.wait(POLL_S / 2)
                    continue
                self._take(_drained(client))
        finally:
            client.close()

    def _obey(self, client: Consumer) -> None:
        """Carry out `follow` and `unfollow`: assign everything anew, each partition at its next offset."""
        changed = False
        while not self._orders.empty():
            partition, offset, generation = self._orders.get()
            changed = True
            if generation < 0:
                self._following.pop(partition, None)
            else:
                self._following[partition] = (generation, offset)
        if changed:
            client.assign(
                [
                    TopicPartition(self._topic, partition, offset if offset > 0 else OFFSET_BEGINNING)
                    for partition, (_, offset) in self._following.items()
                ]
            )

    def _take(self, messages: Sequence[Message]) -> None:
        """Deliver; an error event is not a record (librdkafka retries by itself)."""
        reads = []
        for message in messages:
            partition, offset = message.partition(), message.offset()
            if message.error() is not None or partition is None or offset is None:
                continue
            generation, wanted = self._following.get(partition, (-1, 0))
            if generation < 0 or offset < wanted:
                continue
            self._following[partition] = (generation, offset + 1)
            reads.append(Read(partition, generation, offset, message.value() or b"", message.timestamp()[1]))
        if reads:
            self._deliver(reads)
