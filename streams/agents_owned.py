"""One journal partition that this worker owns: fold, emit, read back, checkpoint, heal.

The shell around the pure `JoinPartition`; lives on the event loop, one object per owned partition. States:

    rebuilding   reading its own output for the newest Progress (start, and after any doubt)
    folding      journal records go in, transitions go out
    waiting      its journal refers to a task that nobody has applied here: alarm, look again at every tick
    no schema    its journal holds a record whose schema the registry does not give: say so, read it again every second
    refused      the journal has lost what was not joined yet: only `--declare-gap` goes on; or it is another one

Nothing is queued here: a batch that comes in any state but *folding*, or that does not continue the fold, is dropped
and its partition is read again from the fold's next offset when it can go on. What was acked proves nothing: only
rows read back accepted count, and after any delivery error the partition starts again from them (join.md 6, 8, 9).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from dataclasses import replace
from functools import partial

import numpy as np

from schemas.arrays import U8
from schemas.blocks import DecisionBlock, OutcomeBlock, Tick, TransitionBlock
from schemas.chain import START, Accepted, ChainReader, Fork, Hole
from schemas.codec import BadRecord, decode, encode
from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.records import JournalGap, Progress, Resume
from schemas.registry import RegistryUnavailable
from schemas.topics import topic
from streams.agents_ports import Ports, State, Unread
from streams.dead_letters import letter_of
from streams.join import Gap, JoinLimits, JoinPartition, UnknownTask
from streams.join_groups import classify, length_of_group, read_group
from streams.owned_gauges import OwnedGauges
from streams.read_back import REFUSED_MAX, Read, ReadState, read_record
from streams.transport_batch import RecordBatch

log = logging.getLogger(__name__)

JOURNAL_EXPECTED = (DecisionBlock, OutcomeBlock, Tick)
ROOM_S = 0.005
REGISTRY_RETRY_S = 1.0
UNREAD_FACTOR = 6
"""A block that read-back has not reached at all may take this many times longer than one it has passed: a
slow read-back is not a lost block (docs/decisions, 22)."""
BREATH_RECORDS = 100
"""The event loop has other things to do now and then: ticks, acks, the probes."""

_generations = itertools.count(1)
"""Never the same twice in a process: a partition given away and back must not take stale records for its own."""


class OwnedPartition:
    """See the module's docstring."""

    def __init__(self, partition: int, ports: Ports) -> None:
        self.partition = partition
        self.state = State.REBUILDING
        self.generation = 0
        """Raised at each rebuild; what was read back for an earlier one is ignored."""
        self.unread_bytes = 0
        self.tick_in_flight = False
        self._ports = ports
        self._journal = topic(ports.settings.namespace, "journal")
        self._transitions = topic(ports.settings.namespace, "transitions")
        self._join: JoinPartition | None = None
        self._reader = ChainReader()
        self._read_offset = 0
        self._unread: deque[Unread] = deque()
        self._refused: deque[tuple[Read, BadRecord]] = deque(maxlen=REFUSED_MAX)
        self._unknown: bytes = b""
        self._read_again_s = 0.0
        """When to read the record again that waits for the schema registry."""
        self._gauges = OwnedGauges(self._journal, partition, ports.metrics)

    @property
    def next_offset(self) -> int | None:
        """First journal offset not folded, None while rebuilding."""
        return None if self._join is None else self._join.next_offset

    def begin_rebuild(self) -> int:
        """Forget everything; returns the generation under which to read back."""
        self.state, self._join = State.REBUILDING, None
        self.generation = next(_generations)
        self._unread.clear()
        self.unread_bytes = 0
        self._ports.metrics.set("headrace_join_unknown_task", 0, partition=self.partition)
        return self.generation

    def begin_fold(self, found: ReadState) -> int:
        """Start folding from what was read back; returns the journal offset to read from.

        Raises UserError when the journal no longer holds what must be folded (join.md rule 10), or is another one.
        """
        settings = self._ports.settings
        resume, gaps = self._resume(found)
        self._reader, self._read_offset = found.reader, found.transitions_offset
        self._join = JoinPartition(
            self.partition,
            self._ports.tasks,
            resume,
            dict(found.reader.hwm),
            found.progress,
            JoinLimits(settings.open_decisions_max, settings.pending_outcomes_max),
            gaps,
        )
        self._join.expect(found.journal_end)
        self._refused.extend(found.refused)
        self.state = State.FOLDING
        reach("join.rebuilt")
        if found.progress is not None:
            self._gauges.counted(found.progress)
        return resume.offset

    def _resume(self, found: ReadState) -> tuple[Resume, tuple[JournalGap, ...]]:
        """Where to go on, and the gaps in the journal that were declared so far."""
        resume = Resume(0, definitions=())
        gaps: tuple[JournalGap, ...] = ()
        if found.progress is not None:
            resume, gaps = found.progress.resume, found.progress.gaps
            self._require_same_journal(found.progress, found.journal_end)
        missing = found.journal_start - resume.offset
        if missing <= 0:
            return resume, gaps
        if not self._ports.settings.declare_gap:
            self.state = State.REFUSED
            raise UserError(
                f"{self._journal}[{self.partition}] starts at offset {found.journal_start}, "
                f"but the join must go on at {resume.offset}: {missing} records are gone that were not joined",
                "raise the topic's retention; to go on without them: headrace worker join --declare-gap",
            )
        log.warning("%s[%d]: gap of %d records declared", self._journal, self.partition, missing)
        self._ports.metrics.add("headrace_join_declared_gap_records", missing, partition=self.partition)
        return replace(resume, offset=found.journal_start), (*gaps, JournalGap(resume.offset, missing))

    def _require_same_journal(self, progress: Progress, journal_end: int) -> None:
        """All that a journal made anew holds up to its old end would be dropped, as folded before."""
        if progress.journal_offset > journal_end:
            self.state = State.REFUSED
            raise UserError(
                f"{self._journal}[{self.partition}] ends at offset {journal_end}, but the join has read up to "
                f"{progress.journal_offset}: the topic was made anew, or its broker lost what it had acknowledged; "
                "what it holds now would pass for joined",
                "start again, if the broker has just come back and may still find the rest; otherwise nothing that "
                "was joined continues in this journal: use a new namespace",
            )

    async def fold(self, batch: RecordBatch) -> bool:
        """Fold a batch and write what it closes; False: it does not continue the fold, read again."""
        join, generation = self._join, self.generation
        if join is None or self.state not in (State.FOLDING, State.READING_AGAIN):
            return True  # its owner seeks when the state changes
        next_offset = self.next_offset or 0
        if int(batch.offsets[0]) > next_offset:
            return False
        first = index = int(np.searchsorted(batch.offsets, next_offset))
        reach("join.before-fold")
        try:
            kinds = classify(batch.buffer, batch.starts, batch.lengths, self._ports.registry)
            while index < len(batch):
                grouped = self._fold_group(join, batch, kinds, index)
                if not grouped:
                    await self._fold_one(join, batch, index)
                index += grouped or 1
                if grouped or index % BREATH_RECORDS == 0:
                    await asyncio.sleep(0)
            self.state = State.FOLDING if self.state is State.READING_AGAIN else self.state
        except UnknownTask as error:
            self._wait_for(error.fingerprint)
        except RegistryUnavailable as error:
            self._wait_for_schema(error)
        except Gap as error:
            log.warning("%s[%d]: %s; it is read again", self._journal, self.partition, error)
            return False
        self._ports.metrics.add("headrace_join_blocks", index - first, partition=self.partition)
        self._gauges.folded(int(batch.timestamps_ms[-1]), self._ports.now_ms())
        if generation == self.generation:
            await self._emit(join)
        return True

    def _fold_group(self, join: JoinPartition, batch: RecordBatch, kinds: U8, index: int) -> int:
        """Fold the records from `index` on that can be read together; returns how many, 0: read the next one by one."""
        num = length_of_group(kinds, batch.lengths, batch.offsets, index)
        if not num:
            return 0
        part = slice(index, index + num)
        starts = batch.starts[part]
        stops = starts + batch.lengths[part]
        group = read_group(
            batch.buffer, starts, stops, batch.offsets[part], batch.timestamps_ms[part], kinds[part],
            self._ports.registry,
        )  # fmt: skip
        return num if group is not None and join.fold_group(group) else 0

    async def _fold_one(self, join: JoinPartition, batch: RecordBatch, index: int) -> None:
        offset, time_ms = int(batch.offsets[index]), int(batch.timestamps_ms[index])
        block: DecisionBlock | OutcomeBlock | Tick | BadRecord
        try:
            payload = batch.payload(index)
            block = decode(payload, self._ports.registry, expect=JOURNAL_EXPECTED, strings=False)
        except BadRecord as error:
            block = error
            where = (self._journal, self.partition, offset)
            letter = letter_of(where, batch.value(index), time_ms, error.reason, error.detail)
            await self._ports.dead_letters.write(letter)
        join.fold(offset, time_ms, block)
        if batch.is_unread_batch(index):
            is_last = index + 1 == len(batch)
            join.pass_over(batch.next_offset if is_last else int(batch.offsets[index + 1]))

    def _wait_for(self, fingerprint: bytes) -> None:
        self.state, self._unknown = State.WAITING, fingerprint
        self._ports.metrics.set("headrace_join_unknown_task", 1, partition=self.partition)
        log.error(
            "%s[%d] waits at offset %s for the task definition %s, which is not in %s: apply it again",
            self._journal,
            self.partition,
            self.next_offset,
            fingerprint.hex(),
            topic(self._ports.settings.namespace, "tasks"),
        )

    def _wait_for_schema(self, error: RegistryUnavailable) -> None:
        """The record at `next_offset` cannot be told from a good one: nothing behind it is folded before it."""
        if self.state is not State.READING_AGAIN:
            log.error("%s[%d] waits at offset %s: %s", self._journal, self.partition, self.next_offset, error)
        self.state, self._read_again_s = State.NO_SCHEMA, time.monotonic() + REGISTRY_RETRY_S

    def look_again(self) -> bool:
        """Whether what is waited for may have come; then the partition must be read from `next_offset`."""
        if self.state is State.NO_SCHEMA and time.monotonic() >= self._read_again_s:
            self.state = State.READING_AGAIN
            return True
        if self.state is not State.WAITING or self._unknown not in self._ports.tasks:
            return False
        self.state = State.FOLDING
        self._ports.metrics.set("headrace_join_unknown_task", 0, partition=self.partition)
        return True

    async def _emit(self, join: JoinPartition) -> None:
        """Write every block that is ready, waiting while too much of it has not come back."""
        generation = self.generation
        for block in join.emit():
            # Before the next, not after this one: meanwhile the other partitions of this worker go on.
            while self.unread_bytes > self._ports.settings.unread_bytes_max and generation == self.generation:
                await asyncio.sleep(ROOM_S)
            if generation != self.generation:
                return
            payload = encode(block, self._ports.registry)
            unread = Unread(block, payload)
            self._unread.append(unread)
            self.unread_bytes += len(payload)
            reach("join.before-write")
            delivered = await self._ports.output.write(self._transitions, self.partition, payload)
            delivered.add_done_callback(partial(self._acked, unread, generation))
            if generation != self.generation:
                return
        await self.checkpoint()

    def _acked(self, unread: Unread | None, generation: int, future: asyncio.Future[int]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            if unread is not None:
                reach("join.write-acked")
                unread.acked_s, unread.offset = time.monotonic(), future.result()
        elif generation == self.generation:
            log.error("%s[%d]: %s", self._transitions, self.partition, error)
            self._ports.metrics.add("headrace_write_errors", topic=self._transitions)
            self._ports.restart(self.partition, "write error")

    async def checkpoint(self) -> None:
        """Write the newest Progress that read-back covers, if there is a new one, and what was no record of ours."""
        while self._refused:
            read, error = self._refused.popleft()
            where = (self._transitions, self.partition, read.offset)
            letter = letter_of(where, read.value, read.time_ms, error.reason, error.detail)
            await self._ports.dead_letters.write(letter)
        if self._join is None:
            return
        progress = self._join.progress(self._reader, self._read_offset)
        if progress is not None:
            payload = encode(progress, self._ports.registry)
            reach("join.before-progress")
            delivered = await self._ports.output.write(self._transitions, self.partition, payload)
            delivered.add_done_callback(partial(self._acked, None, self.generation))

    def read(self, read: Read) -> None:
        """One record of our own output, as any reader sees it."""
        if read.generation != self.generation or self._join is None:
            return
        self._read_offset = read.offset + 1
        # Almost always it is the oldest block of ours: comparing bytes costs a fiftieth of decoding them.
        ours = bool(self._unread) and self._unread[0].payload == read.value
        try:
            record = self._unread[0].block if ours else read_record(read.value, self._ports.registry)
        except RegistryUnavailable as error:  # the rebuild waits for the registry, and reads this record again
            log.error("%s[%d] offset %d: %s", self._transitions, self.partition, read.offset, error)
            self._ports.restart(self.partition, "no schema")
            return
        if isinstance(record, TransitionBlock):
            self._judge(record, read.offset)
        elif isinstance(record, Progress):
            if self._reader.covers(record):
                self._gauges.counted(record)
        else:
            self._refused.append((read, record))

    def _judge(self, block: TransitionBlock, offset: int) -> None:
        verdict = self._reader.offer(block)
        if isinstance(verdict, Accepted):
            self._ports.metrics.add("headrace_join_transitions", len(block) - verdict.start, partition=self.partition)
            assert self._join is not None
            reach("join.read-back")
            self._join.accepted(block)
            while self._unread and self._is_read(self._unread[0].block):
                self.unread_bytes -= len(self._unread.popleft().payload)
            return
        name, cause = ("headrace_join_holes", "hole") if isinstance(verdict, Hole) else ("headrace_join_forks", "fork")
        self._ports.metrics.add(name, partition=self.partition)
        log.error(
            "%s[%d] offset %d: %s: %s; the partition restarts from what was read back",
            self._transitions,
            self.partition,
            offset,
            cause,
            verdict if isinstance(verdict, Fork) else f"expected prev {verdict.expected}, got {verdict.got}",
        )
        self._ports.restart(self.partition, cause)

    def _is_read(self, block: TransitionBlock) -> bool:
        return self._reader.hwm.get((block.fingerprint, block.kind), START) >= block.last

    def needs_healing(self) -> bool:
        """Whether a block was acked long ago and has not been read back accepted (join.md rule 9)."""
        if not self._unread or self._unread[0].acked_s is None:
            return False
        oldest = self._unread[0]
        waited_ms = (time.monotonic() - self._unread[0].acked_s) * 1000
        passed = self._read_offset > oldest.offset
        return waited_ms > self._ports.settings.heal_after_ms * (1 if passed else UNREAD_FACTOR)

    def show(self, end: int) -> None:
        """Gauges of the fold; `end` is the journal partition's end offset."""
        if self._join is not None:
            self._gauges.show(self._join, end)
