"""`columnar://`: Faust's Kafka driver with batches of records in place of records.

Theory of operation. Faust costs about 80 µs per message whatever the message is. So one Faust message here is a whole
`RecordBatch`; its offset is that of the batch's last record. Agents, streams, assignment and signals of Faust stay as
they are. Six things in Faust's consumer must be replaced for this, and four of them are wrong for plain Faust too:

1. *What may be committed.* Faust counts the delivered message itself among the gap before it, has no lower bound in a
   fresh group and misses a hole of exactly one message, so it commits past messages that nobody acknowledged. Here:
   the end of the contiguous acknowledged prefix of what was delivered, in order of delivery.
2. *Commit before a revoke.* Faust drops its lists of acknowledged messages before it would commit them: at each
   rebalance up to a commit interval is done twice. Here: commit first.
3. *A commit without an answer.* aiokafka tries for ever, and both a rebalance and the end of the process wait for it:
   a process that was told to stop had to be ended by force. Here: given up after a moment, offered again with the next
   (`streams.transport_thread`).
4. *An error in the group.* aiokafka waits for somebody to take it, and Faust never does while it has no partitions
   (`streams.group_errors`). Here: taken, and the group is joined again.
5. *What holds no records.* Control batches and aborted transactions (`streams.transport_transactions`) are never
   delivered, so nobody acknowledges them: a topic that ends in some would never be committed to its end. Here: they
   belong to the batch before them, or count as delivered and acknowledged where nothing came with them.
6. *Where a partition starts.* After Faust's own seek to the committed offsets and before it fetches, the app may name
   other offsets (the join starts at the resume offset of its own output, never at the group's).

Topics that are not columnar keep Faust's per-record path in the same consumer.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from schemas.outage import Outage
from streams import transport_raw
from streams.transport_batch import RecordBatch, pack
from streams.transport_thread import ConsumerThread

SCHEME = "columnar"
log = logging.getLogger("headrace.transport")

StartingOffsets = Callable[[set[TP]], Awaitable[Mapping[TP, int]]]
Settle = Callable[[], Awaitable[None]]


class ColumnarApp(faust.App):
    """A Faust app whose consumer delivers the topics of `columnar_topics` as `RecordBatch`es."""

    columnar_topics: frozenset[str] = frozenset()
    starting_offsets: StartingOffsets | None = None
    """Asked after each assignment: partitions that start elsewhere than at the group's committed offset."""
    outage: Outage
    """Told when the broker does not answer, and when it does."""
    settle: Settle | None = None
    """Awaited before partitions are given away: finish what is in flight, in well under the session timeout."""


class NoTables(TableManager):
    """Apps of ours have no tables. Faust's manager waits a second for some before its app joins the group."""

    async def on_start(self) -> None:
        """As Faust's, at once: what agents need is waited for elsewhere."""
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class ColumnarSchema(faust.Schema[Any, Any]):
    """Passes a batch through untouched; what is in it is the agent's business."""

    def loads_key(self, app: Any, message: Any, **options: Any) -> None:
        """No key: none is kept."""

    def loads_value(self, app: Any, message: Any, **options: Any) -> Any:
        """The `RecordBatch` as it is."""
        return message.value


