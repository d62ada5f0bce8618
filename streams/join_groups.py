"""Groups: many consecutive journal records read and folded at once.

What the join costs per record beside its rows is Python; in a catch-up that is most of it. So blocks that follow each
other without a tick are read by `schemas.merged_reader` into one set of columns per task definition, and folded by one
call per stretch of one definition (`streams.join_steps.fold_steps`), record by record in log order inside it.
Closing waits for the end of the group: whether a decision still takes an outcome, is a duplicate or in conflict is told
by T, never by whether its row has been closed yet.

Whatever is not the plain case (a record that cannot be decoded, a definition new to the partition, limits reached)
is folded one by one by `JoinPartition.fold`; a test holds both ways to the same rows and counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from schemas.arrays import I32, I64, U8, empty
from schemas.bounds import LIMITS
from schemas.codec import NUM_HEADER
from schemas.merged_reader import Merged, merge_decisions, merge_outcomes
from schemas.registered import Registry
from schemas.soundness import segment_sums
from streams.join_folding import Offered, Told
from streams.join_steps import CANDIDATE, DEDUPE, FIRST, IS_OUTCOMES, LAST, SOURCE, TIME

OTHER, DECISIONS, OUTCOMES = range(3)
"""What a journal record is, by the schema id in its header."""

RECORDS_MIN = 3
"""Fewer are read one by one: it costs the same."""
RECORDS_MAX = 64
BYTES_MAX = 2 << 20
"""A group is a step of the event loop: a few tens of milliseconds."""
_NUM_STEP = 7

NOTHING_OFFERED = Offered(
    empty(np.uint64, 0, 2), empty(np.uint64), empty(np.bool_), empty(np.int32, 0, 1), empty(np.int32),
    empty(np.uint64), True, empty(np.uint64, 0, 1),
)  # fmt: skip
NOTHING_TOLD = Told(
    empty(np.int64), empty(np.uint64, 0, 2), empty(np.uint64), empty(np.uint64, 0, 2), empty(np.uint64),
    empty(np.int32), empty(np.int32), empty(np.int32), empty(np.float64),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """K consecutive records of a journal partition: decisions and outcomes, nothing else."""

    offsets: I64
    """(K,) rising by one."""
    times_ms: I64
    """(K,) append times."""
    decisions: list[Merged]
    """One per definition; their `messages` count within the group."""
    outcomes: Merged | None

    @property
    def num_decisions(self) -> int:
        """Rows of all decisions."""
        return sum(len(part.block) for part in self.decisions)

    @property
    def num_outcomes(self) -> int:
        """Rows of all outcomes."""
        return 0 if self.outcomes is None else len(self.outcomes.block)

    def steps(self) -> tuple[I64, I64]:
        """(steps (K, 7) of `fold_steps` without times and horizons, (K,) index of each record's part or -1)."""
        steps = np.zeros((len(self.offsets), _NUM_STEP), np.int64)
        parts = np.full(len(self.offsets), -1, np.int64)
        for index, part in enumerate(self.decisions):
            ends = np.cumsum(part.rows)
            candidates = segment_sums(part.block.columns.features.num_candidates, part.rows)
            steps[part.messages, FIRST], steps[part.messages, LAST] = ends - part.rows, ends
            steps[part.messages, CANDIDATE] = np.cumsum(candidates) - candidates
            parts[part.messages] = index
        if self.outcomes is not None:
            ends = np.cumsum(self.outcomes.rows)
            messages = self.outcomes.messages
            steps[messages, IS_OUTCOMES] = 1
            steps[messages, FIRST], steps[messages, LAST] = ends - self.outcomes.rows, ends
            steps[messages, SOURCE] = self.outcomes.source_of
        return steps, parts

    @property
    def sources(self) -> tuple[tuple[str, int], ...]:
        """Source partitions of its outcomes, in order of their first record."""
        return () if self.outcomes is None else self.outcomes.sources


def timed(steps: I64, times_ms: I64, horizons_ms: I64) -> I64:
    """`steps` with T and the dedupe horizon of every record."""
    steps[:, TIME], steps[:, DEDUPE] = times_ms, horizons_ms
    return steps


def stretches(parts: I64) -> list[tuple[int, int, int]]:
    """(first record, record after the last, part) of each stretch that one call can fold: decisions of one part at
    most, any outcomes; part -1 when there are none."""
    decided = np.flatnonzero(parts >= 0)
    if not len(decided):
        return [(0, len(parts), -1)]
    of = parts[decided]
    changes = np.flatnonzero(np.diff(of)) + 1
    firsts = [0, *decided[changes].tolist()]
    return list(zip(firsts, [*firsts[1:], len(parts)], of[[0, *changes]].tolist(), strict=True))


def classify(buffer: U8, starts: I64, lengths: I32, registry: Registry) -> U8:
    """(N,) what each record is: `DECISIONS` and `OUTCOMES` where it can stand in a group, `OTHER` elsewhere."""
    usable = (lengths > NUM_HEADER) & (lengths <= LIMITS.message_bytes_max)
    kinds = np.zeros(len(starts), np.uint8)
    if len(buffer) < NUM_HEADER:
        return kinds
    heads = buffer[np.where(usable, starts, 0)[:, None] + np.arange(NUM_HEADER)]
    ids = heads[:, 1:].astype(np.int64) @ np.array([1 << 24, 1 << 16, 1 << 8, 1])
    usable &= heads[:, 0] == 0
    kinds[usable & (ids == registry.id_of("DecisionBlock"))] = DECISIONS
    kinds[usable & (ids == registry.id_of("OutcomeBlock"))] = OUTCOMES
    return kinds


def length_of_group(kinds: U8, lengths: I32, offsets: I64, index: int) -> int:
    """How many records from `index` on can be one group; 0 when it is better to read them one by one."""
    stop = min(len(kinds), index + RECORDS_MAX)
    others = np.flatnonzero(kinds[index:stop] == OTHER)
    num = int(others[0]) if len(others) else stop - index
    num = min(num, int(np.searchsorted(np.cumsum(lengths[index : index + num], dtype=np.int64), BYTES_MAX)))
    gaps = np.flatnonzero(np.diff(offsets[index : index + num]) != 1)
    num = int(gaps[0]) + 1 if len(gaps) else num
    return num if num >= RECORDS_MIN else 0


def read_group(
    buffer: U8, starts: I64, stops: I64, offsets: I64, times_ms: I64, kinds: U8, registry: Registry
) -> Group | None:
    """The group of these records, None: read them one by one (`codec.decode` says what is wrong, if anything)."""
    told, decided = np.flatnonzero(kinds == OUTCOMES), np.flatnonzero(kinds == DECISIONS)
    outcomes, decisions = None, []
    if len(told):
        outcomes = merge_outcomes(buffer, starts[told], stops[told], registry)
        if outcomes is None:
            return None
        outcomes = _renumbered(outcomes, told)
    if len(decided):
        parts = merge_decisions(buffer, starts[decided], stops[decided], registry)
        if parts is None:
            return None
        decisions = [_renumbered(part, decided) for part in parts]
    return Group(offsets, times_ms, decisions, outcomes)


def _renumbered(merged: Merged, among: I64) -> Merged:
    return replace(merged, messages=among[merged.messages])
