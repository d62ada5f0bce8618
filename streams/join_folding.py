"""One numba call per block: fold decisions (rules 1 and 2), fold outcomes (rules 2, 3 and 5).

Nothing here knows of blocks or restarts; `streams.join` makes room before each call and owns the arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import F64, I32, I64, U64
from schemas.compiled import KERNEL, SMALL
from schemas.task import NUM_NAMES_MAX
from streams.attribution import (
    CONFLICTING,
    COPIES,
    DUPLICATED,
    LATE,
    ORPHAN,
    PENDING_COUNT,
    USED,
    attribute_by_id,
    attribute_by_subject,
    first_of,
    num_waiting,
    take_pending,
)
from streams.join_counts import OPEN, OUTCOMES_AT, USES_AT
from streams.join_definitions import Rules
from streams.join_index import (
    CONFLICT,
    CUT,
    DUPLICATE,
    HAS_KEYS,
    NONE,
    QUARANTINED,
    TAIL,
    TOUCH_ROWS,
    Decisions,
    Ring,
    identity_of,
    newest,
    older,
    place,
    push,
    recent_of,
    relink,
    touch,
)
from streams.join_kernels import State
from streams.reward import ACTION_KEY, Nodes, take_node

Bools = npt.NDArray[np.bool_]


class Offered(NamedTuple):
    """Columns of a DecisionBlock, sound ones; rows that are not hold zeros."""

    keys: U64
    subjects: U64
    sound: Bools
    """(N,) False: quarantined."""
    chosen: I32
    num_candidates: I32
    action_keys: U64
    """(M,), or (K,) of the declared catalogue."""
    catalogue: bool
    values: U64
    """(N, S) bits of the drawn values, (0, S) without."""


class Told(NamedTuple):
    """Columns of an OutcomeBlock."""

    source_offsets: I64
    outcome_keys: U64
    subjects: U64
    keys: U64
    action_keys: U64
    slots: I32
    types: I32
    type_indices: I32
    values: F64


@njit(**SMALL)
def _action_key(offered: Offered, row: int, first: int, slot: int) -> np.uint64:
    """Key of the action in a slot, 0 for none or for an index that names no candidate."""
    chosen = offered.chosen[row, slot]
    if chosen < 0 or chosen >= offered.num_candidates[row]:
        return np.uint64(0)
    index = chosen if offered.catalogue else first + chosen
    return offered.action_keys[index] if index < offered.action_keys.shape[0] else np.uint64(0)


@njit(**SMALL)
def _digest(offered: Offered, row: int, first: int) -> np.uint64:
    """What was chosen in all slots: the action's key for one slot without a value, a hash of all otherwise."""
    num_slots = offered.chosen.shape[1]
    if num_slots == 1 and offered.values.shape[0] == 0:
        return np.uint64(_action_key(offered, row, first, 0))
    digest = np.uint64(0)
    for slot in range(num_slots):
        digest = (digest ^ _action_key(offered, row, first, slot)) * np.uint64(0x9E3779B97F4A7C15)
        if offered.values.shape[0]:
            digest = (digest ^ offered.values[row, slot]) * np.uint64(0xC2B2AE3D27D4EB4F)
        digest ^= digest >> np.uint64(29)
    return digest


@njit(**SMALL)
def _latest_of_id(decisions: Decisions, rules: Rules, name: int, keys: np.ndarray) -> tuple[int, int]:
    """(record of the task name and id or NONE, the chain's record before it or NONE)."""
    ring = decisions.known
    before, seq = NONE, newest(ring, keys[0])
    while seq != NONE:
        record = ring.records[place(ring, seq)]
        if record.words[0] == keys[0] and record.words[1] == keys[1] and rules.names[record.task] == name:
            break
        before = seq
        seq = older(ring, seq)
    return seq, before


