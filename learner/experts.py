"""Experts: how a step's rows become the inputs of the deep and cross experts, and what the stack starts from.

Pure glue between the columns of rows and the forward pass of `learner.policy.network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.chosen import Chosen
from learner.policy import network, token_crosses
from learner.replay import Rows
from schemas.arrays import F64
from schemas.task import Task

_NO_IDF = np.zeros(0, np.float32)


def stack_prior(task: Task, deep: bool, num_links: int) -> F64:
    """(E,) weights of wide, deep and the cross links before anything has been predicted.

    The token expert, where there is one, gets 1: the logistic link where the reward is 0/1, else the linear one. The
    wide head gets 1 when it sees dense features; over declared ids alone it holds nothing but each action's
    popularity, which the policy's own choices distort. Deep must earn its weight.
    """
    dense = task.context.width > 0 or task.action.width > 0
    wide = 1.0 if dense or not num_links else 0.0
    links = [*([0.0] * (num_links - 1)), 1.0] if num_links else []
    return np.array([wide, *([0.0] * deep), *links])


def deep_rows(step: Chosen, idf: npt.NDArray[Any] | None, task: Task) -> Rows:
    """A step as inputs of the deep expert; token weights by the `idf` table (2**16,), None without text."""
    table = _NO_IDF if idf is None else idf
    x_width = network.EMBEDDED_TOKENS if task.context.has_tokens else 0
    a_width = network.EMBEDDED_TOKENS if task.action.has_tokens else 0
    joins = token_crosses.constants(len(step), bool(task.actions))
    x_slots, x_weights = _padded(step.x_bounds, step.x_tokens, step.x_values, table, joins, False, x_width)
    a_slots, a_weights = _padded(step.a_bounds, step.a_tokens, step.a_values, table, step.id_tokens, True, a_width)
    ids = step.ids if len(step.ids) else np.zeros(len(step), np.int64)
    return Rows(step.x, step.a, ids, x_slots, x_weights, a_slots, a_weights, step.y)


def _padded(
    bounds: Any, tokens: Any, values: Any, idf: Any, ids: Any, is_action: bool, width: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    weighed = token_crosses.weigh_side(bounds, tokens, values, idf, ids, is_action)
    slots, weights = token_crosses.padded(*weighed, width, network.EMBEDDING_BITS)
    return slots, weights


def chosen_cross(step: Chosen, arrays: Mapping[str, npt.NDArray[Any]]) -> list[F64]:
    """Predictions [(N,), …] of the cross expert's links for the chosen actions, by the given arrays."""
    idf = arrays.get("cross_idf", _NO_IDF)
    joins = token_crosses.constants(len(step), len(step.ids) > 0)
    x_tokens = token_crosses.weigh_side(step.x_bounds, step.x_tokens, step.x_values, idf, joins, False)
    a_tokens = token_crosses.weigh_side(step.a_bounds, step.a_tokens, step.a_values, idf, step.id_tokens, True)
    stats = np.zeros(6)
    stats[network.CROSS_BASE] = float(arrays["base"])
    weights = {"cross": arrays["cross"], "stats": stats}
    return network.cross_scores(weights, np.ones(len(step), np.int32), False, x_tokens, a_tokens)