class Consumer(driver.Consumer):
    """Delivers columnar topics as batches and commits the end of the contiguous acknowledged prefix."""

    app: ColumnarApp
    _thread: ConsumerThread

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pending: dict[TP, deque[int]] = defaultdict(deque)
        """Last offsets of batches that were delivered and not committed yet, in order of delivery."""
        self._owed: dict[TP, int] = {}
        """Offsets of which the last commit failed: Faust takes them for committed."""
        self._num_seeking = self._num_forgotten = 0
        """Seeks under way, and how often something was forgotten: positions in between say nothing."""
        self._forward, self.callback = self.callback, self._deliver

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _columnar(self, topic: str) -> bool:
        return topic in self.app.columnar_topics

    async def _deliver(self, message: Any) -> None:
        if self._columnar(message.topic):
            self._pending[message.tp].append(message.offset)
        await self._forward(message)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        num_forgotten, was_seeking = self._num_forgotten, self._num_seeking
        fetched: dict[TP, list[Any]] = dict(await super()._getmany(active_partitions, timeout))
        for tp, records in fetched.items():
            if records and self._columnar(tp.topic) and not isinstance(records[0], RecordBatch):
                fetched[tp] = [pack(tp.topic, tp.partition, records)]
        if not was_seeking and self._num_forgotten == num_forgotten:
            for tp in active_partitions or ():
                if self._columnar(tp.topic):
                    self._pass_over(tp, fetched.get(tp, []), self._thread.positions.get(tp, 0))
        return fetched

    def _pass_over(self, tp: TP, batches: list[RecordBatch], position: int) -> None:
        """What stands behind `batches`, up to where the fetch left the partition, holds no records: see 5 above.

        All that was fetched before was delivered: Faust asks for more only then.
        """
        pending = self._pending[tp]
        if batches:
            if batches[-1].next_offset < position:
                batches[-1] = replace(batches[-1], next_offset=position)
        elif position > max(pending[-1] + 1 if pending else 0, self.committed(tp)):
            pending.append(position - 1)
            self._acked[tp].append(position - 1)
            self._acked_index[tp].add(position - 1)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, RecordBatch):
            return super()._to_message(tp, record)
        carried: Any = record  # Faust's types say bytes; it never looks inside
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.next_offset - 1,
            float(record.timestamps_ms[-1]) / 1000.0,
            0,
            [],
            None,
            carried,
            None,
            0,
            record.size_bytes,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if not self._columnar(tp.topic):
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_offset(self, tp: TP) -> int | None:
        """Offset that may be committed for `tp`, or None when nothing new is contiguous."""
        if not self._columnar(tp.topic):
            return super()._new_offset(tp)
        pending, acked, committed = self._pending[tp], self._acked_index[tp], self._committed_offset[tp]
        last = None
        # After a seek back, what stands below the committed offset is delivered again and Faust ignores its ack.
        while pending and (pending[0] in acked or (committed is not None and pending[0] < committed)):
            last = pending.popleft()
        if last is None:
            return self._owed.get(tp)
        self._acked[tp][:] = [offset for offset in self._acked[tp] if offset > last]
        acked.intersection_update(self._acked[tp])
        return last + 1

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        before = {tp: self._committed_offset[tp] for tp in offsets}
        did_commit: bool = await super()._commit_offsets(offsets, start_new_transaction)
        for tp, offset in offsets.items():
            if did_commit:
                self._owed.pop(tp, None)
            elif tp in self.assignment():
                self._owed[tp], self._committed_offset[tp] = offset, before[tp]
        return did_commit

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finish and commit what was done, then let Faust forget it."""
        if revoked:
            if self.app.settle is not None:
                await self.app.settle()
            # A commit that is under way may not have what was acknowledged since: the second waits and commits that.
            await self.commit()
            await self.commit()
        self._forget(revoked)
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Faust's seek to the committed offsets, then the app's own; nothing is fetched in between."""
        async with self._seeking({tp for tp in (*self._pending, *self._acked) if self._columnar(tp.topic)}):
            await super().perform_seek()
        if self.app.starting_offsets is not None:
            await self.start_at(await self.app.starting_offsets(self.assignment()))

    async def start_at(self, offsets: Mapping[TP, int]) -> None:
        """Go on reading there. Batches that were on their way may still arrive: look at their offsets."""
        still_ours = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        if still_ours:
            async with self._seeking(still_ours):
                await self.seek_wait(still_ours)

    @asynccontextmanager
    async def _seeking(self, tps: Iterable[TP]) -> AsyncIterator[None]:
        self._num_seeking += 1
        try:
            self._forget(tps)
            yield
        finally:
            self._num_seeking -= 1

    def fetched(self, tp: TP) -> tuple[int, int] | None:
        """(offset to fetch next, end of what can be fetched) as the fetcher knows, None before its first answer.

        The end is the first open transaction where there is one: what stands behind it cannot be had yet.
        """
        state = self._thread.partition_state(tp)
        if state is None or not state.has_valid_position or state.highwater is None:
            return None
        return int(state.position), int(state.highwater if state.lso is None else state.lso)

    def committed(self, tp: TP) -> int:
        """Offset up to which everything was acknowledged or holds no records, as far as it was committed; else 0."""
        return self._committed_offset[tp] or 0

    def give_up(self) -> None:
        """What was delivered and not acknowledged never will be: stopping shall not wait for it, nor commit it."""
        self._unacked_messages.clear()

    def _forget(self, tps: Iterable[TP]) -> None:
        self._num_forgotten += 1
        for tp in tps:
            self._pending.pop(tp, None)
            self._owed.pop(tp, None)
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)


class Transport(driver.Transport):
    """Faust's aiokafka transport with our `Consumer`."""

    Consumer = Consumer


def register(topics: Iterable[str], in_place: bool = True) -> str:
    """Make ``columnar://host:port`` known to Faust; returns how `topics` are read: "decoded in place" or "packed".

    `in_place` False packs always: slower, and independent of aiokafka's inner parts.
    """
    TRANSPORTS.aliases[SCHEME] = "streams.transport:Transport"
    if not in_place:
        return "packed"
    reason = transport_raw.install(topics)
    if reason is None:
        return "decoded in place"
    log.warning("record batches are packed record by record, at four times the cost: %s", reason)
    return "packed"