@njit(**SMALL)
def _duplicate(decisions: Decisions, rules: Rules, seq: int, latest: int, time: int) -> None:
    """Decision `seq` repeats the id of `latest`: point it at the first, which is a conflict if its actions differ."""
    identity_of(decisions, seq).marks |= DUPLICATE
    first = first_of(decisions, latest)
    if first == NONE:
        return
    record = recent_of(decisions, seq)
    record.first = np.uint32(seq - first)
    original = identity_of(decisions, first)
    is_open = time <= original.time + rules.windows_ms[original.task] and not original.marks & CUT
    if is_open and recent_of(decisions, first).chosen != record.chosen:
        original.marks |= CONFLICT


@njit(**SMALL)
def _link(decisions: Decisions, seq: int, identity: Any, record: Any, latest: int, before: int) -> None:
    """Put decision `seq` into both indexes, in that by id in the place of `latest`: an id has one record there."""
    known = decisions.known
    if latest != NONE:
        relink(known, identity_of(decisions, latest).words[0], before, older(known, latest))
    push(known, 0, seq, identity)
    push(decisions.recent, 0, seq, record)


@njit(**KERNEL)
def _hold_keys(held: Nodes, offered: Offered, row: int, first: int, record: Any) -> None:
    """Keep the action key of every slot: for slates and continuous actions."""
    for slot in range(offered.chosen.shape[1]):
        node = take_node(held, slot, ACTION_KEY)
        held.nodes[node].count = np.int64(_action_key(offered, row, first, slot))
        held.nodes[node].next = record.nodes
        record.nodes = node


@njit(**KERNEL)
def fold_decisions(
    state: State,
    rules: Rules,
    offered: Offered,
    definition: int,
    time: int,
    dedupe_ms: int,
    counting: bool,
    scratch: I64,
    part: tuple[int, int, int],
) -> None:
    """Rule 1 and the pending half of rule 2 for every row of `part`: (first row, row after the last, first candidate).

    `scratch` holds as many numbers as outcomes wait.
    """
    first_row, last_row, first_candidate = part
    decisions, held, counts = state.decisions, state.held, state.counts
    known, recent = decisions.known, decisions.recent
    uses = counts[USES_AT if counting else USES_AT + NUM_NAMES_MAX :]
    name = rules.names[definition]
    plain = offered.chosen.shape[1] == 1 and offered.values.shape[0] == 0
    for row in range(first_row, last_row):
        if (row - first_row) % TOUCH_ROWS == 0:
            state.done[0] = touch(known, offered.keys[:, 0], row, True)
            state.done[1] = touch(recent, offered.subjects, row, False)
        seq = known.cursor[TAIL]
        identity, record = identity_of(decisions, seq), recent_of(decisions, seq)
        for word in range(2):
            identity.words[word] = offered.keys[row, word]
        identity.time = time
        identity.task = definition
        identity.marks = (0 if offered.sound[row] else QUARANTINED) | (0 if plain else HAS_KEYS)
        identity.slots = min(offered.chosen.shape[1], 255)
        record.words[0] = offered.subjects[row]
        record.chosen = _digest(offered, row, first_candidate)
        record.first = np.uint32(0)
        record.uses = 0
        record.nodes = -1
        if not plain:
            _hold_keys(held, offered, row, first_candidate, record)
        first_candidate += offered.num_candidates[row]
        latest, before = _latest_of_id(decisions, rules, name, offered.keys[row])
        if latest != NONE and time - identity_of(decisions, latest).time <= dedupe_ms:
            _duplicate(decisions, rules, seq, latest, time)
        known.cursor[TAIL] += 1
        recent.cursor[TAIL] += 1
        _link(decisions, seq, identity, record, latest, before)
        if num_waiting(state.pendings) and not identity.marks & DUPLICATE:
            used = take_pending(state.pendings, decisions, seq, held, rules, scratch, uses)
            counts[OUTCOMES_AT + PENDING_COUNT] -= used
            if counting:
                counts[OUTCOMES_AT + USED] += used
    counts[OPEN] += last_row - first_row


