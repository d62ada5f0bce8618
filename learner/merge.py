"""Merge: the partitions of `transitions` as one sequence, by log time. Pure: blocks in, buckets of rows out.

Every partition is read by the chain rule (`schemas.chain`) and has a log time T, that of its newest countable Progress:
every row that closed before T has been accepted. A bucket of log time is complete when T of *every* partition lies past
its last millisecond; its rows then leave in order (closed_at, partition, position). So what the learner sees, and in
which order, is a function of the log: arrival, block boundaries, restarts and back-pressure change nothing.

A partition without Progress holds the merge back: learning waits for a takeover, decisions do not (architecture §7).

What a partition can do wrong, and what happens then:

    hole    a block is missing          the block is ignored; Progress that needs it does not count; the join heals it
    fork    two histories of one chain  the partition stops before it, and the merge with it; so does every reader,
                                        also one that begins again at a `Position`: it lies before the fork too
    late    a row closed before T       its join broke its promise: taken at T, the same way by every reader
    stray   another partition's record  ignored

Each is returned as an `Alarm` with positions. Every accepted row is counted by bucket; only joined and defaulted ones
leave for the learner (learning.md rule 7). Correction chains are read and counted; learning from them comes later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from learner.gather import take
from schemas.arrays import I64
from schemas.blocks import KIND_TRANSITION, TransitionBlock
from schemas.chain import START, Chain, ChainReader, Fork, Hole
from schemas.records import NO_TIME_MS, DecisionBucket, Progress

Judge = Callable[[TransitionBlock], npt.NDArray[np.bool_]]
"""(N,) which rows of a block fit its task's definition. Must depend on nothing but row, columns' shapes and task."""

LEARNT_BUCKETS = (int(DecisionBucket.JOINED), int(DecisionBucket.DEFAULTED))


@dataclass(frozen=True, slots=True)
class Position:
    """Where to read one partition again so that exactly the rows not yet taken come out. What a checkpoint holds."""

    partition: int
    offset: int = 0
    """First transitions offset to read."""
    time_ms: int = NO_TIME_MS
    """T before that offset."""
    hwm: dict[Chain, int] = field(default_factory=dict)
    """Last row taken of every chain."""
    taken_offset: int = 0
    """First offset after every block of which a row was taken; may lie above `offset`."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that the log should not hold; see the table above."""

    kind: str
    """hole, fork, late or stray."""
    partition: int
    offset: int
    """Of the record that showed it."""
    detail: str
    """One sentence with positions."""


@dataclass(frozen=True, slots=True)
class Cut:
    """All rows of the complete buckets up to `end_ms`, per task."""

    end_ms: int
    """Log time: every row that closed before it has left the merge."""
    rows: dict[bytes, TransitionBlock]
    """By fingerprint: joined and defaulted rows in order (closed_at, partition, position)."""
    num_accepted: dict[str, int]
    """Rows taken, by decision bucket."""
    num_unfit: int
    """Rows taken that do not fit their task's definition; they are in no other count and not learnt."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Accepted rows that wait for their bucket."""

    offset: int
    time_before_ms: int
    """T of the partition when the block was accepted."""
    block: TransitionBlock
    times_ms: I64
    """(N,) log time at which each row is taken: closed_at, never before T at acceptance, never falling."""
    num_bytes: int

    def split(self, row: int) -> tuple[_Piece, _Piece]:
        n = len(self.times_ms)
        first_bytes = self.num_bytes * row // n
        head = replace(self, block=self.block.rows(0, row), times_ms=self.times_ms[:row], num_bytes=first_bytes)
        rest_bytes = self.num_bytes - first_bytes
        return head, replace(self, block=self.block.rows(row, n), times_ms=self.times_ms[row:], num_bytes=rest_bytes)


class _Partition:
    """Reader state of one partition of `transitions`."""

    def __init__(self, position: Position) -> None:
        self.reader = ChainReader(position.hwm)
        self.time_ms = position.time_ms
        self.next_offset = position.offset
        """First offset not read; once stopped, the fork's own, so that a restart meets it again."""
        self.taken_offset = position.taken_offset
        self.pieces: dict[Chain, deque[_Piece]] = {}
        self.stopped = False

    def position(self, partition: int) -> Position:
        """See `Position`: pending rows are read again, so their chains step back to the row before them."""
        hwm, first = dict(self.reader.hwm), None
        for chain, pieces in self.pieces.items():
            if pieces:
                hwm[chain] = pieces[0].block.prev
                if first is None or pieces[0].offset < first.offset:
                    first = pieces[0]
        if first is None:
            return Position(partition, self.next_offset, self.time_ms, hwm, self.taken_offset)
        return Position(partition, first.offset, first.time_before_ms, hwm, self.taken_offset)


