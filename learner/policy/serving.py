"""The forward pass of `learner.policy.network` for one micro-batch of decisions, with as few calls as will do.

Owns nothing but the order of calls: the same operations on the same operands, so the same bits as `network.scores`
(a test holds it to that on random weights and features). A decision is so small that numpy's cost per call is all it
costs: `network`, which serves torch and thousands of rows as well, makes three times as many calls.

Numpy weights only. Shape legend as in `learner.policy.network`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from learner.policy import network
from learner.policy.network import CENTRE, CLIP, Prepared
from schemas.blocks import F32, F64, I64, FeatureColumns
from schemas.task import Task


@dataclass(frozen=True, slots=True)
class Forward:
    """One task's weights under one snapshot, laid out for `scores`."""

    ready: Prepared
    centre: float
    stack: F64
    x_mean: F64
    x_scale: F64
    a_mean: F64
    a_scale: F64
    """Owned copies: what comes out of a snapshot may be unaligned, and numba would compile another version for it."""
    wide_constant: F64
    """(1+Pa,) or (K,) the product's row of the context's constant."""
    wide_product: F64
    """(Px, 1+Pa) or (Px, K) the other rows."""
    is_wide_plain: bool
    """No projection and no main effects beside the product."""
    deep_norm: tuple[float, float, float] | None
    """Mean, sd and last bias of the deep expert, None without one."""
    has_tokens: bool
    """Some expert looks at tokens."""

    @classmethod
    def of(cls, weights: network.TaskWeights, task: Task) -> Forward:
        """From the task's arrays of one snapshot, prepared or as published."""
        ready = network.prepare(weights, task)
        arrays = ready.weights
        norm = None
        if "deep_w2" in arrays:
            mean, sd, bias = np.asarray(arrays["deep_norm"]).tolist()
            norm = mean, sd, bias
        beside = ("x_projection", "a_projection", "wide_x", "wide_a")
        return cls(
            ready=ready,
            centre=float(arrays["stats"][CENTRE]),
            stack=np.asarray(arrays["stack"]),
            x_mean=np.array(arrays["x_mean"], np.float64),
            x_scale=np.array(arrays["x_scale"], np.float64),
            a_mean=np.array(arrays["a_mean"], np.float64),
            a_scale=np.array(arrays["a_scale"], np.float64),
            wide_constant=arrays["wide"][0],
            wide_product=arrays["wide"][1:],
            is_wide_plain=not any(name in arrays for name in beside),
            deep_norm=norm,
            has_tokens="cross" in arrays or "deep_embedding" in arrays,
        )

    def scores(self, features: FeatureColumns) -> F64:
        """`network.scores` of these weights, to the last bit: expected reward (M,) of every candidate."""
        ready = self.ready
        zx = _standardised(np.ascontiguousarray(features.context), self.x_mean, self.x_scale)
        catalogue = ready.z_actions is not None
        if catalogue:
            za = ready.z_actions
        else:
            za = _standardised(np.ascontiguousarray(features.actions), self.a_mean, self.a_scale)
        rows = None if len(features) == 1 else np.arange(len(features)).repeat(features.num_candidates)
        experts = [self._wide(zx, za, rows, catalogue)]
        x_tokens, a_tokens = network.tokens_of(ready, features) if self.has_tokens else network.NO_TOKENS
        if self.deep_norm is not None:
            experts.append(self._deep(zx, za, rows, x_tokens, a_tokens, self.deep_norm))
        if "cross" in ready.weights:
            experts += network.cross_scores(ready.weights, features.num_candidates, catalogue, x_tokens, a_tokens)
        by_expert = np.empty((len(experts[0]), len(experts)))
        for place, column in enumerate(experts):
            np.subtract(column, self.centre, by_expert[:, place])
        out: F64 = by_expert @ self.stack
        out += self.centre
        return out

    def _wide(self, zx: F64, za: F64, rows: I64 | None, catalogue: bool) -> F64:
        """(M,) as `network.wide_scores`."""
        if not self.is_wide_plain:
            every = np.zeros(len(za), np.int64) if rows is None else rows
            return np.asarray(network.wide_scores(self.ready.weights, zx, za, every, catalogue))
        left: F64 = zx @ self.wide_product
        left += self.wide_constant
        if catalogue:
            return left.reshape(-1)
        if rows is not None:
            left = left.take(rows, 0)
        out: F64 = np.add.reduce(left[:, 1:] * za, 1)
        out += left[:, 0]
        return out

    def _deep(
        self, zx: F64, za: F64, rows: I64 | None, x_tokens: Any, a_tokens: Any, norm: tuple[float, float, float]
    ) -> F64:
        """(M,) as `network.deep_output` of both sides."""
        ready, weights = self.ready, self.ready.weights
        left: F32 = network.deep_context_side(weights, zx, x_tokens)
        if ready.a_hidden is not None:
            first = (left[:, None, :] + ready.a_hidden).reshape(-1, left.shape[1])
        else:
            first = network.deep_action_side(weights, za, a_tokens)
            first += left if rows is None else left.take(rows, 0)
        hidden: F32 = _silu(first) @ weights["deep_w2"]
        hidden += weights["deep_b2"]
        mean, sd, bias = norm
        out: F64 = (_silu(hidden) @ weights["deep_w3"]).astype(np.float64)
        out += bias
        out *= sd
        out += mean
        return out


def _silu(x: F32) -> F32:
    """`network.silu` in one new array."""
    out = 0.5 * x
    np.tanh(out, out)
    out *= 0.5
    out += 0.5
    out *= x
    return out


@njit(cache=True, nogil=True)
def _standardised(dense, mean, scale):  # type: ignore[no-untyped-def]  # numba
    """`network.standardised` of (n, D) float32; NaN stays NaN, as with numpy's clip."""
    z = np.empty(dense.shape, np.float64)
    for row in range(dense.shape[0]):
        for column in range(dense.shape[1]):
            value = (np.float64(dense[row, column]) - mean[column]) * scale[column]
            if value < -CLIP:
                value = -CLIP
            elif value > CLIP:
                value = CLIP
            z[row, column] = value
    return z
