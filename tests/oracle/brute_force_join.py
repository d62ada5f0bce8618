"""The join of join.md, read from the page and written for eyes: one pass over a whole journal partition, no restarts,
no indexes, no arrays. Slow and obviously right; shares no code with `streams`.

    journal: [(offset, append_time_ms, record)] with record a DecisionBlock, OutcomeBlock, Tick or anything else
    definitions: {fingerprint: Definition}

With `by_log` a definition counts from the first record that refers to it (join.md, Words); without, from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from schemas.blocks import FLAG_CLIPPED, FLAG_CUT, DecisionBlock, OutcomeBlock, Tick


@dataclass(frozen=True)
class Counted:
    """One outcome type of a definition."""

    name: str
    aggregate: str
    weight: float
    window: int


@dataclass(frozen=True)
class Definition:
    """What the join needs of a task."""

    fingerprint: bytes
    name: str
    window: int
    backward: int
    default: float
    smallest: float
    largest: float
    types: tuple[Counted, ...]
    catalogue: tuple[int, ...] = ()
    """Action keys of the declared catalogue."""

    def counts(self, kind: str) -> Counted | None:
        return next((each for each in self.types if each.name == kind), None)


@dataclass(eq=False)
class Decision:
    position: int
    time: int
    definition: Definition
    key: tuple[int, int]
    subject: int
    actions: tuple[int, ...]
    values: tuple[float, ...]
    sound: bool
    version: int
    duplicate: bool = False
    conflict: bool = False
    cut: bool = False
    closed: bool = False
    outcomes: list[tuple[str, float, tuple[int, ...]]] = field(default_factory=list)


@dataclass(eq=False)
class Outcome:
    place: tuple[int, int]
    time: int
    kind: str
    key: tuple[int, int]
    subject: int
    decision: tuple[int, int]
    action: int
    slot: int
    value: float
    bucket: str = "pending"
    fallback: str = "orphan"
    gone: bool = False
    countable: bool = True
    """Some definition in force counted its type when it came."""
    done: set[str] = field(default_factory=set)
    """Task names that have had it."""


@dataclass(frozen=True)
class Row:
    """What must stand in the transitions."""

    position: int
    closed_at: int
    bucket: str
    flags: int
    rewards: tuple[float, ...]
    num_outcomes: int
    version: int


class BruteForceJoin:
    """`rows[fingerprint]` in order and `counts` after every fold."""

    def __init__(
        self,
        definitions: dict[bytes, Definition],
        open_max: int = 10**9,
        pending_max: int = 10**9,
        by_log: bool = False,
    ) -> None:
        self.definitions = definitions
        self.in_force = {} if by_log else dict(definitions)
        self.floor = -(2**62)
        """Log time before which nothing is remembered: a horizon that grows does not bring back what was let go."""
        self.open_max, self.pending_max = open_max, pending_max
        self.time = -(2**62)
        self.decisions: list[Decision] = []
        self.outcomes: list[Outcome] = []
        self.sources: dict[tuple[str, int], int] = {}
        self.copies = 0
        self.rows: dict[bytes, list[Row]] = {}

    @property
    def horizon(self) -> int:
        """D, no further back than what is remembered."""
        longest = max(600_000, *(each.window for each in self.in_force.values()), 0)
        return min(longest, self.time - self.floor)

    @property
    def backward(self) -> int:
        return max((each.backward for each in self.in_force.values()), default=0)

    def fold(self, offset: int, append_time: int, record: Any) -> None:
        self.time = max(self.time, append_time)
        for outcome in self.outcomes:
            if outcome.time + self.backward < self.time:
                self.settle(outcome)
        for decision in self.decisions:
            if not decision.closed and self.time > decision.time + decision.definition.window:
                self.close(decision)
        if isinstance(record, DecisionBlock):
            if record.fingerprint not in self.in_force:
                self.floor = self.time - self.horizon
                self.in_force[record.fingerprint] = self.definitions[record.fingerprint]
            for row in range(len(record)):
                self.decide(offset, record, row)
        elif isinstance(record, OutcomeBlock):
            for row in range(len(record)):
                self.tell(offset, record, row)
        else:
            assert isinstance(record, Tick) or record is not None
        still_open = [each for each in self.decisions if not each.closed]
        for decision in still_open[: max(0, len(still_open) - self.open_max)]:
            decision.cut = True
            self.close(decision)
        waiting = [each for each in self.outcomes if not each.gone]
        for outcome in waiting[: max(0, len(waiting) - self.pending_max)]:
            self.settle(outcome)

    # rule 1

    def decide(self, offset: int, block: DecisionBlock, row: int) -> None:
        definition = self.definitions[block.fingerprint]
        columns = block.columns
        first = int(columns.features.num_candidates[:row].sum())
        keys = definition.catalogue or tuple(columns.features.action_keys[first:].tolist())
        size = int(columns.features.num_candidates[row])
        actions = tuple(keys[each] if 0 <= each < size else 0 for each in columns.chosen[row].tolist())
        decision = Decision(
            position=(offset << 16) | row,
            time=self.time,
            definition=definition,
            key=tuple(block.decision_keys[row].tolist()),
            subject=int(block.subject_keys[row]),
            actions=actions,
            values=tuple(columns.values[row].tolist()) if len(columns.values) else (),
            sound=self.is_sound(block, row),
            version=block.snapshot_version,
        )
        same = [each for each in self.decisions if each.key == decision.key and each.definition.name == definition.name]
        decision.duplicate = bool(same) and decision.time - same[-1].time <= self.horizon
        if decision.duplicate:
            original = next(each for each in reversed(same) if not each.duplicate)
            if not original.closed and (original.actions, original.values) != (decision.actions, decision.values):
                original.conflict = True
        self.decisions.append(decision)
        if not decision.duplicate:
            for outcome in self.outcomes:
                if not outcome.gone and decision.time <= outcome.time + definition.backward:
                    self.match(outcome, decision)

    @staticmethod
    def is_sound(block: DecisionBlock, row: int) -> bool:
        """Enough of the bounds for the rows that the tests make."""
        columns = block.columns
        first = int(columns.features.num_candidates[:row].sum())
        size = int(columns.features.num_candidates[row])
        slots = columns.chosen.shape[1]
        good = all(math.isfinite(each) for each in columns.features.context[row].tolist())
        for slot in range(slots):
            start = first * slots + slot * size
            given = columns.propensities[start : start + size].tolist()
            chosen = int(columns.chosen[row, slot])
            good = good and sum(given) == 1 << 24 and 0 <= chosen < size and given[chosen] > 0
        return good

    # rules 2 and 3

    def tell(self, offset: int, block: OutcomeBlock, row: int) -> None:
        source = (block.source_topic, block.source_partition)
        if int(block.source_offsets[row]) <= self.sources.get(source, -1):
            self.copies += 1
            return
        self.sources[source] = int(block.source_offsets[row])
        outcome = Outcome(
            place=(offset, row),
            time=self.time,
            kind=block.type_names[int(block.types[row])],
            key=tuple(block.outcome_keys[row].tolist()),
            subject=int(block.subject_keys[row]),
            decision=tuple(block.decision_keys[row].tolist()),
            action=int(block.action_keys[row]),
            slot=int(block.slots[row]),
            value=float(block.values[row]),
        )
        counting = {each.name for each in self.in_force.values() if each.counts(outcome.kind)}
        outcome.countable = bool(counting)
        before = [each for each in self.outcomes if each.key == outcome.key]
        self.outcomes.append(outcome)
        if before and outcome.time - before[-1].time <= self.horizon:
            outcome.bucket, outcome.gone = "duplicate", True
            return
        outcome.fallback = "late" if self.is_late(outcome) else "orphan"
        for decision in reversed(self.decisions):
            if not decision.duplicate and not decision.closed:
                self.match(outcome, decision)
        outcome.gone = outcome.bucket == "used" and outcome.done == counting  # nothing is left that could use it

    def is_late(self, outcome: Outcome) -> bool:
        """A decision record it could be about stands within 2 W before it: the latest of the id, any of the subject."""
        names = set()
        for decision in reversed(self.decisions):
            named = decision.key == outcome.decision
            if outcome.decision != (0, 0) and (not named or decision.definition.name in names):
                continue
            if outcome.decision == (0, 0) and decision.subject != outcome.subject:
                continue
            names.add(decision.definition.name)
            within = outcome.time <= decision.time + 2 * decision.definition.window
            if within and decision.definition.counts(outcome.kind):
                return True
        return False

    def match(self, outcome: Outcome, decision: Decision) -> None:
        """Use the outcome for the decision if rule 2 says so."""
        definition = decision.definition
        counted = definition.counts(outcome.kind)
        if (
            counted is None
            or not outcome.countable
            or definition.name in outcome.done
            or outcome.time > decision.time + counted.window
        ):
            return
        slots = self.slots(outcome, decision)
        if outcome.decision == (0, 0):
            if outcome.subject != decision.subject or not slots:
                return
        elif outcome.decision != decision.key:
            return
        outcome.done.add(definition.name)
        if outcome.subject != decision.subject or not slots:
            outcome.fallback = "conflict"
            if outcome.subject == decision.subject:
                decision.conflict = True
            return
        decision.outcomes.append((outcome.kind, outcome.value, slots))
        outcome.bucket = "used"

    @staticmethod
    def slots(outcome: Outcome, decision: Decision) -> tuple[int, ...]:
        """Slots that the outcome names; all when it names none; () when it names what was not chosen."""
        every = range(len(decision.actions))
        named = [each for each in every if outcome.slot in (-1, each)]
        if outcome.action:
            return tuple([each for each in named if decision.actions[each] == outcome.action][:1])
        return tuple(named)

    def settle(self, outcome: Outcome) -> None:
        if not outcome.gone and outcome.bucket == "pending":
            outcome.bucket = outcome.fallback
        outcome.gone = True

    # rules 4 and 5

    def close(self, decision: Decision) -> None:
        decision.closed = True
        definition = decision.definition
        rewards, flags = [], FLAG_CUT if decision.cut else 0
        for slot in range(len(decision.actions)):
            reward, clipped = self.reward(decision, slot)
            rewards.append(reward)
            flags |= clipped
        row = Row(
            position=decision.position,
            closed_at=decision.time + definition.window,
            bucket=self.bucket(decision),
            flags=flags,
            rewards=tuple(rewards),
            num_outcomes=len(decision.outcomes),
            version=decision.version,
        )
        self.rows.setdefault(definition.fingerprint, []).append(row)

    @staticmethod
    def bucket(decision: Decision) -> str:
        if decision.duplicate:
            return "duplicate"
        if not decision.sound:
            return "quarantined"
        if decision.conflict:
            return "conflict"
        return "joined" if decision.outcomes else "defaulted"

    @staticmethod
    def reward(decision: Decision, slot: int) -> tuple[float, int]:
        definition = decision.definition
        total, found = 0.0, False
        for counted in definition.types:
            came = [value for kind, value, slots in decision.outcomes if kind == counted.name and slot in slots]
            if not came:
                continue
            found = True
            aggregate = {
                "sum": lambda came: sum(came), "first": lambda came: came[0], "last": lambda came: came[-1],
                "min": min, "max": max, "mean": lambda came: sum(came) / len(came), "count": len,
            }[counted.aggregate](came)  # fmt: skip
            total += counted.weight * aggregate
        if not found:
            return definition.default, 0
        clipped = min(max(total, definition.smallest), definition.largest)
        return clipped, 0 if clipped == total else FLAG_CLIPPED

    # rule 17

    @property
    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        decisions = dict.fromkeys(("joined", "defaulted", "duplicate", "conflict", "quarantined", "open"), 0)
        for rows in self.rows.values():
            for row in rows:
                decisions[row.bucket] += 1
        decisions["open"] = sum(not each.closed for each in self.decisions)
        outcomes = dict.fromkeys(("used", "late", "duplicate", "orphan", "conflict", "pending"), 0)
        for outcome in self.outcomes:
            outcomes[outcome.bucket] += 1
        outcomes["copies"] = self.copies
        return decisions, outcomes
