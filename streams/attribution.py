"""Rule 2: which decision an outcome belongs to.

With a decision_id: in every task that has it and counts the type, the first record of that id. Without: in every task
that counts the type, the subject's latest decision that is not a duplicate, is within its window, and chose the action
if one is named. An open match wins at once; otherwise the outcome waits, and the first decision with
T(d) ≤ T(o) + bw that matches takes it. Times are T; equal T is not "before".

Three things can come of a match: the outcome is *used*; it names an action or slot that the decision did not choose
and makes it a *conflict*; it names a decision of another subject, which is a *conflict* of the outcome only.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from schemas.compiled import KERNEL, SMALL
from schemas.limits import SUBJECT_DEPTH_MAX
from streams.join_definitions import Rules
from streams.join_index import (
    CONFLICT,
    CUT,
    DUPLICATE,
    HAS_KEYS,
    HEAD,
    NONE,
    TAIL,
    Decisions,
    Ring,
    identity_of,
    newest,
    older,
    place,
    recent_of,
)
from streams.reward import ACTION_KEY, Nodes, accumulate, find_node

USED, LATE, DUPLICATED, ORPHAN, CONFLICTING, PENDING_COUNT, COPIES = range(7)
"""Places in the outcome counts: the order of `schemas.records.OUTCOME_BUCKETS`, then the copies made by ingest."""

_ALL_SLOTS = -2
_DISAGREES = -1


@njit(**KERNEL)
def slot_named(decisions: Decisions, seq: int, held: Nodes, action: np.uint64, slot: int) -> int:
    """Slot of decision `seq` that (action, slot) names; `_ALL_SLOTS` if neither is given, `_DISAGREES` for another."""
    identity, record = identity_of(decisions, seq), recent_of(decisions, seq)
    num_slots = np.int64(identity.slots)
    if slot >= num_slots or slot < -1:
        return _DISAGREES
    if action == 0:
        return slot if slot >= 0 else (0 if num_slots == 1 else _ALL_SLOTS)
    for candidate in range(num_slots):
        if slot >= 0 and candidate != slot:
            continue
        chosen = record.chosen
        if identity.marks & HAS_KEYS:
            chosen = np.uint64(held.nodes[find_node(held, record.nodes, candidate, ACTION_KEY)].count)
        if chosen == action:
            return candidate
    return _DISAGREES


@njit(**SMALL)
def is_open(decisions: Decisions, seq: int, rules: Rules, kind: int, time: int) -> bool:
    """Whether an outcome of type `kind` at log time `time` still counts for decision `seq`."""
    identity = identity_of(decisions, seq)
    window = rules.type_windows_ms[identity.task, kind]
    return window >= 0 and time <= identity.time + window and not identity.marks & CUT


@njit(**KERNEL)
def credit(decisions: Decisions, seq: int, held: Nodes, rules: Rules, kind: int, slot: int, value: float) -> None:
    """Count an outcome for slot `slot` of decision `seq`, or for all of them."""
    identity, record = identity_of(decisions, seq), recent_of(decisions, seq)
    aggregate = rules.aggregates[identity.task, kind]
    record.uses += 1
    first, last = (0, np.int64(identity.slots)) if slot == _ALL_SLOTS else (slot, slot + 1)
    for each in range(first, last):
        record.nodes = accumulate(held, record.nodes, each, kind, aggregate, value)


@njit(**KERNEL)
def settle_match(
    decisions: Decisions,
    seq: int,
    held: Nodes,
    rules: Rules,
    kind: int,
    action: np.uint64,
    slot: int,
    value: float,
    subject: np.uint64,
) -> bool:
    """An outcome named decision `seq` by id. True when it is used, False when it is a conflict."""
    if recent_of(decisions, seq).words[0] != subject:
        return False
    named = slot_named(decisions, seq, held, action, slot)
    if named == _DISAGREES:
        identity_of(decisions, seq).marks |= CONFLICT
        return False
    credit(decisions, seq, held, rules, kind, named, value)
    return True


@njit(**SMALL)
def has(done: np.ndarray, name: int) -> bool:
    """Whether the bit of task name `name` is set."""
    return bool((done[name >> 6] >> np.uint64(name & 63)) & np.uint64(1) != 0)


@njit(**SMALL)
def mark(done: np.ndarray, name: int) -> None:
    """Set the bit of task name `name`."""
    done[name >> 6] |= np.uint64(1) << np.uint64(name & 63)


@njit(**KERNEL)
def attribute_by_id(
    decisions: Decisions,
    held: Nodes,
    rules: Rules,
    keys: np.ndarray,
    subject: np.uint64,
    kind: int,
    action: np.uint64,
    slot: int,
    value: float,
    time: int,
    done: np.ndarray,
    uses: np.ndarray,
) -> tuple[int, int, int]:
    """Find the decisions named by id. Returns (tasks that used it, tasks in conflict, 1 if late in some task).

    Each (task name, id) has one record in the chain, its latest; `first` leads to the one that is no duplicate.
    """
    used = conflicts = late = 0
    seq = newest(decisions.known, keys[0])
    while seq != NONE:
        record = identity_of(decisions, seq)
        following = older(decisions.known, seq)
        if record.words[0] == keys[0] and record.words[1] == keys[1]:
            if (
                rules.type_windows_ms[record.task, kind] >= 0
                and time <= record.time + 2 * rules.windows_ms[record.task]
            ):
                late = 1
            first = first_of(decisions, seq)
            if first != NONE and is_open(decisions, first, rules, kind, time):
                mark(done, rules.names[record.task])
                if settle_match(decisions, first, held, rules, kind, action, slot, value, subject):
                    used += 1
                    uses[rules.names[record.task]] += 1
                else:
                    conflicts += 1
        seq = following
    return used, conflicts, late


@njit(**SMALL)
def first_of(decisions: Decisions, seq: int) -> int:
    """The record of this id that is no duplicate, NONE when nothing can come of it any more."""
    oldest = decisions.recent.cursor[HEAD]
    if seq < oldest:
        return NONE
    if not identity_of(decisions, seq).marks & DUPLICATE:
        return seq
    steps = np.int64(recent_of(decisions, seq).first)
    return int(seq - steps) if steps != 0 and seq - steps >= oldest else NONE


@njit(**KERNEL)
def attribute_by_subject(
    decisions: Decisions,
    held: Nodes,
    rules: Rules,
    subject: np.uint64,
    kind: int,
    action: np.uint64,
    slot: int,
    value: float,
    time: int,
    reach_ms: int,
    done: np.ndarray,
    uses: np.ndarray,
) -> tuple[int, int]:
    """Find the subject's latest open decision of every task. Returns (tasks that used it, 1 if late in some task).

    `reach_ms` = 2 Wmax: older decisions matter to nobody.
    """
    used = late = depth = 0
    seq = newest(decisions.recent, subject)
    while seq != NONE and depth < SUBJECT_DEPTH_MAX:
        record = identity_of(decisions, seq)
        if record.time + reach_ms < time or used == rules.names_counting[kind]:
            break
        if recent_of(decisions, seq).words[0] == subject:
            depth += 1
            if rules.type_windows_ms[record.task, kind] >= 0:
                if time <= record.time + 2 * rules.windows_ms[record.task]:
                    late = 1
                name = rules.names[record.task]
                if not record.marks & DUPLICATE and not has(done, name) and is_open(decisions, seq, rules, kind, time):
                    named = slot_named(decisions, seq, held, action, slot)
                    if named != _DISAGREES:
                        mark(done, name)
                        credit(decisions, seq, held, rules, kind, named, value)
                        uses[name] += 1
                        used += 1
        seq = older(decisions.recent, seq)
    return used, late


@njit(**KERNEL)
def _waits_for(pendings: Ring, waiting: int, decisions: Decisions, seq: int, rules: Rules, by_id: bool) -> bool:
    """Whether decision `seq` is one that the pending outcome `waiting` could go to, its actions aside."""
    outcome = pendings.records[place(pendings, waiting)]
    record = identity_of(decisions, seq)
    if outcome.type < 0 or rules.type_windows_ms[record.task, outcome.type] < 0:
        return False
    if record.time > outcome.time + rules.backward_ms[record.task] or has(outcome.done, rules.names[record.task]):
        return False
    names_one = outcome.words[0] != 0 or outcome.words[1] != 0
    if by_id:
        return bool(names_one and outcome.words[0] == record.words[0] and outcome.words[1] == record.words[1])
    return not names_one and outcome.words[2] == recent_of(decisions, seq).words[0]


@njit(**KERNEL)
def take_pending(
    pendings: Ring, decisions: Decisions, seq: int, held: Nodes, rules: Rules, found: np.ndarray, uses: np.ndarray
) -> int:
    """A new decision that is no duplicate takes the outcomes that waited for it, in log order.

    `found` is scratch, `num pending` long. Returns how many were counted as used for the first time.
    """
    identity, subject = identity_of(decisions, seq), recent_of(decisions, seq).words[0]
    name = rules.names[identity.task]
    total = num_by_subject = 0
    for by_id in range(2):
        waiting = newest(pendings, identity.words[0] if by_id else subject)
        while waiting != NONE:
            if _waits_for(pendings, waiting, decisions, seq, rules, by_id == 1):
                found[total] = waiting
                total += 1
            waiting = older(pendings, waiting)
        if by_id == 0:
            num_by_subject = total
    newly_used = 0
    first, second = num_by_subject - 1, total - 1  # two lists, newest first each: take the older of their ends
    while first >= 0 or second >= num_by_subject:
        if second < num_by_subject or (first >= 0 and found[first] < found[second]):
            taken = found[first]
            first -= 1
        else:
            taken = found[second]
            second -= 1
        outcome = pendings.records[place(pendings, taken)]
        names_one = outcome.words[0] != 0 or outcome.words[1] != 0
        named = slot_named(decisions, seq, held, outcome.action, outcome.slot)
        if not names_one and named == _DISAGREES:
            continue
        mark(outcome.done, name)
        if names_one and (named == _DISAGREES or outcome.words[2] != subject):
            outcome.bucket = CONFLICTING
            if outcome.words[2] == subject:
                identity.marks |= CONFLICT
            continue
        credit(decisions, seq, held, rules, outcome.type, named, outcome.value)
        uses[name] += 1
        if not outcome.settled:
            outcome.settled = 1
            newly_used += 1
    return newly_used


@njit(**SMALL)
def num_waiting(pendings: Ring) -> int:
    """Outcomes in the ring."""
    return int(pendings.cursor[TAIL] - pendings.cursor[HEAD])
