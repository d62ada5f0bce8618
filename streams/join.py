"""The join: one fold over one journal partition, decisions and outcomes in, transitions out.

Theory of operation (join.md has the rules, each with what goes wrong without it):

    fold(offset, append time, block)       in offset order; nothing else changes the state
    fold_group(group)                      the same for many records at once (streams.join_groups)
        T rises to the append time
        outcomes with T(o) + bw < T settle; decisions with T(d) + W < T close
        decisions: duplicate or not (rule 1), take the outcomes that waited for them (rule 2)
        outcomes: copy or not (rule 3), go to their decision or wait (rule 2)
        the oldest open decisions and waiting outcomes beyond the limits close or settle (rule 14)
        a tick is a candidate for Progress (rule 8)
    emit()                                 closed rows that no reader has, as chained blocks (rules 4 and 6)
    progress(reader, offset)               the newest tick all of whose closed rows were read back (rule 8)

An object lives from one take-over of the partition to the next restart. A new one starts at the resume of the last
countable Progress and folds the same records again; it says nothing twice, because rows at or below the accepted
positions are not emitted and what `counted` has counted is not counted again. Whatever the starting point, the rows
and the counts are the same function of the journal.

D, Wmax, bwmax and the outcome types that count follow from the definitions in force, each from the first record of this
partition that refers to it; a resume names those that were before it (streams.join_definitions).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from schemas.arrays import I64
from schemas.blocks import KIND_TRANSITION, DecisionBlock, OutcomeBlock, Tick, TransitionBlock
from schemas.bounds import BadRecord
from schemas.chain import START, Chain, ChainReader
from schemas.merged_reader import Merged
from schemas.records import NO_TIME_MS, ChainPosition, JournalGap, Progress, Resume
from schemas.task import TaskTable
from streams.attribution import PENDING_COUNT
from streams.join_counts import OPEN, OUTCOMES_AT, USES_AT, count_from, decision_counts, outcome_counts
from streams.join_definitions import Definitions
from streams.join_emit import ChainTail, Segment, new_closing
from streams.join_folding import Offered, fold_decisions, fold_outcomes
from streams.join_groups import NOTHING_OFFERED, Group, stretches, timed
from streams.join_history import Candidate, Candidates, History
from streams.join_kernels import RUN_ROWS, close_rows
from streams.join_limits import Gap, JoinLimits, UnknownTask
from streams.join_memory import JoinMemory
from streams.join_offers import offer, tell_group, told_of
from streams.join_steps import FIRST, LAST, fold_steps

__all__ = ["Gap", "JoinLimits", "JoinPartition", "UnknownTask"]


class JoinPartition:
    """The join of one journal partition. Pure: time is what `fold` is told, no I/O, not thread-safe."""

    def __init__(
        self,
        partition: int,
        tasks: TaskTable,
        resume: Resume | None = None,
        chains: Mapping[Chain, int] | None = None,
        counted: Progress | None = None,
        limits: JoinLimits | None = None,
        gaps: tuple[JournalGap, ...] = (),
    ) -> None:
        """Start at `resume` (None: at the first record folded, with the whole table in force), with `chains` accepted
        and `counted` counted.

        `chains` are the positions that the reader of this partition's transitions has accepted by now, at least those
        of `counted`; `resume` is that of `counted`, or behind it where `gaps` were gone over.
        """
        start = resume or Resume(0, NO_TIME_MS, ())
        self.partition = partition
        self.time_ms = start.time_ms
        """T: the highest append time folded."""
        self.next_offset: int | None = resume.offset if resume else None
        """The offset that `fold` takes next, None before the first."""
        self.num_bad = 0
        """Journal records that could not be decoded, in this object's life."""
        self._limits = limits or JoinLimits()
        self._gaps = gaps
        self._definitions = Definitions(tasks, start.definitions)
        self._accepted = dict(chains or {})
        self._sources = {(mark.topic, mark.partition): mark.offset for mark in start.sources}
        self._counted_offset = counted.journal_offset if counted else -1
        self._tails: dict[int, ChainTail] = {}
        self._memory = JoinMemory()
        self._counts = self._memory.counts
        self._history = History(start)
        self._candidates = Candidates()
        self._backlog_end = 0
        if counted:
            count_from(self._counts, counted)

    @property
    def num_open(self) -> int:
        """Decisions whose window has not passed."""
        return int(self._counts[OPEN])

    @property
    def num_pending(self) -> int:
        """Outcomes that may still find their decision."""
        return int(self._counts[OUTCOMES_AT + PENDING_COUNT])

    @property
    def memory_bytes(self) -> int:
        """Memory of indexes and records, without the columns of open decisions."""
        return self._memory.num_bytes

    @property
    def sources(self) -> dict[tuple[str, int], int]:
        """Last offset folded per (source topic, source partition)."""
        return dict(self._sources)

    @property
    def stats(self) -> dict[str, dict[str, int]]:
        """Counts by bucket of both identities (rule 17), uses per task name, and records that were not decodable."""
        uses = {name: int(self._counts[USES_AT + index]) for name, index in self._definitions.names.items()}
        return {
            "decisions": decision_counts(self._counts),
            "outcomes": outcome_counts(self._counts),
            "uses": uses,
            "journal": {"undecodable": self.num_bad},
        }

    def expect(self, journal_end: int) -> None:
        """Say that the journal holds records up to `journal_end`: what it takes to remember them is made at once.

        Changes no result.
        """
        self._backlog_end = journal_end

    def fold(self, offset: int, append_time_ms: int, block: DecisionBlock | OutcomeBlock | Tick | BadRecord) -> None:
        """Take the journal record at `offset`. One before the next offset is dropped.

        Raises Gap when `offset` is beyond the next one, UnknownTask when the definition of a DecisionBlock is not
        known yet, UserError when its name is one too many; none changes anything.
        """
        if self.next_offset is not None and offset != self.next_offset:
            if offset < self.next_offset:
                return
            raise Gap(self.partition, self.next_offset, offset)
        known = self._definitions
        known.refresh()
        if known.missing:
            raise UnknownTask(self.partition, offset, known.missing)
        if isinstance(block, DecisionBlock) and known.index_of(block.fingerprint) < 0:
            raise UnknownTask(self.partition, offset, block.fingerprint)
        if isinstance(block, DecisionBlock):
            known.require_place(block.fingerprint)
        self._history.note(offset, self.time_ms, self._sources, known.in_force, self.look_back_ms)
        counting = offset >= self._counted_offset
        self._advance(append_time_ms, counting)
        if isinstance(block, DecisionBlock):
            known.put_in_force(block.fingerprint, self.time_ms)
            self._fold_decisions(offset, block, counting)
        elif isinstance(block, OutcomeBlock):
            self._fold_outcomes(block, counting)
        elif not isinstance(block, Tick):
            self.num_bad += 1
        self.next_offset = offset + 1
        if isinstance(block, Tick) and self.next_offset > self._counted_offset:
            self._offer_progress()

    def pass_over(self, next_offset: int) -> None:
        """The record folded last stands for all up to `next_offset`: a record batch that nobody can read."""
        self.next_offset = next_offset

    def fold_group(self, group: Group) -> bool:
        """Take all records of `group`, as `fold` would one by one; False, and nothing changed: do that."""
        known = self._definitions
        known.refresh()
        first, last = int(group.offsets[0]), int(group.offsets[-1])
        plain = (
            self.next_offset == first
            and not known.missing
            and (first >= self._counted_offset or last < self._counted_offset)
        )
        plain = plain and self.num_open + group.num_decisions <= self._limits.num_open_max
        if not plain or not all(known.is_in_force(part.block.fingerprint) for part in group.decisions):
            return False
        counting = first >= self._counted_offset
        self._history.note(first, self.time_ms, self._sources, known.in_force, self.look_back_ms)
        times = np.maximum.accumulate(np.maximum(group.times_ms, self.time_ms))
        self._fold_steps(group, times, counting)
        now = int(times[-1])
        self._memory.note_decisions(now, known)
        self._memory.note_outcomes(now, known)
        self._memory.pendings.evict(self._memory.pendings.head)
        self._advance(now, counting)
        self.next_offset = last + 1
        return True

    def _fold_steps(self, group: Group, times: I64, counting: bool) -> None:
        known, memory = self._definitions, self._memory
        num_left = self._backlog_end - int(group.offsets[0])
        memory.widen(group.num_decisions, group.num_outcomes, num_left / len(group.offsets))
        steps, parts = group.steps()
        steps = timed(steps, times, known.dedupe_at_each(times))
        seqs = memory.next_decision + np.cumsum(np.where(parts >= 0, steps[:, LAST] - steps[:, FIRST], 0))
        offered = [self._offer_part(part, group.offsets, times, seqs) for part in group.decisions]
        told = tell_group(group, known)
        marks = np.array([self._sources.get(source, -1) for source in group.sources], np.int64)
        num_waiting = len(memory.pendings) + group.num_outcomes
        memory.make_room(known, group.num_decisions, group.num_outcomes, num_waiting)
        limits = (known.backward_ms, 2 * known.window_ms, self._limits.num_pending_max)
        scratch = np.empty(num_waiting, np.int64)
        for first, last, part in stretches(parts):
            definition, rows = offered[part] if part >= 0 else (0, NOTHING_OFFERED)
            fold_steps(
                memory.state(), known.rules, rows, told, steps[first:last], marks, definition, limits, counting, scratch
            )
        self._sources.update(zip(group.sources, marks.tolist(), strict=True))

    def _offer_part(self, part: Merged, offsets: I64, times: I64, seqs: I64) -> tuple[int, Offered]:
        """(index of the definition, what to fold) of the decisions of one definition; they are open from now on."""
        index = self._definitions.index_of(part.block.fingerprint)
        kept, offered = offer(self._definitions, index, part.block)
        rows = part.rows
        runs = np.stack(
            [offsets[part.messages], np.zeros_like(rows), seqs[part.messages] - rows, rows, times[part.messages],
             part.versions], axis=1,
        )  # fmt: skip
        self._tail(index).take_in(Segment(runs, 0, kept.columns, kept.decision_keys))
        return index, offered

    @property
    def look_back_ms(self) -> int:
        """L = D + Wmax + bwmax."""
        known = self._definitions
        return known.dedupe_ms + known.window_ms + known.backward_ms

    def emit(self) -> list[TransitionBlock]:
        """Closed rows not emitted yet and not accepted by a reader, at most 512 KiB and 65,535 rows a block."""
        blocks: list[TransitionBlock] = []
        for tail in self._tails.values():
            if tail.closed:
                blocks.extend(tail.drain(self.partition))
        return blocks

    def accepted(self, block: TransitionBlock) -> None:
        """The reader has accepted `block`, whoever wrote it: rows up to its last need not be emitted."""
        chain = (block.fingerprint, block.kind)
        self._accepted[chain] = max(self._accepted.get(chain, START), block.last)
        tail = self._tails.get(self._definitions.index_of(block.fingerprint))
        if tail and block.kind == KIND_TRANSITION:
            tail.accepted = self._accepted[chain]

    def progress(self, reader: ChainReader, transitions_offset: int) -> Progress | None:
        """The newest tick all of whose closed rows `reader` has accepted, None when there is no new one.

        `transitions_offset`: first offset of the transitions that `reader` has not read.
        """
        found = self._candidates.covered(reader)
        if found is None:
            return None
        return Progress(
            partition=self.partition,
            time_ms=found.time_ms,
            journal_offset=found.journal_offset,
            transitions_offset=transitions_offset,
            chains=tuple(ChainPosition(*chain, hwm) for chain, hwm in sorted(reader.hwm.items())),
            resume=found.resume,
            decision_counts=decision_counts(found.counts),
            outcome_counts=outcome_counts(found.counts),
            gaps=self._gaps,
        )

    # ---- the fold, step by step

    def _advance(self, append_time_ms: int, counting: bool) -> None:
        """T rises; what its rise ends is settled and closed."""
        if append_time_ms <= self.time_ms:
            return
        self.time_ms = append_time_ms
        known = self._definitions
        if len(self._memory.pendings):
            self._memory.settle(self.time_ms - known.backward_ms, self._limits.num_pending_max, counting)
        for tail in self._tails.values():
            while num_runs := tail.due(self.time_ms):
                self._close(tail, *tail.take_runs(num_runs), is_cut=False, counting=counting)
        self._memory.let_go(self.time_ms, known)

    def _close(self, tail: ChainTail, segment: Segment, runs: I64, is_cut: bool, counting: bool) -> None:
        num_rows = int(runs[:, RUN_ROWS].sum())
        closing = new_closing(num_rows, segment.columns.num_slots)
        close_rows(self._memory.state(), self._definitions.rules, runs, tail.definition, is_cut, counting, closing)
        tail.close(segment, closing)

    def _fold_decisions(self, offset: int, block: DecisionBlock, counting: bool) -> None:
        known, memory = self._definitions, self._memory
        index = known.index_of(block.fingerprint)
        kept, offered = offer(known, index, block)
        num_rows, num_waiting = len(block), len(memory.pendings)
        seq = memory.next_decision
        memory.make_room(known, num_rows, 0, num_waiting)
        fold_decisions(
            memory.state(), known.rules, offered, index, self.time_ms, known.dedupe_at(self.time_ms), counting,
            np.empty(num_waiting, np.int64), (0, num_rows, 0),
        )  # fmt: skip
        memory.note_decisions(self.time_ms, known)
        run = np.array([[offset, 0, seq, num_rows, self.time_ms, block.snapshot_version]], np.int64)
        self._tail(index).take_in(Segment(run, 0, kept.columns, kept.decision_keys))
        self._cut(counting)

    def _fold_outcomes(self, block: OutcomeBlock, counting: bool) -> None:
        known, memory = self._definitions, self._memory
        memory.make_room(known, 0, len(block), 0)
        source = (block.source_topic, block.source_partition)
        self._sources[source] = fold_outcomes(
            memory.state(), known.rules, told_of(block, block.types, known.type_indices(block.type_names)),
            self._sources.get(source, -1), self.time_ms, known.dedupe_at(self.time_ms), 2 * known.window_ms, counting,
            (0, len(block)),
        )  # fmt: skip
        memory.note_outcomes(self.time_ms, known)
        if len(memory.pendings) > self._limits.num_pending_max:
            memory.settle(self.time_ms - known.backward_ms, self._limits.num_pending_max, counting)

    def _cut(self, counting: bool) -> None:
        """Rule 14: beyond the limit the oldest close early, by position over all chains."""
        while (excess := self.num_open - self._limits.num_open_max) > 0:
            tail = min((each for each in self._tails.values() if each.open), key=lambda each: each.oldest_position)
            self._close(tail, *tail.take_rows(excess), is_cut=True, counting=counting)

    def _offer_progress(self) -> None:
        """Remember this tick with all that a Progress about it must say."""
        oldest = [tail.oldest_ms for tail in self._tails.values() if tail.oldest_ms is not None]
        bound_ms = min([self.time_ms, *oldest]) - self.look_back_ms
        closed = {
            (tail.task.fingerprint, KIND_TRANSITION): tail.last_closed
            for tail in self._tails.values()
            if tail.last_closed > START
        }
        assert self.next_offset is not None
        self._candidates.add(
            Candidate(self.time_ms, self.next_offset, self._counts.copy(), closed, self._history.resume(bound_ms))
        )

    def _tail(self, index: int) -> ChainTail:
        if index not in self._tails:
            task = self._definitions.task(index)
            hwm = self._accepted.get((task.fingerprint, KIND_TRANSITION), START)
            self._tails[index] = ChainTail(index, task, hwm)
        return self._tails[index]
