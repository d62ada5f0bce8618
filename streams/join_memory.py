"""What the join of one partition remembers: the records, what came in for them, and the counts.

Owns the arrays that the kernels change: room is made before each call and old records are let go after it. Decides
nothing about a decision or an outcome; that is the kernels' and `streams.join`'s.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from schemas.arrays import U64
from streams.join_counts import NUM_COUNTS
from streams.join_definitions import Definitions
from streams.join_index import DECISION, OUTCOME, PENDING, PagedRing
from streams.join_kernels import State, settle_pendings
from streams.reward import NODE, USED, make_room, new_nodes

_EXPECTED_ROWS_MAX = 1 << 19
"""A table is made for no more rows at once than this (4 MiB an index, 12 MiB a partition): a backlog may be longer than
what is held."""
_SPACING_MS = 1_000
"""Records are let go in steps of this much log time: what is still there is judged by its own T."""


class Retained:
    """A ring whose records are let go by the log time at which they were written."""

    def __init__(self, ring: PagedRing) -> None:
        self.ring = ring
        self._written: deque[tuple[int, int]] = deque()
        """(T, first sequence number after the records written by then)."""

    def note(self, time_ms: int) -> None:
        """All records so far were written by log time `time_ms`."""
        if len(self._written) > 1 and time_ms < self._written[-2][0] + _SPACING_MS:
            self._written.pop()
        self._written.append((time_ms, self.ring.tail))

    def let_go(self, before_ms: int) -> None:
        """Of every record written before log time `before_ms`."""
        while self._written and self._written[0][0] < before_ms:
            self.ring.evict(self._written.popleft()[1])


class JoinMemory:
    """Records of decisions, outcomes and waiting outcomes, the nodes that hang on decisions, and the counts."""

    def __init__(self) -> None:
        self.decisions = Retained(PagedRing(DECISION, 2))
        self.outcomes = Retained(PagedRing(OUTCOME, 1))
        self.pendings = PagedRing(PENDING, 1)
        self.counts = np.zeros(NUM_COUNTS, np.int64)
        self._held = new_nodes()
        self._done: U64 = np.zeros(2, np.uint64)

    @property
    def num_bytes(self) -> int:
        """Memory of indexes and records."""
        rings = (self.decisions.ring, self.outcomes.ring, self.pendings)
        return sum(ring.memory_bytes for ring in rings) + int(self._held.cursor[USED]) * NODE.itemsize

    def state(self) -> State:
        """The arrays as the kernels take them; valid until room is made again."""
        return State(
            self.decisions.ring.arrays, self.outcomes.ring.arrays, self.pendings.arrays, self._held, self.counts,
            self._done,
        )  # fmt: skip

    def make_room(self, known: Definitions, num_decisions: int, num_outcomes: int, num_waiting: int) -> None:
        """For as many more records, and for what they may hold."""
        self.decisions.ring.reserve(num_decisions)
        for ring in (self.outcomes.ring, self.pendings):
            ring.reserve(num_outcomes)
        held = num_decisions * (known.slots_max + 1) + num_waiting * known.slots_max if num_decisions else 0
        self._held = make_room(self._held, held + num_outcomes * known.slots_max * len(known.names))

    def widen(self, num_decisions: int, num_outcomes: int, times: float) -> None:
        """Tables for `times` as many records as these, where they are too small for these."""
        for ring, hashed, num in (
            (self.decisions.ring, (0, 2), num_decisions),
            (self.outcomes.ring, (0,), num_outcomes),
        ):
            wanted = min(_EXPECTED_ROWS_MAX, len(ring) + int(num * times))
            if len(ring) + num > ring.num_chains and wanted > 2 * ring.num_chains:
                ring.widen(wanted, hashed)

    def settle(self, expired_before: int, num_pending_max: int, counting: bool) -> None:
        """Outcomes that waited from before `expired_before`, and the oldest beyond the limit, wait no more."""
        settle_pendings(self.state(), expired_before, num_pending_max, counting)
        self.pendings.evict(self.pendings.head)

    def let_go(self, time_ms: int, known: Definitions) -> None:
        """Of what cannot be asked for any more at log time `time_ms`."""
        self.decisions.let_go(time_ms - max(known.dedupe_ms, 2 * known.window_ms))
        self.outcomes.let_go(time_ms - known.dedupe_ms)
