"""The join over again, slowly: what every decision of a stretch of journal should have become.

Owns a second reading of `join.md`, written for sight and not for speed: the whole stretch is in memory, each question
is asked of all records at once, and nothing is shared with `streams.join`. Pure: entries in, verdicts out.

Simplification: a decision that was closed early because too many were open is judged as if it had not been; the caller
leaves rows flagged `cut`, and sums that hold some, alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemas.blocks import I32, PROPENSITY_ONE, DecisionBlock, OutcomeBlock
from schemas.keys import action_key
from schemas.records import OUTCOME_BUCKETS, DecisionBucket
from schemas.task import DEDUPE_MS_MIN, Reward, Task, TaskTable

Key = tuple[int, int]
Bools = npt.NDArray[np.bool_]
NO_KEY: Key = (0, 0)
ROW_BITS = 16
END = 2**62
"""Beyond every position."""


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one closed decision must look like in the transitions."""

    position: int
    fingerprint: bytes
    key: Key
    closed_at_ms: int
    snapshot_version: int
    bucket: int
    rewards: tuple[float, ...]
    num_outcomes: int


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A stretch of one journal partition, judged."""

    time_ms: int
    """T at its end."""
    verdicts: dict[int, Verdict]
    """Closed decisions by position."""
    decision_counts: dict[str, int]
    outcome_counts: dict[str, int]
    unknown_fingerprints: frozenset[bytes]


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
        return frozenset(task.name for task in self._tasks.values() if _window(task, type_name) is not None)

    def waits(self, outcome: Happened, position: int, now: int) -> bool:
        """Whether an outcome that nothing has used can still find a decision at `position`, at T = `now`."""
        for risen, time_ms, before in self._risen:
            if outcome.position < risen <= position and time_ms > outcome.time_ms + before:
                return False
        return now <= outcome.time_ms + self.backward_ms


@dataclass(frozen=True, slots=True)
class Judged:
    """Every record of a stretch with what became of it."""

    time_ms: int
    """T at its end."""
    decided: list[Decided]
    happened: list[Happened]
    """Outcomes that are no copies, each with its bucket."""
    num_copies: int
    unknown_fingerprints: frozenset[bytes]


def recompute(
    entries: Iterable[tuple[int, int, object]],
    tasks: TaskTable,
    from_start: bool = True,
) -> Recomputed:
    """Judge the journal's `entries`: (offset, append time in ms, decoded block) in order, all of one partition.

    Unless they begin `from_start` of the journal, every known definition counts as in force at their beginning.
    """
    judged = judge_records(entries, tasks, from_start)
    decided, now = judged.decided, judged.time_ms
    return Recomputed(
        time_ms=now,
        verdicts={each.position: _verdict(each) for each in decided if each.closed_at_ms < now},
        decision_counts=_count_decisions(decided, now),
        outcome_counts={
            **dict.fromkeys(OUTCOME_BUCKETS, 0),
            **Counter(each.bucket for each in judged.happened),
            "copies": judged.num_copies,
        },
        unknown_fingerprints=judged.unknown_fingerprints,
    )


def judge_records(entries: Iterable[tuple[int, int, object]], tasks: TaskTable, from_start: bool = True) -> Judged:
    """As `recompute`, record by record instead of in sums: which outcome counted where, which came late."""
    keys = {task.fingerprint: [action_key(each) for each in task.actions] for task in tasks.tasks}
    decided: list[Decided] = []
    happened: list[Happened] = []
    unknown: set[bytes] = set()
    source_marks: dict[tuple[str, int], int] = {}
    in_force = InForce(() if from_start else tasks.tasks)
    num_copies, now = 0, -(2**62)
    for offset, time_ms, block in entries:
        now = max(now, time_ms)
        if isinstance(block, DecisionBlock):
            task = tasks.get(block.fingerprint)
            if task is None:
                unknown.add(block.fingerprint)
                continue
            in_force.note(task, offset << ROW_BITS, now)
            catalogue = keys.get(block.fingerprint, ())
            decided += _decisions(block, offset, now, task, catalogue, in_force.horizon_at(now))
        elif isinstance(block, OutcomeBlock):
            fresh, copies = _outcomes(block, offset, now, source_marks, in_force)
            happened += fresh
            num_copies += copies
    _find_repetitions(decided)
    _settle(decided, happened, in_force, now)
    return Judged(now, decided, happened, num_copies, frozenset(unknown))


def _decisions(
    block: DecisionBlock, offset: int, now: int, task: Task, catalogue: Sequence[int], horizon_ms: int
) -> list[Decided]:
    """Rows of a block, one by one."""
    columns = block.columns
    counts = columns.features.num_candidates.tolist()
    own_keys = columns.features.action_keys.tolist()
    chosen_NS = columns.chosen.tolist()
    sound = _sound_rows(block)
    rows, first = [], 0
    for row, count in enumerate(counts):
        offered = catalogue if block.columns.catalogue else own_keys[first : first + count]
        chosen = tuple(offered[index] if 0 <= index < len(offered) else 0 for index in chosen_NS[row])
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
                sound=sound[row],
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


def _outcomes(
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


def _find_repetitions(decided: Sequence[Decided]) -> None:
    """Rule 1: another record of the same task and id within D before, whatever became of it."""
    last: dict[tuple[str, Key], Decided] = {}
    for each in decided:
        name = (each.task.name, each.key)
        before = last.get(name)
        if before is not None and each.time_ms - before.time_ms <= each.horizon_ms:
            each.head = before.head or before
            same = (each.chosen, each.values) == (each.head.chosen, each.head.values)
            if each.time_ms <= each.head.closed_at_ms and not same:
                each.head.disputed = True
        last[name] = each


def _settle(decided: Sequence[Decided], happened: Sequence[Happened], in_force: InForce, now: int) -> None:
    """Rules 2, 3 and 5 for every outcome."""
    by_key: dict[Key, list[Decided]] = defaultdict(list)
    by_subject: dict[int, list[Decided]] = defaultdict(list)
    for each in decided:
        by_key[each.key].append(each)
        by_subject[each.subject].append(each)
    seen: dict[Key, int] = {}
    for outcome in happened:
        before = seen.get(outcome.key)
        seen[outcome.key] = outcome.time_ms
        if before is not None and outcome.time_ms - before <= outcome.horizon_ms:
            outcome.bucket = "duplicate"
            continue
        named = outcome.decision != NO_KEY
        near = by_key.get(outcome.decision, []) if named else by_subject.get(outcome.subject, [])
        eligible = [each for each in near if each.head is None and _window(each.task, outcome.type) is not None]
        found = _settle_for(outcome, eligible, named, in_force)
        if "used" in found:
            outcome.bucket = "used"
        elif in_force.waits(outcome, END, now):
            outcome.bucket = "pending"
        elif "conflict" in found:
            outcome.bucket = "conflict"
        else:
            outcome.bucket = "late" if _is_late(outcome, near, named) else "orphan"


def _settle_for(outcome: Happened, eligible: Sequence[Decided], named: bool, in_force: InForce) -> set[str]:
    """What the tasks make of an outcome: used, conflict. Open decisions take it at once; for the other tasks it waits,
    unless all that count it then have had it."""
    mine = [each for each in eligible if named or _slots(outcome, each)]
    before: dict[str, Decided] = {}
    after: dict[str, Decided] = {}
    for each in sorted(mine, key=_position):
        if each.position > outcome.position:
            waited = each.time_ms <= outcome.time_ms + each.task.reward.backward_ms
            if waited and in_force.waits(outcome, each.position, each.time_ms):
                after.setdefault(each.task.name, each)
        elif outcome.time_ms <= each.time_ms + (_window(each.task, outcome.type) or 0):
            before[each.task.name] = each
    found = {_take(outcome, match) for match in before.values()}
    if outcome.counting and not ("used" in found and before.keys() == outcome.counting):
        found |= {_take(outcome, match) for name, match in after.items() if name not in before}
    return found


def _take(outcome: Happened, match: Decided) -> str:
    """The outcome has found its decision in one task."""
    slots = _slots(outcome, match)
    if outcome.subject != match.subject:
        return "conflict"
    if not slots:
        match.disputed = True
        return "conflict"
    match.used.append((outcome, slots))
    return "used"


def _slots(outcome: Happened, decision: Decided) -> tuple[int, ...]:
    """Slots that the outcome is about: all when it says nothing, none when it names what was not chosen."""
    named = [slot for slot in range(len(decision.chosen)) if outcome.slot in (-1, slot)]
    if outcome.action:
        return tuple([slot for slot in named if decision.chosen[slot] == outcome.action][:1])
    return tuple(named)


def _is_late(outcome: Happened, near: Sequence[Decided], named: bool) -> bool:
    """A decision it could be about stands within 2·W before it: the latest record of its id, any of its subject."""
    before = [each for each in near if each.position < outcome.position]
    if named:
        before = list({each.task.name: each for each in before}.values())
    return any(
        outcome.time_ms - each.time_ms <= 2 * each.task.reward.window_ms
        and _window(each.task, outcome.type) is not None
        for each in before
    )


def _position(each: Decided) -> int:
    return each.position


def _window(task: Task, type_name: str) -> int | None:
    """W(type) of a task, None when it does not count the type."""
    return next((each.window_ms for each in task.reward.types if each.name == type_name), None)


def bucket_of(each: Decided) -> DecisionBucket:
    """Rule 5, in its precedence."""
    if each.head is not None:
        return DecisionBucket.DUPLICATE
    if not each.sound:
        return DecisionBucket.QUARANTINED
    if each.disputed:
        return DecisionBucket.CONFLICT
    return DecisionBucket.JOINED if each.used else DecisionBucket.DEFAULTED


def _count_decisions(decided: Sequence[Decided], now: int) -> dict[str, int]:
    counts = {bucket.label: 0 for bucket in DecisionBucket} | {"open": 0}
    for each in decided:
        counts[bucket_of(each).label if each.closed_at_ms < now else "open"] += 1
    return counts


def _verdict(each: Decided) -> Verdict:
    bucket = bucket_of(each)
    return Verdict(
        position=each.position,
        fingerprint=each.task.fingerprint,
        key=each.key,
        closed_at_ms=each.closed_at_ms,
        snapshot_version=each.snapshot_version,
        bucket=int(bucket),
        rewards=_rewards(each),
        num_outcomes=len(each.used),
    )


def _rewards(each: Decided) -> tuple[float, ...]:
    """Rule 4 for every slot of one decision."""
    rewards = []
    for slot in range(len(each.chosen)):
        values: dict[str, list[float]] = defaultdict(list)
        for outcome, slots in sorted(each.used, key=lambda used: used[0].position):
            if slot in slots:
                values[outcome.type].append(outcome.value)
        rewards.append(reward_of(each.task.reward, values))
    return tuple(rewards)


def reward_of(reward: Reward, values: Mapping[str, Sequence[float]]) -> float:
    """Rule 4: aggregate per type, weighted sum, clipped; the default when nothing came.

    `values` holds the outcomes' values per type, in log order.
    """
    counted = [kind for kind in reward.types if values.get(kind.name)]
    if not counted:
        return reward.default
    total = sum(kind.weight * _aggregate(kind.aggregate, values[kind.name]) for kind in counted)
    return min(max(total, reward.min), reward.max)


def _aggregate(name: str, values: Sequence[float]) -> float:
    match name:
        case "sum":
            return sum(values)
        case "first":
            return values[0]
        case "last":
            return values[-1]
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "mean":
            return sum(values) / len(values)
        case _:
            return float(len(values))
