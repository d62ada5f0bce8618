"""From scores to integer propensities, and from a draw to the chosen candidate.

Owns the arithmetic of learning.md rules 15 to 18. Everything is float64 with IEEE-exact operations only (no library
``exp``, no fused multiply-add), so that the same scores give the same integers on every machine: the probes of a
snapshot demand it (rule 20). Knows nothing of weights' shapes, of Kafka or of time.

Shape legend
    N rows (decisions), M candidates of all rows, row after row

Invariants, for every row with at least one allowed candidate and at most `NUM_CANDIDATES_MAX` of them: the integers
sum to `PROPENSITY_ONE`, a masked candidate has 0, an allowed one at least `PROPENSITY_MIN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numba import njit

from learner.policy import network
from schemas.arrays import F64, I32, I64
from schemas.decision_columns import PROPENSITY_ONE

if TYPE_CHECKING:
    from schemas.task import Task

Mask = npt.NDArray[np.bool_]

PROPENSITY_MIN = 16
"""Smallest propensity of an allowed candidate: about 1e-6, so an importance weight never exceeds a million."""

NUM_CANDIDATES_MAX = 1 << 16
"""With more, the floors alone would take over 6 % of the probability (learning.md rule 15)."""

NEWCOMER_ROWS = 30
"""An action of a declared catalogue is a newcomer until this many rows have been learnt from it (rule 16)."""

NEWCOMER_WIDTH = 10.0 * float(np.sqrt(NEWCOMER_ROWS)) / 0.5
"""γ of a task with 30 rows and a reward sd of .5: what a newcomer's floor 1/(K + width) is derived from."""

SQUARECB, EPSILON, SOFTMAX = 0, 1, 2
_KINDS = {"squarecb": SQUARECB, "epsilon": EPSILON, "softmax": SOFTMAX}

_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10


@dataclass(frozen=True, slots=True)
class Explorer:
    """One task's exploration under one snapshot: what does not change between requests, worked out once."""

    kind: int
    """`SQUARECB`, `EPSILON` or `SOFTMAX`."""
    strength: float
    """See `strength_of`."""
    newcomers: Mask
    """(K,) True for an action of the catalogue that is a newcomer; (0,) without a catalogue."""

    @classmethod
    def of(cls, weights: Mapping[str, Any], task: Task) -> Explorer:
        """From the task's arrays of one snapshot."""
        num_rows, reward_sd = network.reward_stats(weights)
        kind = _KINDS[task.exploration.kind]
        return cls(kind, strength_of(kind, task, num_rows, reward_sd), newcomers_of(task, weights))

    def integers(self, scores: F64, num_candidates: I32, allowed: Mask) -> I32:
        """As the function of that name."""
        return _checked(_integers(scores, num_candidates, allowed, self.kind, self.strength, self.newcomers))


def integers(scores: F64, num_candidates: I32, allowed: Mask, weights: Mapping[str, Any], task: Task) -> I32:
    """Propensities (M,) of the task's exploration over what the guardrails left.

    `scores` (M,) float64 finite, `num_candidates` (N,), `allowed` (M,); `weights` the task's arrays of one snapshot.
    Raises ValueError for scores that are not finite, for a row without an allowed candidate or with too many.
    """
    return Explorer.of(weights, task).integers(scores, num_candidates, allowed)


def strength_of(kind: int, task: Task, num_rows: float, reward_sd: float) -> float:
    """The one number of an exploration: γ = c·√n / sd (SquareCB), ε, or 1 / (temperature · sd) of a softmax."""
    if kind == SQUARECB:
        return float(task.exploration.gamma * np.sqrt(num_rows) / reward_sd) if num_rows > 0 else 0.0
    if kind == EPSILON:
        return task.exploration.epsilon
    return float(1.0 / (task.exploration.temperature * reward_sd))


def newcomers_of(task: Task, weights: Mapping[str, Any]) -> Mask:
    """(K,) actions of a declared catalogue with fewer than `NEWCOMER_ROWS` rows learnt; (0,) without a catalogue."""
    if not task.actions:
        return np.zeros(0, np.bool_)
    rows: I64 = np.asarray(network.action_rows(weights))
    return np.ascontiguousarray(rows < NEWCOMER_ROWS)


def baseline_integers(num_candidates: I32, allowed: Mask, baselines: I32, epsilon: float) -> I32:
    """Propensities (M,) without a policy: the baseline with 1 − ε, all allowed candidates uniformly with ε (rule 18).

    `baselines` (N,) index within the row, -1 for none; none, or a masked one, gives the uniform distribution, whose
    remainder goes to the lowest index. Raises as `integers`.
    """
    return _checked(_baseline_integers(num_candidates, allowed, baselines, epsilon))


def choose(propensities: I32, num_candidates: I32, draws: I32) -> I32:
    """Chosen index (N,) per row: the first candidate whose cumulative propensity exceeds the draw (rule 17).

    `draws` (N,) in [0, 2**24). Recomputable by anyone from the logged integers.

    >>> choose(np.array([16, 0, (1 << 24) - 16], np.int32), np.array([3], np.int32), np.array([16], np.int32))
    array([2], dtype=int32)
    """
    return np.asarray(_choose(propensities, num_candidates, draws))


def _checked(result: tuple[I32, int]) -> I32:
    """The integers, or the reason why row i has none."""
    propensities, bad_row = result
    if bad_row >= 0:
        raise ValueError(
            f"row {bad_row}: expected finite scores and 1 to {NUM_CANDIDATES_MAX} allowed candidates, got other ones"
        )
    return propensities


