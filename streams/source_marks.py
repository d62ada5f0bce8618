"""Whether a source partition is still the log that the join has read: a topic may be deleted and made again.

The join knows a source by its name and drops what stands at or below its mark as a copy. Kafka deletes a group's
offsets with the topic, and ingest reads the new one from its start without a word: only the join's own marks, in the
newest Progress of each journal partition, tell that more was read than there is now. They are some ten minutes old, so
a topic that has already outgrown them is not told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import KafkaException, TopicPartition
from faust.types import TP

from schemas.broker_wait import REFUSED
from schemas.records import SourcePosition
from schemas.registry import Registry, RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.telemetry import Metrics
from schemas.topics import topic
from streams.health import Health
from streams.read_back import ANSWER_S, SCAN_WAIT_MS, consumer, newest_progress

log = logging.getLogger(__name__)

RETRY_S = 10.0
_MADE_ANEW = "headrace_ingest_source_made_anew"
Marks = Mapping[tuple[str, int], int]
"""(topic, partition) → last offset that the join has read."""


def read_marks(settings: CommonSettings, registry: Registry, num_partitions: int) -> Marks:
    """The furthest mark of each source partition. Blocks; call it in a thread.

    Raises KafkaException or TimeoutError when the broker does not answer, RegistryUnavailable for a record's schema.
    """
    client = consumer(settings, "read-marks", SCAN_WAIT_MS)
    try:
        found: list[SourcePosition] = []
        for partition in range(num_partitions):
            where = TopicPartition(topic(settings.namespace, "transitions"), partition)
            progress = newest_progress(client, registry, where, *client.get_watermark_offsets(where, timeout=ANSWER_S))
            found += progress.resume.sources if progress is not None else ()
    finally:
        client.close()
    marks: dict[tuple[str, int], int] = {}
    for mark in found:
        marks[mark.topic, mark.partition] = max(mark.offset, marks.get((mark.topic, mark.partition), -1))
    return marks


class SourceWatch:
    """Compares partitions with the marks when they are assigned, and when they are read from further back again."""

    def __init__(self, read: Callable[[], Marks], metrics: Metrics, health: Health) -> None:
        """`read` is `read_marks`; lives on the event loop."""
        self._read, self._metrics, self._health = read, metrics, health
        self._seen: dict[TP, tuple[int, int]] = {}
        """(position, end) at the last look."""
        self._unsure: set[TP] = set()
        self._made_anew: set[TP] = set()
        self._asking: asyncio.Task[None] | None = None
        self._not_before_s = 0.0

    def keep(self, tps: Iterable[TP]) -> None:
        """Forget all but these, which are ours."""
        ours = set(tps)
        for tp in self._made_anew - ours:
            self._health.forget(f"{tp.topic}[{tp.partition}] source")
            self._metrics.drop(_MADE_ANEW, topic=tp.topic, partition=tp.partition)
        self._made_anew &= ours
        self._unsure &= ours
        self._seen = {tp: seen for tp, seen in self._seen.items() if tp in ours}

    def look(self, tp: TP, position: int, end: int) -> None:
        """The partition is read from `position` and ends at `end`. Called now and then; does not wait."""
        last = self._seen.get(tp)
        if last is None or position < last[0]:
            self._unsure.add(tp)
        self._seen[tp] = (position, end)
        is_due = self._asking is None and time.monotonic() >= self._not_before_s
        if self._unsure and is_due:
            self._asking = asyncio.ensure_future(self._ask())

    async def _ask(self) -> None:
        try:
            marks = await asyncio.to_thread(self._read)
        except (KafkaException, TimeoutError, RegistryUnavailable) as error:
            if isinstance(error, KafkaException) and error.args[0].code() in REFUSED:
                log.warning("sources are not compared with what the join has read: %s", error.args[0].str())
                self._unsure.clear()
            self._not_before_s = time.monotonic() + RETRY_S
        else:
            for tp in self._unsure:
                self._compare(tp, *self._seen[tp], marks.get((tp.topic, tp.partition), -1))
            self._unsure.clear()
        finally:
            self._asking = None

    def _compare(self, tp: TP, position: int, end: int, mark: int) -> None:
        """A new leader may not know the end for a moment, but then nobody goes back: `position` is behind it."""
        if tp in self._made_anew or not position <= end <= mark:
            return
        key = f"{tp.topic}[{tp.partition}]"
        self._made_anew.add(tp)
        self._metrics.set(_MADE_ANEW, 1, topic=tp.topic, partition=tp.partition)
        self._health.wait_for(f"{key} source", f"ends at offset {end}, but was read up to {mark}: it is another log")
        log.error(
            "%s ends at offset %d, but the join has read up to %d: the topic was deleted and made again, or its broker "
            "lost what it had acknowledged. Every outcome up to offset %d passes for a copy and is not counted. Give "
            "the topic a name of its own and map that (`[[sources]]`, `headrace apply`); for outcomes: a new namespace",
            key, end, mark, mark,
        )  # fmt: skip
