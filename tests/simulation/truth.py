"""What must come out of a world, by the brute-force join, and how the simulation's logs are held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schemas.blocks import DecisionBlock, Tick, TransitionBlock
from schemas.chain import Accepted, ChainReader, Fork, Hole
from schemas.records import DecisionBucket, Progress
from schemas.task import TaskTable
from streams.join import JoinLimits, JoinPartition
from tests.oracle.brute_force_join import BruteForceJoin, Row
from tests.oracle.join_world import definition_of
from tests.simulation.worlds import World


class Wrong(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, invariant: str, detail: Any = "") -> None:
    if not holds:
        raise Wrong(f"{invariant}: {detail}" if detail != "" else invariant)


@dataclass(frozen=True)
class At:
    """What is true of a journal up to a tick."""

    decisions: dict[str, int]
    outcomes: dict[str, int]
    time_ms: int
    lasts: dict[bytes, int]
    """Last position closed per fingerprint."""


class Truth:
    """One partition as the brute-force join has it."""

    by_log = True
    """Definitions count from the first record that refers to them."""

    def __init__(self, world: World, partition: int, limits: tuple[int, int]) -> None:
        self.at: dict[int, At] = {}
        self.rows: dict[bytes, list[Row]] = {}
        journal = world.journals[partition]
        self._blocks = {offset: each for offset, (_, each) in enumerate(journal) if isinstance(each, DecisionBlock)}
        self._cuts: dict[tuple[int, int], tuple[Any, ...]] = {}
        """By first position and number of rows: several workers write the same."""
        self._find(world, partition, limits)

    def _find(self, world: World, partition: int, limits: tuple[int, int]) -> None:
        definitions = {task.fingerprint: definition_of(task) for task in world.tasks}
        brute = BruteForceJoin(definitions, *limits, by_log=self.by_log)
        for offset, (time_ms, record) in enumerate(world.journals[partition]):
            brute.fold(offset, time_ms, record)
            if isinstance(record, Tick):
                lasts = {fingerprint: rows[-1].position for fingerprint, rows in brute.rows.items()}
                self.at[offset + 1] = At(*brute.counts, brute.time, lasts)
        self.rows = {fingerprint: [_as_float32(row) for row in rows] for fingerprint, rows in brute.rows.items()}

    def check_block(self, block: TransitionBlock) -> None:
        """The decision's columns stand in the transition as they stood in the journal."""
        if self._is_cut_from_one(block):
            return
        for row, position in enumerate(block.positions.tolist()):
            source = self._blocks[position >> 16]
            at = position & 0xFFFF
            same = bool((block.decision_keys[row] == source.decision_keys[at]).all())
            require(same, "a row holds another decision", position)
            mine, theirs = block.columns.rows(row, row + 1), source.columns.rows(at, at + 1)
            if not np.isfinite(theirs.features.context).all():
                continue  # unsound: quarantined or a duplicate, and its features were replaced by harmless ones
            require(_same_columns(mine, theirs), "a row's columns are not those of its decision", position)

    def _is_cut_from_one(self, block: TransitionBlock) -> bool:
        """Whether it is a piece of one block of the journal, bit for bit: most are, and one look will do."""
        first = int(block.positions[0])
        source, at = self._blocks[first >> 16], first & 0xFFFF
        if int(block.positions[-1]) != first + len(block) - 1:
            return False
        theirs = self._cuts.get((first, len(block)))
        if theirs is None:
            columns = source.columns if len(source) == len(block) else source.columns.rows(at, at + len(block))
            theirs = _bits(source.decision_keys[at : at + len(block)], columns)
            self._cuts[first, len(block)] = theirs
        return _bits(block.decision_keys, block.columns) == theirs

    def check_progress(self, said: Progress) -> None:
        """Counts, T and coverage are true of the range of the journal that it names."""
        true = self.at[said.journal_offset]
        require(said.time_ms == true.time_ms, "Progress names another T", (said.time_ms, true.time_ms))
        counts = (said.decision_counts, said.outcome_counts)
        require(counts == (true.decisions, true.outcomes), "Progress counts wrongly", (counts, true))
        hwm = {chain.fingerprint: chain.hwm for chain in said.chains}
        covered = all(hwm.get(fingerprint, -1) >= last for fingerprint, last in true.lasts.items())
        require(covered, "Progress speaks of rows that nobody has", said.journal_offset)
        self.check_conservation(said)

    def check_conservation(self, said: Progress) -> None:
        """Rule 17: both identities, by counting the journal's rows."""
        read = sum(len(block) for offset, block in self._blocks.items() if offset < said.journal_offset)
        require(sum(said.decision_counts.values()) == read, "decisions are not conserved", said.decision_counts)


