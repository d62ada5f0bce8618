"""Is this worker alive, and is it ready? Faust notices neither a stuck agent nor a blocked event loop: we do.

Live: the event loop beats, and every watched partition moves while there is something to read. Ready: nothing is
still being rebuilt. Thread-safe for the metrics server: only whole values are replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

BEAT_S = 0.5
BEATS_LATE_S_MAX = 20.0
"""The event loop may be busy with one batch for a second or two; numba's first compilation takes ten."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a partition stood when it last moved or had nothing to read."""

    position: int
    end: int
    moved_s: float
    """Clock time of that moment."""


class Health:
    """Beats and positions of one worker. `clock` gives seconds that never go back."""

    def __init__(self, stall_s_max: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s_max = stall_s_max
        self._clock = clock
        self._beat_s = clock()
        self._seen: dict[str, Seen] = {}
        self._waits: dict[str, str] = {"start": "the worker is starting"}

    def beat(self) -> None:
        """The event loop runs."""
        self._beat_s = self._clock()

    def note(self, key: str, position: int, end: int) -> None:
        """Partition `key` has been read up to `position`; its log ends at `end`."""
        last = self._seen.get(key)
        moved = last is None or position != last.position or position >= end
        self._seen[key] = Seen(position, end, self._clock() if moved or last is None else last.moved_s)

    def forget(self, key: str) -> None:
        """Partition `key` is no longer ours."""
        self._seen.pop(key, None)
        self._waits.pop(key, None)

    def wait_for(self, key: str, reason: str | None) -> None:
        """`key` is not ready for `reason`; None: it is. What waits on purpose is not dead."""
        if reason is None:
            self._waits.pop(key, None)
        else:
            self._waits[key] = reason

    def live(self) -> str | None:
        """None, or why this process should be restarted."""
        now = self._clock()
        if now - self._beat_s > BEATS_LATE_S_MAX:
            return f"the event loop has not run for {now - self._beat_s:.0f} s"
        for key, seen in list(self._seen.items()):
            still_s = now - seen.moved_s
            if key not in self._waits and seen.position < seen.end and still_s > self._stall_s_max:
                return f"{key} stands at offset {seen.position} of {seen.end} for {still_s:.0f} s"
        return None

    def ready(self) -> str | None:
        """None, or what is still being prepared."""
        return "; ".join(f"{key}: {reason}" for key, reason in sorted(self._waits.items())) or None
