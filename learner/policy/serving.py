"""The forward pass of `learner.policy.network` as a worker runs it: laid out per snapshot, one compiled call.

The same experts on the same arrays, so the same scores but for rounding (a test holds it to that, on learnt and on
random weights). A decision is so small that numpy's cost per call is all it would cost; and these scores are the same
in any batch, see `learner.policy.serving_kernels`.

Numpy weights only. Shape legend as in `learner.policy.network`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.policy import network, token_crosses
from learner.policy import serving_kernels as kernels
from learner.policy.network import CENTRE, CROSS_BASE, Prepared
from schemas.arrays import F32, F64, I64, empty
from schemas.decision_columns import FeatureColumns
from schemas.task import Task

_NO_POOLED, _NO_CROSSES = empty(np.float32, 0, 0), empty(np.float64, 0, 0)


@dataclass(frozen=True, slots=True)
class Forward:
    """One task's weights under one snapshot, laid out for `scores`."""

    ready: Prepared
    sizes: I64
    doubles: F64
    singles: F32
    """See `learner.policy.serving_kernels`."""
    constants: F64
    """(5,) centre of the stack; mean, sd and last bias of the deep expert; base of the cross expert."""
    stack: F64
    first: F32
    """(K, H) the catalogue's part of the deep expert's first layer, (0, H) without one."""
    embedding: F32 | None
    """(slots, J) token embeddings, None without them."""
    cross: F32 | None
    """(slots, L) the cross expert's table, None without one."""

    @classmethod
    def of(cls, weights: network.TaskWeights, task: Task) -> Forward:
        """From the task's arrays of one snapshot, prepared or as published."""
        ready = network.prepare(weights, task)
        arrays = dict(ready.weights)
        sizes = _sizes(arrays, task)
        deep_norm = np.asarray(arrays["deep_norm"]).tolist() if "deep_w2" in arrays else [0.0, 0.0, 0.0]
        stats = np.asarray(arrays["stats"])
        singles = kernels.packed(arrays, kernels.SINGLES, np.float32)
        return cls(
            ready=ready,
            sizes=sizes,
            doubles=kernels.packed(arrays, kernels.DOUBLES, np.float64),
            singles=singles,
            constants=np.array([stats[CENTRE], *deep_norm, stats[CROSS_BASE]]),
            stack=np.array(arrays["stack"], np.float64),
            first=_first(ready, sizes, singles),
            embedding=np.array(arrays["deep_embedding"], np.float32) if "deep_embedding" in arrays else None,
            cross=np.asarray(arrays["cross"]) if "cross" in arrays else None,
        )

    def scores(self, features: FeatureColumns) -> F64:
        """Expected reward (M,) of every candidate, in units of the reward."""
        x_pooled = a_pooled = _NO_POOLED
        crosses = _NO_CROSSES
        if self.embedding is not None or self.cross is not None:
            shared = self.ready.a_tokens is not None
            x_tokens, a_tokens = network.tokens_of(self.ready, features)
            if self.embedding is not None and self.sizes[kernels.JX]:
                x_pooled = kernels.pooled(*x_tokens, self.embedding)
            if self.embedding is not None and self.sizes[kernels.JA] and not shared:
                a_pooled = kernels.pooled(*a_tokens, self.embedding)
            if self.cross is not None:
                crosses = token_crosses.sums(self.cross, features.num_candidates, shared, *x_tokens, *a_tokens)
        scores: F64 = kernels.scores(
            np.ascontiguousarray(features.context),
            np.ascontiguousarray(features.actions),
            features.num_candidates,
            self.sizes,
            self.doubles,
            self.singles,
            self.constants,
            self.stack,
            self.first,
            x_pooled,
            a_pooled,
            crosses,
        )
        return scores


def _sizes(arrays: dict[str, Any], task: Task) -> I64:
    """The kernels' `sizes`."""
    sizes = np.zeros(kernels.NUM_SIZES, np.int64)
    sizes[kernels.DX], sizes[kernels.DA] = task.context.width, task.action.width
    for place, name in ((kernels.PX, "x_projection"), (kernels.PA, "a_projection")):
        sizes[place] = arrays[name].shape[1] if name in arrays else 0
    sizes[kernels.WIDTH] = arrays["wide"].shape[1]
    sizes[kernels.HIDDEN] = arrays["deep_w2"].shape[0] if "deep_w2" in arrays else 0
    for place, name in ((kernels.JX, "deep_tx"), (kernels.JA, "deep_ta")):
        sizes[place] = arrays[name].shape[0] if name in arrays else 0
    for place, name in ((kernels.HAS_MAIN_X, "wide_x"), (kernels.HAS_MAIN_A, "wide_a")):
        sizes[place] = name in arrays
    sizes[kernels.CATALOGUE] = bool(task.actions)
    return sizes


def _first(ready: Prepared, sizes: I64, singles: F32) -> F32:
    """The catalogue's part of the first layer, by the arithmetic of the kernels."""
    hidden = int(sizes[kernels.HIDDEN])
    if ready.z_actions is None or not hidden:
        return empty(np.float32, 0, hidden)
    weights = ready.weights
    ids = np.array(weights["deep_id"], np.float32) if "deep_id" in weights else empty(np.float32, 0, hidden)
    a_pooled = _NO_POOLED
    if "deep_ta" in weights and ready.a_tokens is not None:
        a_pooled = kernels.pooled(*ready.a_tokens, np.array(weights["deep_embedding"], np.float32))
    first: F32 = kernels.catalogue_first(np.array(ready.z_actions, np.float64), ids, a_pooled, sizes, singles)
    return first
