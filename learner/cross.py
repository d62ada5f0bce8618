"""Cross: the token × token expert. A diagonal Gaussian posterior over hashed crosses, one row after another.

Owns the tables, their sequential update, idf, and the frozen copy that progressive predictions come from. Rows are
learnt in order one by one, so any split of them gives the same tables.

    linear      e = y - base - Σ w v        d = 1 + Σ v²/P          w += (v/P) e/d      P += v²
    logistic    e = y - σ(Σ w v)            d = 1 + κ Σ v²/P        w += (v/P) e/d      P += κ v²     κ = p(1-p)

(Kalman filter with a diagonal covariance; the logistic one with Laplace's approximation: Jaakkola & Jordan 2000, §3.)
The base of the linear link is the mean reward so far. The logistic link starts at p = ½: optimism, which drives
exploration of what is not known yet (docs/decisions). Idf counts a row after it was learnt (learning.md rule 4).

Shape legend
    N rows, B = 2**cross_bits slots, L links (1, or 2 with the logistic one), J idf slots
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from learner.chosen import Chosen
from learner.policy.token_crosses import CONSTANT, IDF_BITS, NO_ID, idf_slot, slot_of, weigh
from schemas.arrays import F32, F64
from schemas.decision_columns import TEXT_TOKEN

SHARE = 3.0
"""Prior of the linear link: one row's crosses may explain this much of the noise variance; P0 = 1/share."""
PRECISION_LOGISTIC = 0.03
"""P0 of the logistic link: weights of ±6, so a few rows may move a probability far."""
CURVATURE_MIN = 1e-3
"""κ is at least this: a row that was certain and wrong must still narrow the posterior."""
DRIFT_FACTOR = 0.1
"""What is left after a reset of the precision that rows have added to P0: the tables forget nothing but believe less
(hybrid-learner.md §2). P0 itself stays: a cross that no row has shown is as unknown after a reset as before it, and a
prior that shrank with every reset would let the first row of each new word explain the whole reward."""


class Cross:
    """Tables of one task."""

    def __init__(self, bits: int, logistic: bool, has_text: bool) -> None:
        self._bits = bits
        links = 2 if logistic else 1
        self._w = np.zeros((1 << bits, links))
        self._prior = np.array([1.0 / SHARE, PRECISION_LOGISTIC])[:links]
        """P0 (L,)."""
        self._precision = np.tile(self._prior, (1 << bits, 1))
        self._df = np.zeros(1 << IDF_BITS if has_text else 0)
        self._counts = np.zeros(2)
        """Rows and sum of rewards learnt."""
        self._frozen_w = self._w.copy()
        self._frozen_df = self._df.copy()
        self._frozen_counts = self._counts.copy()

    @property
    def num_links(self) -> int:
        """L."""
        return int(self._w.shape[1])

    def learn(self, rows: Chosen, default: float) -> None:
        """Learn rows in order. `default`: the task's default reward, the base before the first row."""
        _learn(
            self._w,
            self._precision,
            self._df,
            self._counts,
            default,
            *(rows.x_bounds, rows.x_tokens, rows.x_values),
            *(rows.a_bounds, rows.a_tokens, rows.a_values),
            rows.id_tokens,
            rows.y,
            np.uint64(64 - self._bits),
        )

    def freeze(self, rows: Chosen) -> None:
        """End of a step: progressive predictions come from the present tables on. `rows`: those of the step."""
        self._mark_step(rows)
        self._frozen_df[:] = self._df
        self._frozen_counts[:] = self._counts

    def _mark_step(self, rows: Chosen) -> None:
        _copy_touched(
            self._frozen_w,
            self._w,
            *(rows.x_bounds, rows.x_tokens, rows.x_values),
            *(rows.a_bounds, rows.a_tokens, rows.a_values),
            rows.id_tokens,
            np.uint64(64 - self._bits),
        )

    def forget(self) -> None:
        """Drift: the posterior widens, up to the prior."""
        self._precision = self._prior + DRIFT_FACTOR * (self._precision - self._prior)

    def progressive(self, default: float) -> dict[str, npt.NDArray[Any]]:
        """The frozen arrays under the names of `learner.policy.network`, and the base under "base"."""
        out: dict[str, npt.NDArray[Any]] = {"cross": self._frozen_w, "base": _base(self._frozen_counts, default)}
        if len(self._df):
            out["cross_idf"] = idf_of(self._frozen_df, self._frozen_counts[0])
        return out

    def weights(self, default: float) -> dict[str, npt.NDArray[Any]]:
        """The present arrays as published, and the base under "base"."""
        base = _base(self._counts, default)
        out: dict[str, npt.NDArray[Any]] = {"cross": self._w.astype(np.float32), "base": base}
        if len(self._df):
            out["cross_idf"] = idf_of(self._df, self._counts[0])
        return out

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of everything."""
        return {name: getattr(self, "_" + name).copy() for name in STATE}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task."""
        for name in STATE:
            getattr(self, "_" + name)[...] = state[name]


STATE = ("w", "precision", "df", "counts", "frozen_w", "frozen_df", "frozen_counts")


