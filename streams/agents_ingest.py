"""The ingest role: `outcomes` and every mapped foreign topic → journal.

Copies what is in source order and acknowledges a batch only when everything in it is in the journal (or in the dead
letters). The journal's readers drop rows at or below a source's high-water mark, so a gap left by a failed write
would be lost for ever: the producer guarantees that it leaves none, and the process ends on an error and starts again
from the last contiguous ack.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from faust.types import TP

from schemas.codec import encode
from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.registry import Registry, RegistryUnavailable
from schemas.task import Source
from schemas.telemetry import Metrics
from schemas.topics import topic
from streams.dead_letters import DeadLetters, letter_of
from streams.health import Health
from streams.ingest import Ingested, ingest
from streams.ingest_fields import SourceMapping
from streams.journal import Output, WriteError
from streams.settings import WorkerSettings
from streams.source_marks import SourceWatch, read_marks
from streams.transport import ColumnarApp
from streams.transport_batch import RecordBatch

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 32
"""Batches written and not acked, each about two megabytes."""
IN_FLIGHT_BYTES_MAX = 64 << 20
"""Of their values: a compressed record batch may hold much more than an ordinary one."""
SETTLE_S = 2.0
RETRY_S = 1.0
LOOK_S = 1.0


class IngestAgent:
    """Reads every source of the namespace. Lives on the event loop."""

    def __init__(
        self, settings: WorkerSettings, registry: Registry, num_partitions: int, sources: tuple[Source, ...],
        output: Output, dead_letters: DeadLetters, metrics: Metrics, health: Health, fail: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self._registry, self._output, self._dead_letters = registry, output, dead_letters
        self._metrics, self._health, self._fail = metrics, health, fail
        self._journal = topic(settings.namespace, "journal")
        self._num_partitions = num_partitions
        self._mappings: dict[str, SourceMapping | None] = {topic(settings.namespace, "outcomes"): None}
        self._mappings.update({source.topic: SourceMapping(source) for source in sources})
        self._in_flight: set[asyncio.Task[None]] = set()
        self._in_flight_bytes = 0
        self._taken: dict[str, int] = {}
        """``topic[partition]`` → offset after the newest batch taken; `_acked` likewise."""
        self._acked: dict[str, int] = {}
        self._sources = SourceWatch(partial(read_marks, settings, registry, self._num_partitions), metrics, health)
        self.give_up: Callable[[], None] = lambda: None
        """Called when what was read can no longer be written; set by the role, which knows the consumer."""

    def assigned(self, tps: set[TP]) -> None:
        """The group has given us partitions, or none: either way we serve."""
        self._health.wait_for("start", None)
        self._sources.keep(tps)
        ours = {f"{tp.topic}[{tp.partition}]" for tp in tps}
        for key in [each for each in (*self._taken, *self._acked) if each not in ours]:
            self._taken.pop(key, None)
            self._acked.pop(key, None)
            self._health.forget(key)
            self._health.forget(f"{key} acks")

    @property
    def topics(self) -> list[str]:
        """What is read."""
        return list(self._mappings)

    def reader(self, source: str) -> Callable[[Any], Any]:
        """The body of the Faust agent of one source topic."""
        mapping = self._mappings[source]

        async def follow(stream: AsyncIterator[Any]) -> None:
            async for event in stream.noack().events():  # type: ignore[attr-defined]  # a Faust stream
                await self._take(event, mapping)

        return follow

    async def run(self, app: ColumnarApp) -> None:
        """Lag and liveness, once a second: what can be fetched is fetched, what was taken is acked."""
        while not app.should_stop:
            consumer: Any = app.consumer
            for tp in consumer.assignment():
                key, found = f"{tp.topic}[{tp.partition}]", consumer.fetched(tp)
                taken, acked = self._taken.get(key, 0), self._acked.get(key, 0)
                self._health.note(f"{key} acks", acked, taken)
                if found is not None:
                    self._health.note(key, *found)
                    self._sources.look(tp, *found)
                    # Committed is also what holds no records and nobody acknowledges: an aborted transaction.
                    lag = max(0, found[1] - (max(acked, consumer.committed(tp)) or found[0]))
                    self._metrics.set("headrace_ingest_lag_records", lag, topic=tp.topic, partition=tp.partition)
            await app.sleep(LOOK_S)

    async def settle(self) -> None:
        """Wait for the acks of what is in flight, so that a revoke commits it."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=SETTLE_S)

    async def _take(self, event: Any, mapping: SourceMapping | None) -> None:
        batch: RecordBatch = event.value
        started_s = time.monotonic()
        self._taken[f"{batch.topic}[{batch.partition}]"] = batch.next_offset
        found = await self._decoded(batch, mapping)
        writes: list[asyncio.Future[int]] = []
        reach("ingest.before-journal")
        try:
            for partition, block in found.blocks:
                payload = encode(block, self._registry)
                writes.append(await self._output.write(self._journal, partition, payload))
            for refused in found.refused:
                index = refused.index
                where = (batch.topic, batch.partition, int(batch.offsets[index]))
                time_ms = int(batch.timestamps_ms[index])
                letter = letter_of(where, batch.value(index), time_ms, refused.reason, refused.detail)
                writes.append(await self._dead_letters.write(letter))
        except WriteError as error:
            self._broken(error)
            return
        self._metrics.add("headrace_ingest_records", len(batch), topic=batch.topic)
        self._metrics.add("headrace_ingest_passed_over", found.num_passed_over, topic=batch.topic)
        task = asyncio.ensure_future(self._finish(event, found, writes, started_s))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        self._in_flight_bytes += batch.size_bytes
        while len(self._in_flight) >= IN_FLIGHT_MAX or self._in_flight_bytes > IN_FLIGHT_BYTES_MAX:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)

    async def _decoded(self, batch: RecordBatch, mapping: SourceMapping | None) -> Ingested:
        """The batch as blocks; waits while a schema that it needs cannot be fetched.

        An outcome is not asked again, as a request is: refused it would be lost.
        """
        key, complained = f"{batch.topic}[{batch.partition}]", False
        try:
            while True:
                try:
                    return ingest(batch, mapping, self._registry, self._num_partitions)
                except RegistryUnavailable as error:
                    if not complained:
                        log.error("%s waits for the schema registry: %s", key, error)
                    complained = True
                    for waiting in (key, f"{key} acks"):  # what waits on purpose is not dead
                        self._health.wait_for(waiting, "waits for the schema registry")
                    await asyncio.sleep(RETRY_S)
        finally:
            for waiting in (key, f"{key} acks"):
                self._health.wait_for(waiting, None)

    async def _finish(self, event: Any, found: Ingested, writes: list[asyncio.Future[int]], started_s: float) -> None:
        """Acknowledge the batch once all of it is written; an error ends the process before anything is skipped."""
        batch: RecordBatch = event.value
        try:
            await asyncio.gather(*writes)
        except WriteError as error:
            self._broken(error)
            return
        finally:
            self._in_flight_bytes -= batch.size_bytes
        reach("ingest.before-ack")
        event.ack()
        self._acked[f"{batch.topic}[{batch.partition}]"] = batch.next_offset
        num_outcomes = sum(len(block) for _, block in found.blocks)
        self._metrics.add("headrace_ingest_outcomes", num_outcomes, topic=batch.topic)
        self._metrics.observe("headrace_ingest_batch_seconds", time.monotonic() - started_s)

    def _broken(self, error: WriteError) -> None:
        self._metrics.add("headrace_write_errors", topic=self._journal)
        self.give_up()
        self._fail(
            UserError(
                str(error), "mend the cause (topic, permission, size); ingest starts again from its last contiguous ack"
            )
        )
