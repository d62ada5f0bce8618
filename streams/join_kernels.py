"""What all kernels of the join share, and those that end things: settle what waited, close what is due.

Rules 4 and 5 over the arrays of `streams.join_index`; `streams.join_folding` has rules 1 to 3. Nothing here knows of
blocks or restarts; `streams.join` makes room before each call and owns the arrays.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from schemas.arrays import F32, I32, I64, U8, U64
from schemas.blocks import FLAG_CUT
from schemas.compiled import KERNEL, SMALL
from streams.attribution import PENDING_COUNT, num_waiting
from streams.join_counts import (
    CONFLICTING_DECISION,
    DEFAULTED,
    DUPLICATED_DECISION,
    JOINED,
    OPEN,
    OUTCOMES_AT,
    QUARANTINED_DECISION,
)
from streams.join_definitions import Rules
from streams.join_index import (
    CONFLICT,
    CUT,
    DUPLICATE,
    HEAD,
    QUARANTINED,
    TAIL,
    Decisions,
    Ring,
    identity_of,
    place,
    recent_of,
)
from streams.reward import Nodes, free_nodes, reward_of

RUN_OFFSET, RUN_ROW, RUN_SEQ, RUN_ROWS, RUN_TIME, RUN_VERSION = range(6)
"""Columns of a run: rows of one journal record that are open: its offset, the first row, where its record stands in
the ring, how many, T, snapshot version."""


class State(NamedTuple):
    """Everything that a fold may change."""

    decisions: Decisions
    outcomes: Ring
    pendings: Ring
    held: Nodes
    counts: I64
    """(NUM_COUNTS,): see `OUTCOMES_AT`, `USES_AT`."""
    done: U64
    """(2,) scratch: tasks that have had the outcome at hand, a bit each."""


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
    decisions, held, counts = state.decisions, state.held, state.counts
    window = rules.windows_ms[definition]
    at = 0
    for run in range(runs.shape[0]):
        for row in range(runs[run, RUN_ROWS]):
            seq = runs[run, RUN_SEQ] + row
            identity, record = identity_of(decisions, seq), recent_of(decisions, seq)
            flags = FLAG_CUT if is_cut else 0
            bucket = _bucket(identity.marks, record.uses)
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
                identity.marks |= CUT
            if record.nodes >= 0:
                free_nodes(held, record.nodes)
                record.nodes = -1
            counts[OPEN] -= 1
            if counting:
                counts[bucket] += 1
            at += 1
