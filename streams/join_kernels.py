"""One numba call per block: fold decisions, fold outcomes, settle what waited, close.

Rules 1 to 5 of the join over the arrays of `streams.join_index`. Nothing here knows of blocks, offsets of the journal
or restarts; `streams.join` makes room before each call and owns the arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from schemas.blocks import F32, F64, FLAG_CUT, I32, I64, U8, U64
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
from streams.join_definitions import NUM_NAMES_MAX, Rules
from streams.join_index import (
    CONFLICT,
    CUT,
    DUPLICATE,
    HAS_KEYS,
    HEAD,
    KERNEL,
    NONE,
    QUARANTINED,
    SMALL,
    TAIL,
    TOUCH_ROWS,
    Ring,
    newest,
    older,
    place,
    push,
    relink,
    touch,
)
from streams.reward import ACTION_KEY, Nodes, free_nodes, reward_of, take_node

JOINED, DEFAULTED, DUPLICATED_DECISION, CONFLICTING_DECISION, QUARANTINED_DECISION, OPEN = range(6)
"""Codes of `schemas.records.DecisionBucket`, then the count of open decisions."""

OUTCOMES_AT = OPEN + 1
USES_AT = OUTCOMES_AT + COPIES + 1
NUM_COUNTS = USES_AT + 2 * NUM_NAMES_MAX
"""Counts: decisions by bucket and open, outcomes by bucket and copies, uses per task name; then, unread, the uses in
a part of the journal that has been counted before."""

RUN_OFFSET, RUN_ROW, RUN_SEQ, RUN_ROWS, RUN_TIME, RUN_VERSION = range(6)
"""Columns of a run: rows of one journal record that are open: its offset, the first row, where its record stands in
the ring, how many, T, snapshot version."""


class State(NamedTuple):
    """Everything that a fold may change."""

    decisions: Ring
    outcomes: Ring
    pendings: Ring
    held: Nodes
    counts: I64
    """(NUM_COUNTS,): see `OUTCOMES_AT`, `USES_AT`."""
    done: U64
    """(2,) scratch: tasks that have had the outcome at hand, a bit each."""


class Offered(NamedTuple):
    """Columns of a DecisionBlock, sound ones; rows that are not hold zeros."""

    keys: U64
    subjects: U64
    sound: U8
    """(N,) 0: quarantined."""
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
        return _action_key(offered, row, first, 0)
    digest = np.uint64(0)
    for slot in range(num_slots):
        digest = (digest ^ _action_key(offered, row, first, slot)) * np.uint64(0x9E3779B97F4A7C15)
        if offered.values.shape[0]:
            digest = (digest ^ offered.values[row, slot]) * np.uint64(0xC2B2AE3D27D4EB4F)
        digest ^= digest >> np.uint64(29)
    return digest


@njit(**SMALL)
def _latest_of_id(ring: Ring, rules: Rules, name: int, keys: np.ndarray) -> tuple[int, int]:
    """(record of the task name and id or NONE, the chain's record before it or NONE)."""
    before, seq = NONE, newest(ring, 0, keys[0])
    while seq != NONE:
        record = ring.records[place(ring, seq)]
        if record.words[0] == keys[0] and record.words[1] == keys[1] and rules.names[record.task] == name:
            break
        before = seq
        seq = older(ring, 0, seq)
    return seq, before


@njit(**SMALL)
def _duplicate(ring: Ring, rules: Rules, seq: int, latest: int, time: int) -> None:
    """Record `seq` repeats the id of `latest`: point it at the first, which is a conflict if its actions differ."""
    record = ring.records[place(ring, seq)]
    record.marks |= DUPLICATE
    first = first_of(ring, latest)
    if first == NONE:
        return
    record.first = np.uint32(seq - first)
    original = ring.records[place(ring, first)]
    is_open = time <= original.time + rules.windows_ms[original.task] and not original.marks & CUT
    if is_open and original.chosen != record.chosen:
        original.marks |= CONFLICT


@njit(**SMALL)
def _link(ring: Ring, seq: int, latest: int, before: int) -> None:
    """Put record `seq` into both indexes in the place of `latest`: an id has one record in its chain."""
    if latest != NONE:
        relink(ring, 0, ring.records[place(ring, seq)].words[0], before, older(ring, 0, latest))
    push(ring, 0, 0, seq)
    push(ring, 1, 2, seq)


@njit(**KERNEL)
def _hold_keys(held: Nodes, offered: Offered, row: int, first: int, record: np.ndarray) -> None:
    """Keep the action key of every slot: for slates and continuous actions."""
    record.marks |= HAS_KEYS
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
) -> None:
    """Rule 1 and the pending half of rule 2 for every row. `scratch` holds as many numbers as outcomes wait."""
    ring, held, counts = state.decisions, state.held, state.counts
    uses = counts[USES_AT if counting else USES_AT + NUM_NAMES_MAX :]
    name = rules.names[definition]
    plain = offered.chosen.shape[1] == 1 and offered.values.shape[0] == 0
    first_candidate = 0
    for row in range(offered.keys.shape[0]):
        if row % TOUCH_ROWS == 0:
            state.done[0] = touch(ring, 0, offered.keys[:, 0], row, True)
            state.done[1] = touch(ring, 1, offered.subjects, row, False)
        seq = ring.cursor[TAIL]
        record = ring.records[place(ring, seq)]
        for word in range(2):
            record.words[word] = offered.keys[row, word]
        record.words[2] = offered.subjects[row]
        record.time = time
        record.chosen = _digest(offered, row, first_candidate)
        record.first = np.uint32(0)
        record.uses = 0
        record.nodes = -1
        record.task = definition
        record.marks = 0 if offered.sound[row] else QUARANTINED
        record.slots = min(offered.chosen.shape[1], 255)
        if not plain:
            _hold_keys(held, offered, row, first_candidate, record)
        first_candidate += offered.num_candidates[row]
        latest, before = _latest_of_id(ring, rules, name, offered.keys[row])
        if latest != NONE and time - ring.records[place(ring, latest)].time <= dedupe_ms:
            _duplicate(ring, rules, seq, latest, time)
        ring.cursor[TAIL] += 1
        _link(ring, seq, latest, before)
        if num_waiting(state.pendings) and not record.marks & DUPLICATE:
            used = take_pending(state.pendings, ring, seq, held, rules, scratch, uses)
            counts[OUTCOMES_AT + PENDING_COUNT] -= used
            if counting:
                counts[OUTCOMES_AT + USED] += used
    counts[OPEN] += offered.keys.shape[0]


