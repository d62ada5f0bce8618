"""The join over again, slowly: what every decision of a stretch of journal should have become.

Owns a second reading of `join.md`, written for sight and not for speed: the whole stretch is in memory, each question
is asked of all records at once, and nothing is shared with `streams.join`. Pure: entries in, verdicts out.

Simplification: a decision that was closed early because too many were open is judged as if it had not been; the caller
leaves rows flagged `cut`, and sums that hold some, alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deploy.audit_records import ROW_BITS, Decided, Happened, InForce, Key, decided_of, happened_of, window_of
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.keys import action_key
from schemas.limits import SUBJECT_DEPTH_MAX
from schemas.records import OUTCOME_BUCKETS, DecisionBucket
from schemas.task import Reward, TaskTable

NO_KEY: Key = (0, 0)
END = 2**62
"""Beyond every position."""


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
            decided += decided_of(block, offset, now, task, catalogue, in_force.horizon_at(now))
        elif isinstance(block, OutcomeBlock):
            fresh, copies = happened_of(block, offset, now, source_marks, in_force)
            happened += fresh
            num_copies += copies
    _find_repetitions(decided)
    _settle(decided, happened, in_force, now)
    return Judged(now, decided, happened, num_copies, frozenset(unknown))


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
        near = by_key.get(outcome.decision, []) if named else _latest(by_subject.get(outcome.subject, []), outcome)
        eligible = [each for each in near if each.head is None and window_of(each.task, outcome.type) is not None]
        found = _settle_for(outcome, eligible, named, in_force)
        if "used" in found:
            outcome.bucket = "used"
        elif in_force.waits(outcome, END, now):
            outcome.bucket = "pending"
        elif "conflict" in found:
            outcome.bucket = "conflict"
        else:
            outcome.bucket = "late" if _is_late(outcome, near, named) else "orphan"


def _latest(of_subject: list[Decided], outcome: Happened) -> list[Decided]:
    """What an outcome that names no decision looks at: the last `SUBJECT_DEPTH_MAX` before it (decision 8), and what
    comes after it."""
    before = bisect_left(of_subject, outcome.position, key=_position)
    return of_subject[max(0, before - SUBJECT_DEPTH_MAX) :]


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
        elif outcome.time_ms <= each.time_ms + (window_of(each.task, outcome.type) or 0):
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
        and window_of(each.task, outcome.type) is not None
        for each in before
    )


def _position(each: Decided) -> int:
    return each.position


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