@njit(cache=True, nogil=True)
def exact_exp(x: float) -> float:
    """exp(x) for x ≤ 0 within 2 ulp, the same bits everywhere: range reduction and a Taylor sum of degree 13."""
    if x < -700.0:
        return 0.0
    k = np.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = 1.0
    for i in range(13, 0, -1):
        total = 1.0 + total * (r / i)
    scale = 1.0
    for _ in range(int(-k)):
        scale *= 0.5
    return total * scale


@njit(cache=True, nogil=True)
def _integers(
    scores: F64, num_candidates: I32, allowed: Mask, kind: int, strength: float, newcomers: Mask
) -> tuple[I32, int]:
    """Propensities of all rows, and the first row that cannot have any (-1: none)."""
    out = np.zeros(len(scores), np.int32)
    start = 0
    for row in range(len(num_candidates)):
        stop = start + num_candidates[row]
        size = 0
        best = -1
        finite = True
        for i in range(start, stop):
            finite &= np.isfinite(scores[i])
            if allowed[i]:
                size += 1
                if best < 0 or scores[i] > scores[best]:
                    best = i
        if not finite or size == 0 or size > NUM_CANDIDATES_MAX:
            return out, row
        floor = 1.0 / (size + NEWCOMER_WIDTH) if len(newcomers) == num_candidates[row] else 0.0
        if kind == SOFTMAX:
            _softmax_row(scores, allowed, out, start, stop, best, strength, floor, newcomers)
        else:
            for i in range(start, stop):
                if not allowed[i] or i == best:
                    continue
                if kind == SQUARECB:
                    gap = strength * (scores[best] - scores[i]) if strength > 0.0 else 0.0
                    p = 1.0 / (size + gap)
                else:
                    p = strength / size
                if floor > p and newcomers[i - start]:
                    p = floor
                out[i] = max(PROPENSITY_MIN, int(p * PROPENSITY_ONE))
        _give_rest(out, allowed, start, stop, best, size)
        start = stop
    return out, -1


@njit(cache=True, nogil=True)
def _softmax_row(
    scores: F64,
    allowed: Mask,
    out: I32,
    start: int,
    stop: int,
    best: int,
    strength: float,
    floor: float,
    newcomers: Mask,
) -> None:
    """Softmax of one row, mixed with the newcomers' floors so that everything still sums to at most one."""
    total = 0.0
    floors = 0.0
    for i in range(start, stop):
        if allowed[i]:
            total += exact_exp(max(-1e300, strength * (scores[i] - scores[best])))
            if floor > 0.0 and newcomers[i - start]:
                floors += floor
    for i in range(start, stop):
        if allowed[i] and i != best:
            p = (1.0 - floors) * (exact_exp(max(-1e300, strength * (scores[i] - scores[best]))) / total)
            if floor > 0.0 and newcomers[i - start]:
                p += floor
            out[i] = max(PROPENSITY_MIN, int(p * PROPENSITY_ONE))


@njit(cache=True, nogil=True)
def _give_rest(out: I32, allowed: Mask, start: int, stop: int, best: int, size: int) -> None:
    """The best candidate takes what the others left; if the floors left less than its own floor, they shrink.

    Only a softmax over many newcomers can need the shrinking; the other kinds leave the best at least 1/K.
    """
    taken = 0
    for i in range(start, stop):
        taken += out[i]
    if taken > PROPENSITY_ONE - PROPENSITY_MIN:
        room = PROPENSITY_ONE - PROPENSITY_MIN * size
        excess = taken - PROPENSITY_MIN * (size - 1)
        taken = 0
        for i in range(start, stop):
            if allowed[i] and i != best:
                out[i] = PROPENSITY_MIN + (out[i] - PROPENSITY_MIN) * room // excess
                taken += out[i]
    out[best] = PROPENSITY_ONE - taken


@njit(cache=True, nogil=True)
def _baseline_integers(num_candidates: I32, allowed: Mask, baselines: I32, epsilon: float) -> tuple[I32, int]:
    """As `_integers`, for the mix of a baseline and the uniform distribution."""
    out = np.zeros(len(allowed), np.int32)
    start = 0
    for row in range(len(num_candidates)):
        stop = start + num_candidates[row]
        size = 0
        first = -1
        for i in range(start, stop):
            if allowed[i]:
                size += 1
                if first < 0:
                    first = i
        if size == 0 or size > NUM_CANDIDATES_MAX:
            return out, row
        best = first
        share = 1.0 / size
        if baselines[row] >= 0 and allowed[start + baselines[row]]:
            best = start + baselines[row]
            share = epsilon / size
        for i in range(start, stop):
            if allowed[i] and i != best:
                out[i] = max(PROPENSITY_MIN, int(share * PROPENSITY_ONE))
        _give_rest(out, allowed, start, stop, best, size)
        start = stop
    return out, -1


@njit(cache=True, nogil=True)
def _choose(propensities: I32, num_candidates: I32, draws: I32) -> I32:
    """First candidate of each row whose running sum exceeds the draw; -1 if the integers sum to less."""
    chosen = np.full(len(num_candidates), -1, np.int32)
    start = 0
    for row in range(len(num_candidates)):
        total = 0
        for k in range(num_candidates[row]):
            total += propensities[start + k]
            if total > draws[row]:
                chosen[row] = k
                break
        start += num_candidates[row]
    return chosen
