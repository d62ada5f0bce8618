"""Stack: how much each expert's progressive predictions are worth, by ridge regression toward a prior.

Pure. Fed once per step of 256 rows with predictions made before any of those rows was learnt (learning.md rule 9), so
an expert that fits noise earns nothing. Breiman 1996, "Stacked regressions", with forgetting.

    S = q S + Z'Z    c = q c + Z'(y - mean y)    w = (S + r I)^-1 (c + r w0)    Z = F - mean F

Means are those of the step: what matters for a choice is differences between candidates. Around a slow centre, an
expert that merely follows the level of the reward as the policy gets better, or as the world changes, took all the
weight (docs/decisions).

Shape legend: N rows of a step, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.arrays import F64

HALF_LIFE = 32_000.0
"""Rows after which a prediction counts half."""
PSEUDO_ROWS = 1_000.0
"""The prior weighs as much as this many rows of average spread."""


class Stack:
    """Weights of the experts of one task."""

    def __init__(self, prior: F64) -> None:
        """`prior` (E,): weights before anything has been seen."""
        self.prior = prior
        self.weights = prior.copy()
        self.centre = 0.0
        self._n = 0.0
        self._gram = np.zeros((len(prior), len(prior)))
        self._cross = np.zeros(len(prior))

    def combined(self, predictions: F64) -> F64:
        """(N,) the stacked prediction of predictions (N, E)."""
        out: F64 = self.centre + (predictions - self.centre) @ self.weights
        return out

    def learn(self, predictions: F64, y: F64) -> None:
        """Learn a step: progressive `predictions` (N, E) and rewards (N,)."""
        keep = 0.5 ** (len(y) / HALF_LIFE)
        self._n = self._n * keep + len(y)
        self.centre += (float(y.mean()) - self.centre) * len(y) / self._n
        z = predictions - predictions.mean(0)
        self._gram = self._gram * keep + z.T @ z
        self._cross = self._cross * keep + z.T @ (y - y.mean())
        size = len(self.prior)
        ridge = PSEUDO_ROWS * float(np.trace(self._gram)) / size / self._n
        if not ridge > 0.0:
            return
        solved = np.linalg.solve(self._gram + ridge * np.eye(size), self._cross + ridge * self.prior)
        if np.isfinite(solved).all():
            self.weights = np.asarray(solved, np.float64)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of everything."""
        return {
            "weights": self.weights.copy(),
            "gram": self._gram.copy(),
            "cross": self._cross.copy(),
            "sums": np.array([self.centre, self._n]),
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task."""
        self.weights, self._gram = np.array(state["weights"]), np.array(state["gram"])
        self._cross = np.array(state["cross"])
        self.centre, self._n = (float(value) for value in state["sums"])
