"""Weights that know nothing: every array a task's snapshot may hold, of the right shape, read-only like a real one.

For rehearsals: a worker that decides with them once has compiled what the first real snapshot will need. Never served.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.policy import network, shapes
from learner.policy.network import EMBEDDING_BITS
from schemas.task import Task

HIDDEN = 8
EMBEDDED = 4
"""Sizes that the learner chooses; any will do here."""


def blank_weights(task: Task) -> dict[str, Any]:
    """The task's arrays as its learner would name them, all zero but the reward's variance."""
    tokens = task.context.has_tokens or task.action.has_tokens
    crossed = task.action.has_tokens or (task.context.has_tokens and bool(task.actions))
    sizes: dict[str, Any] = dict.fromkeys(shapes.REQUIRED)
    if task.learner.deep:
        sizes |= dict.fromkeys(shapes.DEEP)
        sizes["deep_w2"] = np.zeros((HIDDEN, HIDDEN), np.float32)
        if task.actions:
            sizes["deep_id"] = None
        if tokens:
            sizes |= {"deep_tx": None} if task.context.has_tokens else {}
            sizes |= {"deep_ta": None} if task.action.has_tokens else {}
            sizes["deep_embedding"] = np.zeros((1 << EMBEDDING_BITS, EMBEDDED), np.float32)
    if task.learner.cross and crossed:
        num_links = 2 if task.reward.binary else 1
        sizes["cross"] = np.zeros((1 << task.learner.cross_bits, num_links), np.float32)
        if task.context.has_text or task.action.has_text:
            sizes["cross_idf"] = None
    wanted = shapes.expected(sizes, task)
    weights = {name: np.zeros(wanted[name], shapes.dtype_of(name)) for name in sizes}
    weights["stats"][network.REWARD_VAR] = 1.0
    for array in weights.values():
        array.flags.writeable = False
    return weights
