"""Replay: a ring of the rows learnt, and which of them a step looks at again.

Rows are kept as logged (raw features), so a later scaling applies to all of them; token weights as they were when the
row was learnt. Indices come from Philox by (seed, step), so they are a function of the log (learning.md rule 22).

Shape legend
    N rows, T = 64 tokens at most per side, Dx and Da dense features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.design import uniforms
from schemas.arrays import F32, F64, I64

CAPACITY = 131_072
_STREAM = 16
"""First Philox stream of replay; lower ones belong to `learner.design` and `learner.deep`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs of the deep expert."""

    x: F32
    """(N, Dx) raw."""
    a: F32
    """(N, Da) raw."""
    ids: I64
    """(N,) or (N,) zeros without a catalogue."""
    x_slots: npt.NDArray[np.uint16]
    """(N, T) slots of the embedding table, (N, 0) without tokens."""
    x_weights: F32
    """(N, T) 0 where there is no token."""
    a_slots: npt.NDArray[np.uint16]
    a_weights: F32
    y: F64
    """(N,)"""

    def __len__(self) -> int:
        return len(self.y)


class Ring:
    """The newest `CAPACITY` rows of a task."""

    def __init__(self) -> None:
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self.num_seen = 0
        self._cut = 0
        """Rows before this one are never looked at again (drift)."""

    @property
    def oldest(self) -> int:
        """First row still looked at."""
        return max(self.num_seen - CAPACITY, self._cut)

    def add(self, rows: Rows) -> None:
        """Append rows, at most `CAPACITY` at a time."""
        self._reserve(rows, min(CAPACITY, self.num_seen + len(rows)))
        at = (self.num_seen + np.arange(len(rows))) % CAPACITY
        for name in Rows.__slots__:
            self._columns[name][at] = getattr(rows, name)
        self.num_seen += len(rows)

    def _reserve(self, like: Rows, num_rows: int) -> None:
        held = len(self._columns["y"]) if self._columns else 0
        if num_rows <= held:
            return
        size = min(CAPACITY, max(4096, 2 * held, num_rows))
        for name in Rows.__slots__:
            column = getattr(like, name)
            grown = np.zeros((size, *column.shape[1:]), column.dtype)
            if held:
                grown[:held] = self._columns[name]
            self._columns[name] = grown

    def sample(self, count: int, seed: int, step: int) -> Rows:
        """`count` rows drawn uniformly with replacement from those still looked at."""
        first = self.oldest
        drawn = first + (uniforms(seed, _STREAM + step, count) * (self.num_seen - first)).astype(np.int64)
        return self.at(drawn)

    def at(self, rows: I64) -> Rows:
        """Rows by their number, copies."""
        return Rows(**{name: self._columns[name][rows % CAPACITY] for name in Rows.__slots__})

    def reward_moments(self) -> tuple[float, float]:
        """Mean and variance of the rewards still looked at."""
        y = self._columns["y"][np.arange(self.oldest, self.num_seen) % CAPACITY]
        return float(y.mean()), float(y.var())

    def keep_last(self, count: int) -> None:
        """Drift: look only at the last `count` rows, and at those to come."""
        self._cut = max(self._cut, self.num_seen - count)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of everything held, no more rows than there are."""
        held = min(self.num_seen, CAPACITY)
        out = {name: column[:held].copy() for name, column in self._columns.items()}
        return out | {"counts": np.array([self.num_seen, self._cut], np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task."""
        self._columns = {name: np.array(state[name]) for name in Rows.__slots__ if name in state}
        self.num_seen, self._cut = (int(value) for value in state["counts"])
