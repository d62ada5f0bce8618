"""Where a rebuild of the join may start (rules 8 and 10), and which Progress may be said when.

`History` keeps, once per second of log time or more rarely, what a rebuild needs to know of the log before an
offset: T and the source high-water marks. `resume` finds the newest entry that is early enough.

A rebuild that starts at that entry knows what every decision open at `time_ms` can depend on, looking back
    L = D + Wmax + bwmax
from the oldest of them: an outcome up to bw before it, which a decision up to W before that may have taken, unless
that was a duplicate of one up to D before. Rows closed by then are in the transitions already.

The bound is taken when the tick is folded and not when Progress is said: decisions that were open at the tick are
counted after it, so a rebuild that goes on counting from there must judge them alike, accepted meanwhile or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.arrays import I64
from schemas.chain import START, Chain, ChainReader
from schemas.records import DefinitionPosition, Resume, SourcePosition

SPACING_MS_MIN = 1_000
ENTRIES_MAX = 1_024
"""History entries per look-back: a rebuild reads at most a thousandth more than it must."""
CANDIDATES_MAX = 1_024
"""Ticks whose rows have not been read back yet; beyond it every second is forgotten."""

Sources = Mapping[tuple[str, int], int]
"""(source topic, source partition) → last offset folded."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one tick could be said as Progress, once all that had closed by then is read back."""

    time_ms: int
    journal_offset: int
    counts: I64
    closed: dict[Chain, int]
    """Last position closed per chain."""
    resume: Resume


class History:
    """Coarse memory of T and source positions by journal offset."""

    def __init__(self, start: Resume) -> None:
        self._entries: deque[Resume] = deque([start])

    def note(
        self, offset: int, time_ms: int, sources: Sources, in_force: tuple[DefinitionPosition, ...], look_back_ms: int
    ) -> None:
        """Call before `offset` is folded, with T, the source marks and the definitions in force before it."""
        if time_ms < self._entries[-1].time_ms + max(SPACING_MS_MIN, look_back_ms // ENTRIES_MAX):
            return
        marks = tuple(SourcePosition(topic, partition, mark) for (topic, partition), mark in sorted(sources.items()))
        self._entries.append(Resume(offset, time_ms, marks, in_force))

    def resume(self, bound_ms: int) -> Resume:
        """The newest entry with T < `bound_ms` before it, the oldest when there is none. Forgets older ones."""
        while len(self._entries) > 1 and self._entries[1].time_ms < bound_ms:
            self._entries.popleft()
        return self._entries[0]


class Candidates:
    """Ticks folded and not yet said as Progress."""

    def __init__(self) -> None:
        self._waiting: deque[Candidate] = deque()

    def add(self, candidate: Candidate) -> None:
        """Remember a tick."""
        if len(self._waiting) >= CANDIDATES_MAX:
            self._waiting = deque(list(self._waiting)[1::2])
        self._waiting.append(candidate)

    def covered(self, reader: ChainReader) -> Candidate | None:
        """The newest tick all of whose closed rows `reader` has accepted; it and older ones are forgotten."""
        for index in range(len(self._waiting) - 1, -1, -1):
            candidate = self._waiting[index]
            if all(reader.hwm.get(chain, START) >= position for chain, position in candidate.closed.items()):
                for _ in range(index + 1):
                    self._waiting.popleft()
                return candidate
        return None