class OwnTruth(Truth):
    """One partition as one undisturbed join of the same kind has it: for rules that are wrong but must agree."""

    join: type[JoinPartition] = JoinPartition

    def _find(self, world: World, partition: int, limits: tuple[int, int]) -> None:
        join = self.join(partition, TaskTable(world.tasks), limits=JoinLimits(*limits))
        for offset, (time_ms, record) in enumerate(world.journals[partition]):
            join.fold(offset, time_ms, record)
            for block in join.emit():
                self.rows.setdefault(block.fingerprint, []).extend(rows_of(block, 0))
            if isinstance(record, Tick):
                lasts = {fingerprint: rows[-1].position for fingerprint, rows in self.rows.items()}
                self.at[offset + 1] = At(join.stats["decisions"], join.stats["outcomes"], join.time_ms, lasts)


def _as_float32(row: Row) -> Row:
    return replace(row, rewards=tuple(np.array(row.rewards, np.float32).tolist()))


def _same_columns(mine: Any, theirs: Any) -> bool:
    return mine.catalogue == theirs.catalogue and all(map(np.array_equal, _compared(mine), _compared(theirs)))


def _compared(columns: Any) -> tuple[Any, ...]:
    features = columns.features
    return (
        features.context, features.actions, features.action_keys, features.num_candidates, columns.chosen,
        columns.propensities, columns.reasons,
    )  # fmt: skip


def _bits(decision_keys: Any, columns: Any) -> tuple[Any, ...]:
    arrays = (decision_keys, *_compared(columns))
    return columns.catalogue, *[(array.shape, array.dtype, array.tobytes()) for array in arrays]


def rows_of(block: TransitionBlock, start: int) -> list[Row]:
    """Rows from `start` on, in the words of the brute-force join."""
    columns = (
        block.positions, block.closed_at_ms, block.buckets, block.flags, block.rewards, block.num_outcomes,
        block.snapshot_versions,
    )  # fmt: skip
    return [
        Row(position, closed, DecisionBucket(bucket).label, flags, tuple(rewards), outcomes, version)
        for position, closed, bucket, flags, rewards, outcomes, version in zip(
            *(column[start:].tolist() for column in columns), strict=True
        )
    ]


@dataclass
class ReadThrough:
    """What a reader of a whole transitions partition finds."""

    rows: dict[bytes, list[Row]]
    alarms: list[tuple[str, int]]
    """(hole or fork, offset)."""
    newest: Progress | None
    wrong: list[Wrong]
    """Broken promises, in order; what was lost or taken twice is told before them."""


def read_through(records: Sequence[Any], truth: Truth) -> ReadThrough:
    """From the first record on, by the reader rule; holes and forks must be exactly those that are there."""
    reader, found = ChainReader(), ReadThrough({}, [], None, [])
    naive = NaiveReader(truth)
    for offset, record in enumerate(records):
        try:
            if isinstance(record, Progress):
                _count(reader, record, found)
                truth.check_progress(record)
            else:
                name = _judge(reader, record, offset, found)
                require(name == naive.verdict(record), "the reader rule misjudges a block", (offset, name))
                truth.check_block(record)
        except Wrong as wrong:
            found.wrong.append(wrong)
    return found


def _count(reader: ChainReader, said: Progress, found: ReadThrough) -> None:
    newest = found.newest
    if reader.covers(said) and (newest is None or said.journal_offset > newest.journal_offset):
        found.newest = said


def _judge(reader: ChainReader, block: TransitionBlock, offset: int, found: ReadThrough) -> str:
    verdict = reader.offer(block)
    name = type(verdict).__name__.lower()
    if isinstance(verdict, Hole | Fork):
        found.alarms.append((name, offset))
    elif isinstance(verdict, Accepted) and verdict.start < len(block):
        found.rows.setdefault(block.fingerprint, []).extend(rows_of(block, verdict.start))
    return name


class NaiveReader:
    """Holes and forks told from the truth: who knows every row can see what is missing and what never was."""

    def __init__(self, truth: Truth) -> None:
        self._true = {fingerprint: [row.position for row in rows] for fingerprint, rows in truth.rows.items()}
        self._next: dict[bytes, int] = {}
        """Rows accepted per chain: always a prefix of the true ones."""

    def verdict(self, block: TransitionBlock) -> str:
        """What a reader must say of `block`."""
        true = self._true.get(block.fingerprint, [])
        taken = self._next.get(block.fingerprint, 0)
        num_before = sum(position <= block.prev for position in true)
        if num_before > taken:
            return "hole"
        mine = block.positions.tolist()
        if true[num_before : num_before + len(mine)] != mine:
            return "fork"
        self._next[block.fingerprint] = max(taken, num_before + len(mine))
        return "accepted"

    def last(self, fingerprint: bytes) -> int:
        """The last row that a reader has accepted of a chain of which it has accepted some."""
        return self._true[fingerprint][self._next[fingerprint] - 1]
