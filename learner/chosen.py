"""Chosen: what the learner keeps of a transition: its context, the candidate that was taken, the reward.

Pure. Knows the columns of a block, not how anything is learnt from them.

Shape legend
    N rows, Dx and Da dense features, Tc and Ta tokens of all contexts and of all chosen actions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from learner.policy.token_crosses import id_tokens
from schemas.arrays import F32, F64, I32, I64
from schemas.blocks import TransitionBlock
from schemas.decision_columns import FeatureColumns
from schemas.task import Task


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows to learn from. Owned arrays: a block's bytes may go (learning.md rule 22)."""

    x: F32
    """(N, Dx) dense context as logged."""
    a: F32
    """(N, Da) dense features of the chosen action as logged or declared."""
    ids: I64
    """(N,) place in the declared catalogue, (0,) without one."""
    id_tokens: I64
    """(N,) the token that stands for the chosen id, (0,) without a catalogue."""
    x_bounds: I64
    """(N + 1,) bounds of each context's tokens."""
    x_tokens: I32
    x_values: F32
    a_bounds: I64
    """(N + 1,) bounds of each chosen action's tokens."""
    a_tokens: I32
    a_values: F32
    y: F64
    """(N,) reward, clipped to the task's bounds once more (learning.md rule 6)."""

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, start: int, stop: int) -> Chosen:
        """Rows [start, stop) as views."""
        x0, x1 = self.x_bounds[start], self.x_bounds[stop]
        a0, a1 = self.a_bounds[start], self.a_bounds[stop]
        return Chosen(
            x=self.x[start:stop],
            a=self.a[start:stop],
            ids=self.ids[start:stop],
            id_tokens=self.id_tokens[start:stop],
            x_bounds=self.x_bounds[start : stop + 1] - x0,
            x_tokens=self.x_tokens[x0:x1],
            x_values=self.x_values[x0:x1],
            a_bounds=self.a_bounds[start : stop + 1] - a0,
            a_tokens=self.a_tokens[a0:a1],
            a_values=self.a_values[a0:a1],
            y=self.y[start:stop],
        )

    @staticmethod
    def concat(parts: Sequence[Chosen]) -> Chosen:
        """Rows of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for name in Chosen.__slots__:
            if name.endswith("_bounds"):
                counts = np.concatenate([np.diff(getattr(part, name)) for part in parts])
                columns[name] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            else:
                columns[name] = np.concatenate([getattr(part, name) for part in parts])
        return Chosen(**columns)

    @staticmethod
    def none(task: Task) -> Chosen:
        """No rows of this task."""
        f32, i32, i64 = np.float32, np.int32, np.int64
        return Chosen(
            x=np.zeros((0, task.context.width), f32),
            a=np.zeros((0, task.action.width), f32),
            ids=np.zeros(0, i64),
            id_tokens=np.zeros(0, i64),
            x_bounds=np.zeros(1, i64),
            x_tokens=np.zeros(0, i32),
            x_values=np.zeros(0, f32),
            a_bounds=np.zeros(1, i64),
            a_tokens=np.zeros(0, i32),
            a_values=np.zeros(0, f32),
            y=np.zeros(0),
        )

    def arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """The columns by name, for a checkpoint."""
        return {prefix + name: np.array(getattr(self, name)) for name in Chosen.__slots__}

    @staticmethod
    def of_arrays(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Chosen:
        """The inverse of `arrays`."""
        return Chosen(**{name: np.array(arrays[prefix + name]) for name in Chosen.__slots__})


def chosen_of(block: TransitionBlock, task: Task) -> Chosen:
    """The rows of `block` in which something was chosen, in order.

    Raises ValueError when the block's dense columns do not have the task's widths.
    """
    features = block.columns.features
    num_candidates = features.num_candidates.astype(np.int64)
    choice = block.columns.chosen[:, 0].astype(np.int64)
    rows = np.flatnonzero(choice >= 0)
    catalogue = task.catalogue_features
    source = features if catalogue is None else catalogue
    firsts = np.cumsum(num_candidates) - num_candidates
    taken = choice[rows] if catalogue is not None else (firsts + choice)[rows]
    if features.context.shape[1] != task.context.width or source.actions.shape[1] != task.action.width:
        raise ValueError(
            f"task {task.name!r}: expected {task.context.width} context and {task.action.width} action features, "
            f"got {features.context.shape[1]} and {source.actions.shape[1]}"
        )
    x_bounds, x_tokens, x_values = _ragged_rows(
        features.context_token_counts, features.context_tokens, features.context_token_values, rows
    )
    a_bounds, a_tokens, a_values = _ragged_rows(
        source.action_token_counts, source.action_tokens, source.action_token_values, taken
    )
    y = block.rewards[rows, 0].astype(np.float64)
    declared = catalogue is not None
    return Chosen(
        x=np.array(features.context[rows], np.float32),
        a=np.array(source.actions[taken], np.float32),
        ids=taken if declared else np.zeros(0, np.int64),
        id_tokens=id_tokens(source.action_keys)[taken] if declared else np.zeros(0, np.int64),
        x_bounds=x_bounds,
        x_tokens=x_tokens,
        x_values=x_values,
        a_bounds=a_bounds,
        a_tokens=a_tokens,
        a_values=a_values,
        y=np.clip(y, task.reward.min, task.reward.max),
    )


def as_features(chosen: Chosen) -> FeatureColumns:
    """The rows as decisions with one candidate each, ids left out; for experts that score candidates."""
    return FeatureColumns(
        context=chosen.x,
        num_candidates=np.ones(len(chosen), np.int32),
        actions=chosen.a,
        action_keys=np.zeros(0, np.uint64),
        context_token_counts=np.diff(chosen.x_bounds).astype(np.int32),
        context_tokens=chosen.x_tokens,
        context_token_values=chosen.x_values,
        action_token_counts=np.diff(chosen.a_bounds).astype(np.int32),
        action_tokens=chosen.a_tokens,
        action_token_values=chosen.a_values,
    )


def _ragged_rows(counts: I32, tokens: I32, values: F32, owners: I64) -> tuple[I64, I32, F32]:
    """Bounds, tokens and values of some owners of a ragged column; no tokens when the column is unused."""
    bounds = np.zeros(len(owners) + 1, np.int64)
    if not len(counts):
        return bounds, np.zeros(0, np.int32), np.zeros(0, np.float32)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    np.cumsum(counts[owners], out=bounds[1:])
    out_tokens, out_values = _copy_spans(starts, bounds, tokens, values, owners)
    return bounds, out_tokens, out_values


@njit(cache=True, nogil=True)
def _copy_spans(starts, bounds, tokens, values, owners):  # type: ignore[no-untyped-def]  # numba
    out_tokens = np.empty(bounds[-1], np.int32)
    out_values = np.empty(bounds[-1], np.float32)
    for i in range(len(owners)):
        for t in range(bounds[i + 1] - bounds[i]):
            out_tokens[bounds[i] + t] = tokens[starts[owners[i]] + t]
            out_values[bounds[i] + t] = values[starts[owners[i]] + t]
    return out_tokens, out_values
