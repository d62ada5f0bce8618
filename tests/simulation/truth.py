"""What must come out of a world, by the brute-force join, and how the simulation's logs are held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schemas.blocks import DecisionBlock, Tick, TransitionBlock
from schemas.chain import Accepted, ChainReader, Fork, Hole
from schemas.records import DecisionBucket, Progress
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
    """One partition by the brute-force join."""

    def __init__(self, world: World, partition: int, limits: tuple[int, int]) -> None:
        journal = world.journals[partition]
        definitions = {task.fingerprint: definition_of(task) for task in world.tasks}
        brute = BruteForceJoin(definitions, *limits)
        self.at: dict[int, At] = {}
        self._blocks: dict[int, DecisionBlock] = {}
        for offset, (time_ms, record) in enumerate(journal):
            brute.fold(offset, time_ms, record)
            if isinstance(record, DecisionBlock):
                self._blocks[offset] = record
            elif isinstance(record, Tick):
                lasts = {fingerprint: rows[-1].position for fingerprint, rows in brute.rows.items()}
                self.at[offset + 1] = At(*brute.counts, brute.time, lasts)
        self.rows: dict[bytes, list[Row]] = {
            fingerprint: [replace(row, rewards=tuple(np.float32(row.rewards).tolist())) for row in rows]
            for fingerprint, rows in brute.rows.items()
        }
        self.num_decisions = sum(len(block) for block in self._blocks.values())

    def check_block(self, block: TransitionBlock) -> None:
        """The decision's columns stand in the transition as they stood in the journal."""
        for row, position in enumerate(block.positions.tolist()):
            source = self._blocks[position >> 16]
            at = position & 0xFFFF
            same = bool((block.decision_keys[row] == source.decision_keys[at]).all())
            require(same, "a row holds another decision", position)
            mine, theirs = block.columns.rows(row, row + 1), source.columns.rows(at, at + 1)
            if not np.isfinite(theirs.features.context).all():
                continue  # unsound: quarantined or a duplicate, and its features were replaced by harmless ones
            require(_same_columns(mine, theirs), "a row's columns are not those of its decision", position)

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


def _same_columns(mine: Any, theirs: Any) -> bool:
    features, given = mine.features, theirs.features
    pairs = [
        (features.context, given.context), (features.actions, given.actions), (mine.chosen, theirs.chosen),
        (features.action_keys, given.action_keys), (mine.propensities, theirs.propensities),
        (features.num_candidates, given.num_candidates), (mine.reasons, theirs.reasons),
    ]  # fmt: skip
    return mine.catalogue == theirs.catalogue and all(np.array_equal(a, b) for a, b in pairs)


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


def read_through(records: Sequence[Any], truth: Truth) -> ReadThrough:
    """From the first record on, by the reader rule; holes and forks must be exactly those that are there."""
    reader, found = ChainReader(), ReadThrough({}, [], None)
    judge = NaiveReader(truth)
    for offset, record in enumerate(records):
        if isinstance(record, Progress):
            truth.check_progress(record)
            newest = found.newest
            if reader.covers(record) and (newest is None or record.journal_offset > newest.journal_offset):
                found.newest = record
            continue
        verdict = reader.offer(record)
        name = type(verdict).__name__.lower()
        require(name == judge.verdict(record), "the reader rule misjudges a block", (offset, name))
        if isinstance(verdict, Hole | Fork):
            found.alarms.append((name, offset))
        elif isinstance(verdict, Accepted) and verdict.start < len(record):
            found.rows.setdefault(record.fingerprint, []).extend(rows_of(record, verdict.start))
            truth.check_block(record)
    return found


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
