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
from streams.join_index import DECISION, IDENTITY, OUTCOME, PENDING, Decisions, PagedRing
from streams.join_kernels import State, settle_pendings
from streams.reward import NODE, USED, make_room, new_nodes

_EXPECTED_ROWS_MAX = 1 << 19
"""A table is made for no more rows at once than this (4 MiB an index, 12 MiB a partition): a backlog may be longer than
what is held."""
_SPACING_MS_MAX = 1_000
"""Records are let go in steps of so much log time at most, and of an eighth of what they are kept for: what is still
there is judged by its own T."""
_GROWTH = 4
"""A table of recent decisions that is too small gets room for so many times as many: nobody knows how many will be
recent at once, and every record is looked at once more whenever the table grows."""


class Retained:
    """A ring whose records are let go by the log time at which they were written."""

    def __init__(self, ring: PagedRing) -> None:
        self.ring = ring
        self._written: deque[tuple[int, int]] = deque()
        """(T, first sequence number after the records written by then)."""

    def note(self, time_ms: int, kept_ms: int) -> None:
        """All records so far were written by log time `time_ms`, and are kept for `kept_ms`."""
        written = self._written
        if len(written) > 1:
            passed_ms = time_ms - written[-2][0]
            if passed_ms < _SPACING_MS_MAX and 8 * passed_ms < kept_ms:
                written.pop()
        written.append((time_ms, self.ring.tail))

    def let_go(self, before_ms: int) -> None:
        """Of every record written before log time `before_ms`."""
        while self._written and self._written[0][0] < before_ms:
            self.ring.evict(self._written.popleft()[1])


class JoinMemory:
    """Records of decisions, outcomes and waiting outcomes, the nodes that hang on decisions, and the counts."""

    def __init__(self) -> None:
        self._known = Retained(PagedRing(IDENTITY))
        self._recent = Retained(PagedRing(DECISION))
        self._outcomes = Retained(PagedRing(OUTCOME))
        self.pendings = PagedRing(PENDING, hashed=3)
        self.counts = np.zeros(NUM_COUNTS, np.int64)
        self._held = new_nodes()
        self._done: U64 = np.zeros(2, np.uint64)

    @property
    def num_bytes(self) -> int:
        """Memory of indexes and records."""
        rings = (self._known.ring, self._recent.ring, self._outcomes.ring, self.pendings)
        return sum(ring.memory_bytes for ring in rings) + int(self._held.cursor[USED]) * NODE.itemsize

    def state(self) -> State:
        """The arrays as the kernels take them; valid until room is made again."""
        return State(
            Decisions(self._known.ring.arrays, self._recent.ring.arrays), self._outcomes.ring.arrays,
            self.pendings.arrays, self._held, self.counts, self._done,
        )  # fmt: skip

    def make_room(self, known: Definitions, num_decisions: int, num_outcomes: int, num_waiting: int) -> None:
        """For as many more records, and for what they may hold."""
        for kept in (self._known, self._recent):
            kept.ring.reserve(num_decisions)
        for ring in (self._outcomes.ring, self.pendings):
            ring.reserve(num_outcomes)
        held = num_decisions * (known.slots_max + 1) + num_waiting * known.slots_max if num_decisions else 0
        self._held = make_room(self._held, held + num_outcomes * known.slots_max * len(known.names))

    def widen(self, num_decisions: int, num_outcomes: int, times: float) -> None:
        """Tables for `times` as many records as these, where they are too small for these."""
        for kept, num, rows_max in (
            (self._known, num_decisions, _EXPECTED_ROWS_MAX),
            (self._recent, num_decisions, _GROWTH * (len(self._recent.ring) + num_decisions)),
            (self._outcomes, num_outcomes, _EXPECTED_ROWS_MAX),
        ):
            ring = kept.ring
            wanted = min(rows_max, _EXPECTED_ROWS_MAX, len(ring) + int(num * times))
            if len(ring) + num > ring.num_chains and wanted > 2 * ring.num_chains:
                ring.widen(wanted)

    def settle(self, expired_before: int, num_pending_max: int, counting: bool) -> None:
        """Outcomes that waited from before `expired_before`, and the oldest beyond the limit, wait no more."""
        settle_pendings(self.state(), expired_before, num_pending_max, counting)
        self.pendings.evict(self.pendings.head)

    @property
    def next_decision(self) -> int:
        """Sequence number of the next decision."""
        return self._known.ring.tail

    def note_decisions(self, time_ms: int, known: Definitions) -> None:
        """All decisions so far were written by log time `time_ms`."""
        self._known.note(time_ms, _kept_ms(known))
        self._recent.note(time_ms, 2 * known.window_ms)

    def note_outcomes(self, time_ms: int, known: Definitions) -> None:
        """The same of outcomes."""
        self._outcomes.note(time_ms, known.dedupe_ms)

    def let_go(self, time_ms: int, known: Definitions) -> None:
        """Of what cannot be asked for any more at log time `time_ms`."""
        self._known.let_go(time_ms - _kept_ms(known))
        self._recent.let_go(time_ms - 2 * known.window_ms)
        if self._recent.ring.head < self._known.ring.head:  # it goes in steps of its own
            self._recent.ring.evict(self._known.ring.head)
        self._outcomes.let_go(time_ms - known.dedupe_ms)


def _kept_ms(known: Definitions) -> int:
    """How long an id is remembered: a second decision within D is a duplicate, an outcome within 2 W is late."""
    return max(known.dedupe_ms, 2 * known.window_ms)