def _base(counts: F64, default: float) -> F64:
    return np.array((counts[1] + default) / (counts[0] + 1.0))


def idf_of(df: F64, num_rows: float) -> F32:
    """Inverse document frequency (J,) of every slot: ln((n + 1) / (df + ½)), at least 0 (Robertson & Spärck Jones)."""
    out: F32 = np.maximum(np.log((num_rows + 1.0) / (df + 0.5)), 0.0).astype(np.float32)
    return out


@njit(cache=True, nogil=True)
def _learn(w, precision, df, counts, default, xb, xt, xv, ab, at, av, ids, y, shift):  # type: ignore[no-untyped-def]  # numba
    links = w.shape[1]
    x_max = 1
    a_max = 1
    for i in range(len(y)):
        x_max = max(x_max, xb[i + 1] - xb[i] + 1)
        a_max = max(a_max, ab[i + 1] - ab[i] + 1)
    xh, xw = np.empty(x_max, np.uint64), np.empty(x_max)
    ah, aw = np.empty(a_max, np.uint64), np.empty(a_max)
    idf = np.zeros(len(df), np.float32)
    slots = np.empty(x_max * a_max, np.int64)
    values = np.empty(x_max * a_max)
    for i in range(len(y)):
        _refresh_idf(idf, df, counts[0], xt, xb[i], xb[i + 1])
        _refresh_idf(idf, df, counts[0], at, ab[i], ab[i + 1])
        constant = NO_ID if len(ids) > 0 else CONSTANT
        num_x = weigh(xt, xv, xb[i], xb[i + 1], idf, constant, xh, xw, 0, False)
        id_token = ids[i] if len(ids) > 0 else NO_ID
        num_a = weigh(at, av, ab[i], ab[i + 1], idf, id_token, ah, aw, 0, True)
        num = 0
        for q in range(num_a):
            for p in range(num_x):
                slots[num] = slot_of(xh[p], ah[q], shift)
                values[num] = xw[p] * aw[q]
                num += 1
        base = (counts[1] + default) / (counts[0] + 1.0)
        for link in range(links):
            total = 0.0
            spread = 0.0
            for c in range(num):
                total += w[slots[c], link] * values[c]
                spread += values[c] * values[c] / precision[slots[c], link]
            curvature = 1.0
            error = y[i] - base - total
            if link == 1:
                p = 0.5 * (1.0 + np.tanh(0.5 * total))
                curvature = max(p * (1.0 - p), CURVATURE_MIN)
                error = y[i] - p
            gain = error / (1.0 + curvature * spread)
            for c in range(num):
                w[slots[c], link] += values[c] / precision[slots[c], link] * gain
            for c in range(num):
                precision[slots[c], link] += curvature * values[c] * values[c]
        counts[0] += 1.0
        counts[1] += y[i]
        if len(df) > 0:
            _count(df, xt, xb[i], xb[i + 1])
            _count(df, at, ab[i], ab[i + 1])


@njit(cache=True, nogil=True, inline="always")
def _refresh_idf(idf, df, num_rows, tokens, start, stop):  # type: ignore[no-untyped-def]  # numba
    """The idf slots of these tokens as of now; the others of `idf` are stale and not read."""
    if len(df) > 0:
        for t in range(start, stop):
            if tokens[t] >= TEXT_TOKEN:
                slot = idf_slot(tokens[t])
                idf[slot] = max(np.log((num_rows + 1.0) / (df[slot] + 0.5)), 0.0)


@njit(cache=True, nogil=True, inline="always")
def _count(df, tokens, start, stop):  # type: ignore[no-untyped-def]  # numba
    for t in range(start, stop):
        if tokens[t] >= TEXT_TOKEN:
            df[idf_slot(tokens[t])] += 1.0


@njit(cache=True, nogil=True)
def _copy_touched(frozen, w, xb, xt, xv, ab, at, av, ids, shift):  # type: ignore[no-untyped-def]  # numba
    """Copy every slot that these rows' crosses stand in; weights do not matter, so no idf."""
    x_max = 1
    a_max = 1
    num_rows = len(xb) - 1
    for i in range(num_rows):
        x_max = max(x_max, xb[i + 1] - xb[i] + 1)
        a_max = max(a_max, ab[i + 1] - ab[i] + 1)
    xh, xw = np.empty(x_max, np.uint64), np.empty(x_max)
    ah, aw = np.empty(a_max, np.uint64), np.empty(a_max)
    no_idf = np.zeros(0, np.float32)
    for i in range(num_rows):
        constant = NO_ID if len(ids) > 0 else CONSTANT
        num_x = weigh(xt, xv, xb[i], xb[i + 1], no_idf, constant, xh, xw, 0, False)
        id_token = ids[i] if len(ids) > 0 else NO_ID
        num_a = weigh(at, av, ab[i], ab[i + 1], no_idf, id_token, ah, aw, 0, True)
        for q in range(num_a):
            for p in range(num_x):
                slot = slot_of(xh[p], ah[q], shift)
                for link in range(w.shape[1]):
                    frozen[slot, link] = w[slot, link]
