"""Drift: a test of whether a quickly forgetting twin predicts better than what serves.

Pure. Fed once per step of 256 rows with progressive predictions. Both differences of squared errors, wide against twin
and stacked against twin, are averaged with exponential weights ω (half-life 2,048 rows); learning.md rule 11.

    t = (Σω d / Σω) / sqrt(var · Σω² / (Σω)²)

A reset needs t > 4 for the wide head *and* t > 2 for the stack: the first alone fired two to four times in 60,000
stationary decisions of a world that the wide head cannot express.
"""

from __future__ import annotations

import numpy as np

from schemas.arrays import F64

HALF_LIFE = 2_048.0
TWIN_HALF_LIFE = 8_000.0
"""Rows after which the twin has forgotten half."""
T_WIDE = 4.0
T_STACK = 2.0
NUM_ROWS_MIN = 8_192
"""No reset before the task has this many rows: the twin has hardly forgotten anything yet."""


class DriftTest:
    """Sums of one task."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 2))
        """Σω d and Σω d², for wide and for stacked."""
        self._omega = np.zeros(2)
        """Σω and Σω²."""

    def learn(self, y: F64, wide: F64, twin: F64, stacked: F64) -> None:
        """Learn a step: rewards and progressive predictions, each (N,)."""
        keep = 0.5 ** (len(y) / HALF_LIFE)
        self._sums *= keep
        self._omega *= (keep, keep * keep)
        of_twin = (twin - y) ** 2
        for place, predictions in enumerate((wide, stacked)):
            difference = (predictions - y) ** 2 - of_twin
            self._sums[place] += (difference.sum(), (difference * difference).sum())
        self._omega += len(y)

    @property
    def t(self) -> F64:
        """(2,) how many standard errors the twin is better than wide and than stacked; 0 without any difference."""
        total, squares = self._omega
        if not total:
            return np.zeros(2)
        mean, square = self._sums[:, 0] / total, self._sums[:, 1] / total
        variance = np.maximum(square - mean * mean, 0.0) * squares / (total * total)
        out: F64 = np.divide(mean, np.sqrt(variance), out=np.zeros(2), where=variance > 0.0)
        return out

    @property
    def fires(self) -> bool:
        """Whether both tests call for a reset."""
        wide, stacked = self.t
        return bool(wide > T_WIDE and stacked > T_STACK)

    def reset(self) -> None:
        """Forget all sums."""
        self._sums[:], self._omega[:] = 0.0, 0.0

    def state(self) -> F64:
        """(3, 2) copies of everything."""
        return np.concatenate([self._sums, self._omega[None]])

    def load_state(self, state: F64) -> None:
        """Go on from a state."""
        self._sums, self._omega = np.array(state[:2]), np.array(state[2])
