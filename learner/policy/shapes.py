"""Do a task's arrays have the shapes that `network` documents? Asked before a snapshot serves.

The loops over token tables are compiled without bounds checks: a table that is too short would be read beyond its end.

Legend as in `learner.policy.network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from learner.policy.network import EMBEDDING_BITS
from learner.policy.token_crosses import IDF_BITS
from schemas.task import Task

FLOAT64 = frozenset(
    {"stats", "stack", "x_mean", "x_scale", "a_mean", "a_scale", "deep_norm"}
    | {"wide", "wide_x", "wide_a", "x_projection", "a_projection"}
)
DEEP = ("deep_x", "deep_a", "deep_b1", "deep_w2", "deep_b2", "deep_w3", "deep_norm")
REQUIRED = ("stats", "stack", "action_rows", "x_mean", "x_scale", "a_mean", "a_scale", "wide")


def fault_of(weights: Mapping[str, Any], task: Task) -> str | None:
    """None when every array is there with its dtype and shape, else one sentence that names the first that is not."""
    names = set(weights)
    missing = [name for name in REQUIRED if name not in names]
    if "deep_w2" in names:
        missing += [name for name in DEEP if name not in names]
    if missing:
        return f"array {missing[0]} is missing"
    for name, what in (("x_projection", 1), ("a_projection", 1), ("deep_w2", 0)):
        if name in names and _size(weights, name, what) == 0:  # the compiled pass takes 0 for "has none"
            return f"array {name} is empty: leave it out"
    wanted = expected(weights, task)
    for name in sorted(names):
        array = weights[name]
        if name not in wanted:
            return f"array {name} is none that this version knows"
        if array.shape != wanted[name]:
            return f"array {name} has shape {array.shape}, expected {wanted[name]}"
        if array.dtype != dtype_of(name):
            return f"array {name} is {array.dtype}, expected {dtype_of(name)}"
    return None


def dtype_of(name: str) -> np.dtype[Any]:
    """What an array of this name is made of."""
    return np.dtype(np.int64 if name == "action_rows" else np.float64 if name in FLOAT64 else np.float32)


def expected(weights: Mapping[str, Any], task: Task) -> dict[str, tuple[int, ...]]:
    """Shape of every array that may stand there, given the task and the few sizes the learner chooses.

    Those sizes are read from `deep_w2`, `deep_embedding`, `cross` and the projections, where they are arrays.
    """
    num_actions, dx, da = len(task.actions), task.context.width, task.action.width
    px = _size(weights, "x_projection", 1) if "x_projection" in weights else dx
    pa = _size(weights, "a_projection", 1) if "a_projection" in weights else da
    hidden = _size(weights, "deep_w2", 0)
    embedded = _size(weights, "deep_embedding", 1)
    num_links = min(2, max(1, _size(weights, "cross", 1)))
    num_experts = 1 + ("deep_w2" in weights) + (num_links if "cross" in weights else 0)
    return {
        "stats": (6,),
        "stack": (num_experts,),
        "action_rows": (num_actions,),
        "x_mean": (dx,),
        "x_scale": (dx,),
        "a_mean": (da,),
        "a_scale": (da,),
        "wide": (1 + px, num_actions or 1 + pa),
        "wide_x": (dx,),
        "wide_a": (da,),
        "x_projection": (dx, px),
        "a_projection": (da, pa),
        "deep_x": (dx, hidden),
        "deep_a": (da, hidden),
        "deep_id": (num_actions, hidden),
        "deep_tx": (embedded, hidden),
        "deep_ta": (embedded, hidden),
        "deep_embedding": (1 << EMBEDDING_BITS, embedded),
        "deep_b1": (hidden,),
        "deep_w2": (hidden, hidden),
        "deep_b2": (hidden,),
        "deep_w3": (hidden,),
        "deep_norm": (3,),
        "cross": (1 << task.learner.cross_bits, num_links),
        "cross_idf": (1 << IDF_BITS,),
    }


def _size(weights: Mapping[str, Any], name: str, axis: int) -> int:
    shape = getattr(weights.get(name), "shape", ())
    return int(shape[axis]) if len(shape) > axis else 0
