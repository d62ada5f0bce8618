"""The join role: journal → transitions, one `OwnedPartition` per journal partition that the group gives us.

Owns who is owned: rebuild on assignment, seek to the resume offset after Faust's own seek and before it fetches, ticks,
read-back, healing. What happens inside a partition is `agents_owned`'s, what a decision becomes is `join`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException
from faust.types import TP

from schemas.blocks import Tick
from schemas.codec import encode
from schemas.errors import UserError
from schemas.registry import RegistryUnavailable
from schemas.topics import topic
from streams.agents_owned import OwnedPartition
from streams.agents_ports import Ports, State
from streams.health import Health
from streams.journal import WriteError
from streams.read_back import Read, ReadBack, read_state
from streams.transport import ColumnarApp

log = logging.getLogger(__name__)

ASSIGN_S_MAX = 20.0
"""Faust waits so long for rebuilds before it fetches; one that takes longer seeks by itself when it is done."""
RETRY_S = 1.0
LOOK_UP_S, LOOK_UP_S_MAX = 1.0, 5.0
"""The start of a journal partition is asked for at most so often, and waited for so long."""
RESTART_S_MIN = 1.0
"""At most one restart per second: a hole that stays must not become a busy loop."""


class JoinAgent:
    """All partitions of one worker. Everything but the read-back thread runs on the event loop."""

    def __init__(
        self, app: ColumnarApp, ports: Callable[[Callable[[int, str], None]], Ports], health: Health,
        fail: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self.owned: dict[int, OwnedPartition] = {}
        self._app, self._health, self._fail = app, health, fail
        self._ports = ports(self.restart)
        self._journal = topic(self._ports.settings.namespace, "journal")
        self._read_back = ReadBack(self._ports.settings, self._deliver)
        self._rebuilds: dict[int, asyncio.Task[None]] = {}
        self._checkpoints: set[asyncio.Task[None]] = set()
        self._restarted_s: dict[int, float] = {}
        self._asked_s: dict[int, float] = {}
        self._num_asking = 0
        """Calls of `starting_offsets` that wait for rebuilds."""
        self._tick = encode(Tick(), self._ports.registry)
        self._loop: asyncio.AbstractEventLoop | None = None

    # what Faust calls

    async def follow(self, stream: Any) -> None:
        """The Faust agent: one batch at a time; the ack is for lag monitoring only (join.md rule 10)."""
        async for event in stream.noack().events():
            batch = event.value
            owned = self.owned.get(batch.partition)
            continues = owned is None or await owned.fold(batch)
            event.ack()  # before the seek, which forgets it
            if owned is not None and not continues:
                await self._read_again(owned)

    def assigned(self, tps: set[TP]) -> None:
        """Drop what is no longer ours; what is new is rebuilt when Faust asks where to start."""
        ours = self._ours(tps)
        for partition in [each for each in self.owned if each not in ours]:
            self._drop(partition)

    async def starting_offsets(self, tps: set[TP]) -> Mapping[TP, int]:
        """Where each owned partition starts: rebuilt ones at their resume offset, kept ones where they are."""
        self._loop = asyncio.get_running_loop()
        for partition in self._ours(tps):
            if partition not in self.owned:
                self.owned[partition] = OwnedPartition(partition, self._ports)
                self._start_rebuild(partition)
        pending = [task for task in self._rebuilds.values() if not task.done()]
        if pending:
            self._num_asking += 1
            await asyncio.wait(pending, timeout=ASSIGN_S_MAX)
            self._num_asking -= 1
        self._health.wait_for("start", None)
        return {
            TP(self._journal, partition): owned.next_offset
            for partition, owned in self.owned.items()
            if owned.next_offset is not None
        }

    # rebuilding

    def restart(self, partition: int, cause: str) -> None:
        """Rebuild an owned partition from what was read back, at most once a second."""
        task = self._rebuilds.get(partition)
        if partition not in self.owned or (task is not None and not task.done()):
            return
        level = logging.DEBUG if self._app.outage.is_on else logging.WARNING  # an outage has been said
        log.log(level, "%s[%d] restarts from its own output: %s", self._journal, partition, cause)
        self._ports.metrics.add("headrace_join_restarts", partition=partition, cause=cause)
        self._start_rebuild(partition)

    def _start_rebuild(self, partition: int) -> None:
        owned = self.owned[partition]
        generation = owned.begin_rebuild()
        self._read_back.unfollow(partition)
        self._health.wait_for(f"{self._journal}[{partition}]", State.REBUILDING.value)
        task = asyncio.ensure_future(self._rebuild(owned, generation))
        task.add_done_callback(self._ended)
        self._rebuilds[partition] = task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A mistake of ours in the background must not leave a partition that stands still for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)
            self._fail(Exception(f"{type(error).__name__}: {error}"))

    async def _rebuild(self, owned: OwnedPartition, generation: int) -> None:
        """Read the partition's own output until that succeeds, then fold from its resume offset."""
        partition = owned.partition
        since = time.monotonic() - self._restarted_s.get(partition, 0.0)
        if since < RESTART_S_MIN:
            await asyncio.sleep(RESTART_S_MIN - since)
        self._restarted_s[partition] = time.monotonic()
        started, complained = time.monotonic(), False
        while True:
            try:
                found = await asyncio.to_thread(read_state, self._ports.settings, self._ports.registry, partition)
                break
            except (KafkaException, TimeoutError) as error:
                self._app.outage.say("the output of partition %d cannot be read yet: %s", partition, error)
                await asyncio.sleep(RETRY_S)
            except RegistryUnavailable as error:
                if not complained:
                    log.warning("cannot read the output of partition %d yet, trying on: %s", partition, error)
                complained = True
                await asyncio.sleep(RETRY_S)
        if self.owned.get(partition) is not owned or owned.generation != generation:
            return
        try:
            offset = owned.begin_fold(found)
        except UserError as error:
            self._fail(error)
            return
        self._read_back.follow(partition, found.transitions_offset, generation)
        self._health.wait_for(f"{self._journal}[{partition}]", None)
        log.info(
            "%s[%d] folds from offset %d of %d (%.0f ms to read its output, %d holes passed)",
            self._journal, partition, offset, found.journal_end, (time.monotonic() - started) * 1000, found.num_holes,
        )  # fmt: skip
        if not self._num_asking:  # Faust, when it waits for us, seeks by itself
            await self._seek({partition: offset})

    def _drop(self, partition: int) -> None:
        self.owned.pop(partition)
        self._read_back.unfollow(partition)
        self._health.forget(f"{self._journal}[{partition}]")
        for name in ("progress_ms", "read_back_ms", "lag_records", "open_decisions", "unknown_task", "clock_skew_ms"):
            self._ports.metrics.drop(f"headrace_join_{name}", partition=partition)

    async def _seek(self, offsets: Mapping[int, int | None]) -> None:
        """Read partitions again from these offsets, where Faust is not rebalancing (it asks us itself then)."""
        wanted = {TP(self._journal, p): offset for p, offset in offsets.items() if offset is not None}
        if wanted and not self._app.rebalancing:
            consumer: Any = self._app.consumer
            await consumer.start_at(wanted)

    async def _read_again(self, owned: OwnedPartition) -> None:
        """From where the fold stands; where retention has taken that, begin anew, which refuses or declares the gap."""
        wanted = owned.next_offset
        if wanted is not None and await self._journal_start(owned.partition) > wanted:
            self.restart(owned.partition, "the journal lost records that were not joined yet")
        else:
            await self._seek({owned.partition: wanted})

    async def _journal_start(self, partition: int) -> int:
        """First offset that the broker still holds; 0 where it was asked a moment ago or gives no answer now.

        Batches that were fetched before a seek ask too: a look-up each would be one per batch.
        """
        now_s = time.monotonic()
        if now_s - self._asked_s.get(partition, -LOOK_UP_S) < LOOK_UP_S:
            return 0
        self._asked_s[partition] = now_s
        consumer: Any = self._app.consumer
        try:
            found = await asyncio.wait_for(consumer.earliest_offsets(TP(self._journal, partition)), LOOK_UP_S_MAX)
        except (KafkaError, TimeoutError) as error:
            log.debug("no start of %s[%d]: %s", self._journal, partition, error)
            return 0
        return int(next(iter(found.values()), 0))

    def _ours(self, tps: set[TP]) -> set[int]:
        return {tp.partition for tp in tps if tp.topic == self._journal}

    # clocks and read-back

    async def run(self) -> None:
        """Ticks, healing, waiting partitions, gauges; one round per tick until the app stops."""
        self._loop = asyncio.get_running_loop()
        self._read_back.start()
        period_s = self._ports.tick_ms / 1000
        while not self._app.should_stop:
            for owned in list(self.owned.values()):
                self._send_tick(owned)
                if owned.look_again():
                    await self._seek({owned.partition: owned.next_offset})
                if owned.needs_healing():
                    self.restart(owned.partition, "not read back")
                self._show(owned)
            await self._app.sleep(period_s)

    def _send_tick(self, owned: OwnedPartition) -> None:
        """A heartbeat into the journal (join.md rule 11); none while the last one is on its way (broker gone)."""
        if owned.tick_in_flight:
            return
        loop = self._loop
        assert loop is not None

        def landed(error: WriteError | None, offset: int) -> None:
            owned.tick_in_flight = False

        owned.tick_in_flight = True  # before the send: the producer's thread may report the delivery before it returns
        try:
            self._ports.output.send(self._journal, owned.partition, self._tick, on_delivery=landed)
        except BufferError:
            owned.tick_in_flight = False
        except WriteError as error:
            self._fail(UserError(str(error), "see the broker's log; this worker ends so that another can take over"))

    def _show(self, owned: OwnedPartition) -> None:
        key = f"{self._journal}[{owned.partition}]"
        position = owned.next_offset
        if position is None:
            return
        end = position
        try:
            consumer: Any = self._app.consumer
            end = consumer.highwater(TP(self._journal, owned.partition)) or position
        except Exception:  # aiokafka raises several errors while it rebalances; the gauge then says "nothing to read"
            log.debug("no high-water mark of %s yet", key)
        owned.show(end)
        waits = None if owned.state is State.FOLDING else owned.state.value
        self._health.wait_for(key, waits)
        self._health.note(key, position, end)

    def _deliver(self, reads: Sequence[Read]) -> None:
        """In the read-back thread: hand over to the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, reads)

    def _take(self, reads: Sequence[Read]) -> None:
        partitions = set()
        for read in reads:
            owned = self.owned.get(read.partition)
            if owned is not None:
                owned.read(read)
                partitions.add(read.partition)
        for partition in partitions:
            owned = self.owned.get(partition)
            if owned is not None:
                task = asyncio.ensure_future(owned.checkpoint())
                self._checkpoints.add(task)
                task.add_done_callback(self._checkpoints.discard)
                task.add_done_callback(self._ended)

    def close(self) -> None:
        """Stop reading back."""
        self._read_back.close()
        for task in self._rebuilds.values():
            task.cancel()