class Merge:
    """The merge of all partitions. Offer every record in offset order per partition, then take complete buckets."""

    def __init__(self, num_partitions: int, bucket_ms: int, positions: Sequence[Position] = ()) -> None:
        """`positions` of an earlier merge; partitions without one start at offset 0 of an empty chain."""
        self.bucket_ms = bucket_ms
        known = {position.partition: position for position in positions}
        self._partitions = [_Partition(known.get(p, Position(p))) for p in range(num_partitions)]
        self.num_bytes = 0
        """Bytes of accepted rows that wait."""

    def offer(
        self, partition: int, offset: int, record: TransitionBlock | Progress | None, num_bytes: int = 0
    ) -> Alarm | None:
        """Read one record (None: it could not be decoded) of `num_bytes`.

        Offsets already read are passed over, and everything from a fork on.
        """
        state = self._partitions[partition]
        if offset < state.next_offset or state.stopped:
            return None
        alarm = None if record is None else self._read(state, partition, offset, record, num_bytes)
        state.next_offset = offset if state.stopped else offset + 1
        return alarm

    def _read(
        self, state: _Partition, partition: int, offset: int, record: TransitionBlock | Progress, num_bytes: int
    ) -> Alarm | None:
        if record.partition != partition:
            return Alarm("stray", partition, offset, f"a record of partition {record.partition}")
        if isinstance(record, Progress):
            if record.time_ms > state.time_ms and state.reader.covers(record):
                state.time_ms = record.time_ms
            return None
        return self._accept(state, partition, offset, record, num_bytes)

    def _accept(
        self, state: _Partition, partition: int, offset: int, block: TransitionBlock, num_bytes: int
    ) -> Alarm | None:
        verdict = state.reader.offer(block)
        where = f"chain {block.fingerprint.hex()}/{block.kind}"
        if isinstance(verdict, Hole):
            detail = f"{where}: rows between positions {verdict.expected} and {verdict.got} are missing"
            return Alarm("hole", partition, offset, detail)
        if isinstance(verdict, Fork):
            state.stopped = True
            detail = f"{where}: accepted position {verdict.hwm} is not in the block {block.prev}..{block.last}"
            return Alarm("fork", partition, offset, detail)
        if verdict.start == len(block) or block.kind != KIND_TRANSITION:
            return None
        new = block.rows(verdict.start, len(block))
        times_ms = np.maximum.accumulate(np.maximum(new.closed_at_ms, state.time_ms))
        pieces = state.pieces.setdefault((block.fingerprint, block.kind), deque())
        pieces.append(_Piece(offset, state.time_ms, new, times_ms, num_bytes))
        self.num_bytes += num_bytes
        num_late = int(np.count_nonzero(times_ms != new.closed_at_ms))
        if num_late:
            return Alarm("late", partition, offset, f"{where}: {num_late} rows closed before T = {state.time_ms}")
        return None

    @property
    def done_ms(self) -> int:
        """Log time up to which all buckets are complete: the slowest partition's T, down to a bucket's start."""
        slowest = min(state.time_ms for state in self._partitions)
        return slowest // self.bucket_ms * self.bucket_ms

    @property
    def times_ms(self) -> list[int]:
        """T of every partition."""
        return [state.time_ms for state in self._partitions]

    @property
    def next_offsets(self) -> list[int]:
        """First offset not yet read of every partition; of a stopped one the fork's."""
        return [state.next_offset for state in self._partitions]

    @property
    def stopped(self) -> list[int]:
        """Partitions in which a fork was found."""
        return [p for p, state in enumerate(self._partitions) if state.stopped]

    @property
    def is_held(self) -> bool:
        """A partition that a fork stopped is the slowest: no bucket will be complete any more."""
        slowest = min(state.time_ms for state in self._partitions)
        return any(state.stopped and state.time_ms == slowest for state in self._partitions)

    def fingerprints(self) -> set[bytes]:
        """Tasks whose rows wait."""
        return {
            fingerprint for state in self._partitions for (fingerprint, _), pieces in state.pieces.items() if pieces
        }

    def first_ms(self) -> int | None:
        """Log time of the earliest row in a complete bucket, None when no complete bucket holds a row."""
        fronts = [
            int(pieces[0].times_ms[0]) for state in self._partitions for pieces in state.pieces.values() if pieces
        ]
        earliest = min(fronts, default=None)
        return earliest if earliest is not None and earliest < self.done_ms else None

    def take(self, until_ms: int | None = None, judge: Judge | None = None) -> Cut:
        """Rows of all complete buckets, at most those that end by `until_ms` (a bucket's boundary).

        `judge` says row by row what fits its task; a row that does not must not spoil the others.
        """
        end_ms = self.done_ms if until_ms is None else min(until_ms, self.done_ms)
        by_fingerprint: dict[bytes, list[tuple[int, _Piece]]] = {}
        for partition, state in enumerate(self._partitions):
            for (fingerprint, _), pieces in state.pieces.items():
                taken = self._pop(state, pieces, end_ms)
                if taken:
                    by_fingerprint.setdefault(fingerprint, []).extend((partition, piece) for piece in taken)
        counts = np.zeros(len(DecisionBucket), np.int64)
        rows: dict[bytes, TransitionBlock] = {}
        num_unfit = 0
        for fingerprint in sorted(by_fingerprint):
            fitting = [(partition, _fitting(piece, judge)) for partition, piece in by_fingerprint[fingerprint]]
            num_unfit += sum(len(piece.times_ms) for _, piece in by_fingerprint[fingerprint])
            num_unfit -= sum(len(piece.times_ms) for _, piece in fitting)
            fitting = [(partition, piece) for partition, piece in fitting if len(piece.times_ms)]
            merged = _ordered(fitting, counts) if fitting else None
            if merged is not None and len(merged):
                rows[fingerprint] = merged
        return Cut(end_ms, rows, {bucket.label: int(counts[bucket]) for bucket in DecisionBucket}, num_unfit)

    def _pop(self, state: _Partition, pieces: deque[_Piece], end_ms: int) -> list[_Piece]:
        taken: list[_Piece] = []
        while pieces and pieces[0].times_ms[0] < end_ms:
            piece = pieces.popleft()
            row = int(np.searchsorted(piece.times_ms, end_ms))
            if row < len(piece.times_ms):
                piece, rest = piece.split(row)
                pieces.appendleft(rest)
            taken.append(piece)
            state.taken_offset = max(state.taken_offset, piece.offset + 1)
        self.num_bytes -= sum(piece.num_bytes for piece in taken)
        return taken

    def positions(self) -> tuple[Position, ...]:
        """Where to go on after a restart: rows taken stay taken, all others come again."""
        return tuple(state.position(p) for p, state in enumerate(self._partitions))

    def taken(self, end_ms: int) -> tuple[Position, ...]:
        """What was taken up to `end_ms`, a function of the log and not of how far it was read: for the manifest."""
        positions = []
        for p, state in enumerate(self._partitions):
            hwm = {c: hwm for c, hwm in state.position(p).hwm.items() if hwm != START and c[1] == KIND_TRANSITION}
            positions.append(Position(p, state.taken_offset, end_ms, hwm))
        return tuple(positions)

    def ahead(self) -> list[int]:
        """Partitions that may be paused while too many bytes wait: all but the slowest (join.md rule 14)."""
        slowest = min(state.time_ms for state in self._partitions)
        return [p for p, state in enumerate(self._partitions) if state.time_ms > slowest]


def _fitting(piece: _Piece, judge: Judge | None) -> _Piece:
    """The piece without the rows that do not fit."""
    if judge is None:
        return piece
    fits = judge(piece.block)
    if fits.all():
        return piece
    rows = np.flatnonzero(fits)
    return replace(piece, block=take(piece.block, rows), times_ms=piece.times_ms[rows])


def _ordered(taken: Sequence[tuple[int, _Piece]], counts: I64) -> TransitionBlock:
    """Learnable rows of one task in merge order; adds all rows to `counts` by bucket."""
    merged = TransitionBlock.concat([piece.block for _, piece in taken])
    lengths = [len(piece.times_ms) for _, piece in taken]
    partitions = np.repeat(np.array([partition for partition, _ in taken]), lengths)
    times_ms = np.concatenate([piece.times_ms for _, piece in taken])
    counts += np.bincount(merged.buckets, minlength=len(counts))[: len(counts)]
    order = np.lexsort((merged.positions, partitions, times_ms))
    return take(merged, order[np.isin(merged.buckets[order], LEARNT_BUCKETS)])
