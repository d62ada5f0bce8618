"""What the audit makes of journal records: one object per decision and outcome, and the definitions in force.

Owns the reading of blocks, row by row; `deploy.audit_rules` judges what is read. Shares nothing with `streams.join`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemas.arrays import I32
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.decision_columns import PROPENSITY_ONE
from schemas.task import DEDUPE_MS_MIN, Task
from schemas.task_shape import Shape

Key = tuple[int, int]
Bools = npt.NDArray[np.bool_]
ROW_BITS = 16


@dataclass(slots=True)
class Decided:
    """One decision record of the journal."""

    position: int
    task: Task
    key: Key
    subject: int
    snapshot_version: int
    time_ms: int
    """T at the record."""
    chosen: tuple[int, ...]
    """Key of the chosen action of each slot, 0 for none."""
    values: tuple[float, ...]
    """Drawn value of each slot of a continuous action."""
    sound: bool
    horizon_ms: int
    """How far back a record may be a duplicate of another, at this one."""
    head: Decided | None = None
    """The earlier record that this one repeats."""
    disputed: bool = False
    """A repetition or an outcome names another action."""
    used: list[tuple[Happened, tuple[int, ...]]] = field(default_factory=list)
    """Outcomes that count for it, in log order, with the slots they are about."""

    @property
    def closed_at_ms(self) -> int:
        """T(d) + W."""
        return self.time_ms + self.task.reward.window_ms


@dataclass(slots=True)
class Happened:
    """One outcome record of the journal that is no copy."""

    position: int
    time_ms: int
    key: Key
    subject: int
    decision: Key
    action: int
    slot: int
    type: str
    value: float
    horizon_ms: int
    """How far back a record may be a duplicate of another, at this one."""
    counting: frozenset[str]
    """Task names with a definition in force that counts its type."""
    bucket: str = ""


class InForce:
    """Definitions in force: each from the first record of the partition that refers to it."""

    def __init__(self, known: Iterable[Task]) -> None:
        """`known` are in force from the start: those of a journal whose beginning is gone."""
        self._tasks = {task.fingerprint: task for task in known}
        self._floor_ms = -(2**62)
        """T before which nothing is remembered: a longer horizon does not bring back what was let go."""
        self._risen: list[tuple[int, int, int]] = []
        """(position, T, bwmax until then) where bwmax rose."""

    def note(self, task: Task, position: int, now: int) -> None:
        """A record under `task` stands at `position`, at T = `now`."""
        if task.fingerprint in self._tasks:
            return
        self._floor_ms = max(self._floor_ms, now - self.horizon_at(now))
        before = self.backward_ms
        self._tasks[task.fingerprint] = task
        if self.backward_ms > before:
            self._risen.append((position, now, before))

    @property
    def backward_ms(self) -> int:
        """bwmax."""
        return max((task.reward.backward_ms for task in self._tasks.values()), default=0)

    def horizon_at(self, now: int) -> int:
        """How far back a record at T = `now` may be a duplicate of another: D, as far as anything is remembered."""
        longest = max((task.reward.window_ms for task in self._tasks.values()), default=0)
        return min(max(DEDUPE_MS_MIN, longest), now - self._floor_ms)

    def counting(self, type_name: str) -> frozenset[str]:
        """Task names with a definition in force that counts the type."""
        return frozenset(task.name for task in self._tasks.values() if window_of(task, type_name) is not None)

    def waits(self, outcome: Happened, position: int, now: int) -> bool:
        """Whether an outcome that nothing has used can still find a decision at `position`, at T = `now`."""
        for risen, time_ms, before in self._risen:
            if outcome.position < risen <= position and time_ms > outcome.time_ms + before:
                return False
        return now <= outcome.time_ms + self.backward_ms


def window_of(task: Task, type_name: str) -> int | None:
    """W(type) of a task, None when it does not count the type."""
    return next((each.window_ms for each in task.reward.types if each.name == type_name), None)


def decided_of(
    block: DecisionBlock, offset: int, now: int, task: Task, catalogue: Sequence[int], horizon_ms: int
) -> list[Decided]:
    """Rows of a block, one by one."""
    columns = block.columns
    counts = columns.features.num_candidates.tolist()
    own_keys = columns.features.action_keys.tolist()
    chosen_NS = columns.chosen.tolist()
    fits = Shape.of(task).fits(columns)  # a block that contradicts its task holds choices of nothing
    sound = _sound_rows(block) if fits else [False] * len(counts)
    rows, first = [], 0
    for row, count in enumerate(counts):
        offered = catalogue if block.columns.catalogue else own_keys[first : first + count]
        chosen = tuple(offered[index] if 0 <= index < len(offered) else 0 for index in chosen_NS[row])
        if not fits:
            chosen = (0,) * task.num_slots
        key = (int(block.decision_keys[row, 0]), int(block.decision_keys[row, 1]))
        rows.append(
            Decided(
                position=(offset << ROW_BITS) | row,
                task=task,
                key=key,
                subject=int(block.subject_keys[row]),
                snapshot_version=block.snapshot_version,
                time_ms=now,
                chosen=chosen,
                values=tuple(columns.values[row].tolist()) if len(columns.values) else (),
                sound=sound[row] and (not catalogue or count == len(catalogue)),
                horizon_ms=horizon_ms,
            )
        )
        first += count
    return rows


def _sound_rows(block: DecisionBlock) -> list[bool]:
    """Whether each row can be learnt from: finite numbers, choices on offer, propensities that sum to one."""
    columns, features = block.columns, block.columns.features
    counts = features.num_candidates
    slots = columns.num_slots
    rows: Bools = np.isfinite(features.context).all(axis=1).reshape(len(block))
    rows &= _all_in_row(np.isfinite(features.context_token_values), features.context_token_counts, len(block))
    if len(features.actions):
        candidates: Bools = np.isfinite(features.actions).all(axis=1).reshape(len(features.actions))
        rows &= _all_in_row(candidates, counts, len(block))
    if len(features.action_token_counts):
        tokens = _all_in_row(
            np.isfinite(features.action_token_values), features.action_token_counts, len(features.action_token_counts)
        )
        rows &= _all_in_row(tokens, counts, len(block))
    ends = np.cumsum(counts.astype(np.int64) * slots)
    for row, end in enumerate(ends.tolist()):
        count = int(counts[row])
        each = columns.propensities[end - count * slots : end].reshape(slots, count).astype(np.int64)
        if (each < 0).any() or (each.sum(axis=1) != PROPENSITY_ONE).any():
            rows[row] = False
        for slot, index in enumerate(columns.chosen[row].tolist()):
            if index >= count or index < -1 or (index >= 0 and each[slot, index] <= 0):
                rows[row] = False
    result: list[bool] = rows.tolist()
    return result


def _all_in_row(ok: Bools, counts: I32, num_rows: int) -> Bools:
    """AND over the elements of each row of a ragged column; True for every row when the task has no such column."""
    if not len(counts):
        return np.ones(num_rows, bool)
    owner = np.repeat(np.arange(len(counts)), counts)
    bad: Bools = np.bincount(owner, weights=~ok, minlength=len(counts)) > 0
    return ~bad


def happened_of(
    block: OutcomeBlock, offset: int, now: int, marks: dict[tuple[str, int], int], in_force: InForce
) -> tuple[list[Happened], int]:
    """Rows of a block that are no copies (rule 3), and how many were."""
    source = (block.source_topic, block.source_partition)
    rows, copies = [], 0
    for row, source_offset in enumerate(block.source_offsets.tolist()):
        if source_offset <= marks.get(source, -1):
            copies += 1
            continue
        marks[source] = source_offset
        rows.append(
            Happened(
                position=(offset << ROW_BITS) | row,
                time_ms=now,
                key=(int(block.outcome_keys[row, 0]), int(block.outcome_keys[row, 1])),
                subject=int(block.subject_keys[row]),
                decision=(int(block.decision_keys[row, 0]), int(block.decision_keys[row, 1])),
                action=int(block.action_keys[row]),
                slot=int(block.slots[row]),
                type=block.type_names[int(block.types[row])],
                value=float(block.values[row]),
                horizon_ms=in_force.horizon_at(now),
                counting=in_force.counting(block.type_names[int(block.types[row])]),
            )
        )
    return rows, copies