@njit(**KERNEL)
def _is_copy_of_key(ring: Ring, keys: np.ndarray, time: int, dedupe_ms: int) -> bool:
    """Rule 3: whether a record with this outcome key stands within D; this one is remembered as the latest."""
    before, seq = NONE, newest(ring, keys[0])
    while seq != NONE:
        record = ring.records[place(ring, seq)]
        if record.words[0] == keys[0] and record.words[1] == keys[1]:
            break
        before = seq
        seq = older(ring, seq)
    copied = seq != NONE and time - ring.records[place(ring, seq)].time <= dedupe_ms
    added = ring.cursor[TAIL]
    record = ring.records[place(ring, added)]
    for word in range(2):
        record.words[word] = keys[word]
    record.time = time
    ring.cursor[TAIL] += 1
    if seq != NONE:
        relink(ring, keys[0], before, older(ring, seq))
    push(ring, 0, added, record)
    return bool(copied)


@njit(**KERNEL)
def _wait(ring: Ring, told: Told, row: int, kind: int, time: int, bucket: int, settled: int, done: U64) -> None:
    """Keep an outcome for decisions still to come."""
    seq = ring.cursor[TAIL]
    record = ring.records[place(ring, seq)]
    names_one = told.keys[row, 0] != 0 or told.keys[row, 1] != 0
    for word in range(2):
        record.words[word] = told.keys[row, word]
        record.done[word] = done[word]
    record.words[2] = told.subjects[row]
    record.words[3] = told.keys[row, 0] if names_one else told.subjects[row]
    record.time = time
    record.action = told.action_keys[row]
    record.value = told.values[row]
    record.type = kind
    record.slot = told.slots[row]
    record.bucket = bucket
    record.settled = settled
    ring.cursor[TAIL] += 1
    push(ring, 3, seq, record)


@njit(**KERNEL)
def fold_outcomes(
    state: State,
    rules: Rules,
    told: Told,
    high_water: int,
    time: int,
    dedupe_ms: int,
    reach_ms: int,
    counting: bool,
    part: tuple[int, int],
) -> int:
    """Rules 2, 3 and 5 for the rows [first, last) of `part`. Returns the new mark of the source partition."""
    counts, counted = state.counts, 1 if counting else 0
    uses = counts[USES_AT if counting else USES_AT + NUM_NAMES_MAX :]
    done = state.done
    for row in range(part[0], part[1]):
        if (row - part[0]) % TOUCH_ROWS == 0:
            state.done[0] = touch(state.outcomes, told.outcome_keys[:, 0], row, True)
            state.done[0] = touch(state.decisions.known, told.keys[:, 0], row, True)
            state.done[0] = touch(state.decisions.recent, told.subjects, row, True)
        if told.source_offsets[row] <= high_water:
            counts[OUTCOMES_AT + COPIES] += counted
            continue
        high_water = told.source_offsets[row]
        if _is_copy_of_key(state.outcomes, told.outcome_keys[row], time, dedupe_ms):
            counts[OUTCOMES_AT + DUPLICATED] += counted
            continue
        done[:] = 0
        kind = told.type_indices[told.types[row]] if 0 <= told.types[row] < told.type_indices.shape[0] else -1
        used = conflicts = late = 0
        action, slot, value, subject = told.action_keys[row], told.slots[row], told.values[row], told.subjects[row]
        if kind < 0:
            pass
        elif told.keys[row, 0] != 0 or told.keys[row, 1] != 0:
            used, conflicts, late = attribute_by_id(
                state.decisions,
                state.held,
                rules,
                told.keys[row],
                subject,
                kind,
                action,
                slot,
                value,
                time,
                done,
                uses,
            )
        else:
            used, late = attribute_by_subject(
                state.decisions,
                state.held,
                rules,
                subject,
                kind,
                action,
                slot,
                value,
                time,
                reach_ms,
                done,
                uses,
            )
        if used:
            counts[OUTCOMES_AT + USED] += counted
            if used + conflicts < rules.names_counting[kind]:
                _wait(state.pendings, told, row, kind, time, USED, 1, done)
            continue
        bucket = CONFLICTING if conflicts else (LATE if late else ORPHAN)
        counts[OUTCOMES_AT + PENDING_COUNT] += 1
        _wait(state.pendings, told, row, kind, time, bucket, 0, done)
    return high_water
