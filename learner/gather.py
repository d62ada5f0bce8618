"""Rows of a block in any order: the one place where ragged columns are permuted.

Owns the index arithmetic of `FeatureColumns`, `DecisionColumns` and `TransitionBlock` under a permutation or a
selection of rows. Whole-column numpy only: the number of Python calls does not depend on the number of rows.

Shape legend: N rows of the block, R rows taken, M candidates, S slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.arrays import I64
from schemas.blocks import TransitionBlock
from schemas.decision_columns import DecisionColumns, FeatureColumns

Array = npt.NDArray[Any]


def ragged_index(counts: Array, order: I64) -> I64:
    """Element indices of rows `order` in a column whose row i has ``counts[i]`` elements.

    >>> ragged_index(np.array([2, 0, 1]), np.array([2, 0])).tolist()
    [2, 0, 1]
    """
    counts = counts.astype(np.int64)
    starts = np.cumsum(counts) - counts
    taken = counts[order]
    ends = np.cumsum(taken)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts[order] - (ends - taken), taken) + np.arange(total, dtype=np.int64)


def _rows(column: Array, order: I64) -> Array:
    """Rows of a column that may be unused (empty)."""
    return column[order] if len(column) else column


def take_features(features: FeatureColumns, order: I64) -> FeatureColumns:
    """Rows `order` (R,) of `features`, as owned arrays."""
    candidates = ragged_index(features.num_candidates, order)
    context_tokens = ragged_index(features.context_token_counts, order) if len(features.context_token_counts) else None
    action_tokens = (
        ragged_index(features.action_token_counts, candidates) if len(features.action_token_counts) else None
    )

    def tokens(column: Array, index: I64 | None) -> Array:
        return column if index is None else column[index]

    return FeatureColumns(
        context=features.context[order],
        num_candidates=features.num_candidates[order],
        actions=_rows(features.actions, candidates),
        action_keys=_rows(features.action_keys, candidates),
        context_token_counts=_rows(features.context_token_counts, order),
        context_tokens=tokens(features.context_tokens, context_tokens),
        context_token_values=tokens(features.context_token_values, context_tokens),
        action_token_counts=_rows(features.action_token_counts, candidates),
        action_tokens=tokens(features.action_tokens, action_tokens),
        action_token_values=tokens(features.action_token_values, action_tokens),
    )


def take_decisions(columns: DecisionColumns, order: I64) -> DecisionColumns:
    """Rows `order` (R,) of `columns`."""
    propensities = ragged_index(columns.features.num_candidates * columns.num_slots, order)
    return DecisionColumns(
        features=take_features(columns.features, order),
        catalogue=columns.catalogue,
        chosen=columns.chosen[order],
        propensities=columns.propensities[propensities],
        reasons=columns.reasons[order],
        values=_rows(columns.values, order),
        bounds=_rows(columns.bounds, order),
        terminal=_rows(columns.terminal, order),
        steps=_rows(columns.steps, order),
        episode_keys=_rows(columns.episode_keys, order),
    )


def take(block: TransitionBlock, order: I64) -> TransitionBlock:
    """Rows `order` (R,) of `block`. The result is no link of a chain: its `partition` and `prev` are -1."""
    return replace(
        block,
        partition=-1,
        prev=-1,
        positions=block.positions[order],
        closed_at_ms=block.closed_at_ms[order],
        buckets=block.buckets[order],
        flags=block.flags[order],
        rewards=block.rewards[order],
        num_outcomes=block.num_outcomes[order],
        snapshot_versions=block.snapshot_versions[order],
        decision_keys=block.decision_keys[order],
        columns=take_decisions(block.columns, order),
    )