@njit(**KERNEL)
def _is_copy_of_key(ring: Ring, keys: np.ndarray, time: int, dedupe_ms: int) -> bool:
    """Rule 3: whether a record with this outcome key stands within D; this one is remembered as the latest."""
    before, seq = NONE, newest(ring, 0, keys[0])
    while seq != NONE:
        record = ring.records[place(ring, seq)]
        if record.words[0] == keys[0] and record.words[1] == keys[1]:
            break
        before = seq
        seq = older(ring, 0, seq)
    copied = seq != NONE and time - ring.records[place(ring, seq)].time <= dedupe_ms
    added = ring.cursor[TAIL]
    record = ring.records[place(ring, added)]
    for word in range(2):
        record.words[word] = keys[word]
    record.time = time
    ring.cursor[TAIL] += 1
    if seq != NONE:
        relink(ring, 0, keys[0], before, older(ring, 0, seq))
    push(ring, 0, 0, added)
    return copied


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
    push(ring, 0, 3, seq)


@njit(**KERNEL)
def fold_outcomes(
    state: State, rules: Rules, told: Told, high_water: int, time: int, dedupe_ms: int, reach_ms: int, counting: bool
) -> int:
    """Rules 2, 3 and 5 for every row. Returns the new high-water mark of the source partition."""
    counts, counted = state.counts, 1 if counting else 0
    uses = counts[USES_AT if counting else USES_AT + NUM_NAMES_MAX :]
    done = state.done
    for row in range(told.source_offsets.shape[0]):
        if row % TOUCH_ROWS == 0:
            state.done[0] = touch(state.outcomes, 0, told.outcome_keys[:, 0], row, True)
            state.done[0] = touch(state.decisions, 0, told.keys[:, 0], row, True)
            state.done[0] = touch(state.decisions, 1, told.subjects, row, True)
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


@njit(**KERNEL)
def settle_pendings(state: State, expired_before: int, num_pending_max: int, counting: bool) -> None:
    """Outcomes with T(o) < `expired_before` match nothing any more, nor do the oldest beyond `num_pending_max`."""
    ring, counts = state.pendings, state.counts
    while ring.cursor[HEAD] < ring.cursor[TAIL]:
        record = ring.records[place(ring, ring.cursor[HEAD])]
        if record.time >= expired_before and num_waiting(ring) <= num_pending_max:
            break
        if not record.settled:
            counts[OUTCOMES_AT + PENDING_COUNT] -= 1
            if counting:
                counts[OUTCOMES_AT + record.bucket] += 1
        ring.cursor[HEAD] += 1


@njit(**SMALL)
def _bucket(marks: int, uses: int) -> int:
    """Rule 5, decisions: duplicate, quarantined, conflict, joined, defaulted."""
    if marks & DUPLICATE:
        return DUPLICATED_DECISION
    if marks & QUARANTINED:
        return QUARANTINED_DECISION
    if marks & CONFLICT:
        return CONFLICTING_DECISION
    return JOINED if uses else DEFAULTED


class Closing(NamedTuple):
    """Columns to fill for the rows that close, in order."""

    positions: I64
    closed_at_ms: I64
    versions: I64
    num_outcomes: I32
    buckets: U8
    flags: U8
    rewards: F32
    """(N, S)"""


@njit(**KERNEL)
def close_rows(
    state: State, rules: Rules, runs: I64, definition: int, is_cut: bool, counting: bool, closing: Closing
) -> None:
    """Rule 4 for all rows of `runs` (R, 6): bucket, reward, position. Their nodes are free afterwards."""
    ring, held, counts = state.decisions, state.held, state.counts
    window = rules.windows_ms[definition]
    at = 0
    for run in range(runs.shape[0]):
        for row in range(runs[run, RUN_ROWS]):
            record = ring.records[place(ring, runs[run, RUN_SEQ] + row)]
            flags = FLAG_CUT if is_cut else 0
            bucket = _bucket(record.marks, record.uses)
            for slot in range(closing.rewards.shape[1]):
                reward, clipped = reward_of(held, record.nodes, slot, rules, definition)
                closing.rewards[at, slot] = reward
                flags |= clipped
            closing.positions[at] = (runs[run, RUN_OFFSET] << 16) | (runs[run, RUN_ROW] + row)
            closing.closed_at_ms[at] = runs[run, RUN_TIME] + window
            closing.versions[at] = runs[run, RUN_VERSION]
            closing.num_outcomes[at] = record.uses
            closing.buckets[at] = bucket
            closing.flags[at] = flags
            if is_cut:
                record.marks |= CUT
            if record.nodes >= 0:
                free_nodes(held, record.nodes)
                record.nodes = -1
            counts[OPEN] -= 1
            if counting:
                counts[bucket] += 1
            at += 1
