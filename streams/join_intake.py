"""What the join keeps of a DecisionBlock: owned columns, and which rows are sound (rule 5, quarantined).

Columns that came out of a message are views of its bytes: they are copied, so that no open decision pins a fetched
batch, and strings stay behind. An unsound row keeps its place and gets harmless features, so that it cannot spoil the
block it leaves in; a block that contradicts its task's definition gets harmless columns altogether.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.blocks import I32, PROPENSITY_ONE, DecisionBlock, DecisionColumns, FeatureColumns
from schemas.columns import sound_rows
from schemas.task import Task

_FEATURES = tuple(each.name for each in fields(FeatureColumns))
_DECISIONS = tuple(each.name for each in fields(DecisionColumns) if each.name not in ("features", "catalogue"))

Bools = npt.NDArray[np.bool_]


class Intake(NamedTuple):
    """A DecisionBlock as the join keeps it."""

    columns: DecisionColumns
    """Owned; harmless where a row is unsound."""
    sound: Bools
    """(N,)"""
    chosen: I32
    """(N, S) as it stood in the block, -1 throughout where the block contradicts its task: what duplicates and outcomes
    are compared with."""


def take_in(block: DecisionBlock, task: Task) -> Intake:
    """What to keep of `block`, which stays as it is."""
    if not fits(block.columns, task):
        columns = harmless_columns(len(block), task)
        return Intake(columns, np.zeros(len(block), np.bool_), np.full_like(columns.chosen, -1))
    sound = sound_rows(block)
    columns = own(block.columns)
    if task.actions and columns.catalogue:
        sound = sound & (columns.features.num_candidates == len(task.actions))
    if sound.all():
        return Intake(columns, sound, columns.chosen)
    return Intake(_quiet(columns, ~sound), sound, columns.chosen)


def fits(columns: DecisionColumns, task: Task) -> bool:
    """Whether slots, feature widths and catalogue are those of the task's definition."""
    features = columns.features
    if columns.num_slots != task.num_slots or features.context.shape[1] != task.context.width:
        return False
    if columns.catalogue:
        return columns.catalogue == task.catalogue and not len(features.actions)
    return len(features.action_keys) > 0 and features.actions.shape[1] == task.action.width


def own(columns: DecisionColumns) -> DecisionColumns:
    """`columns` with every array owned, contiguous and writable."""
    features = FeatureColumns(**{name: owned(getattr(columns.features, name)) for name in _FEATURES})
    return replace(columns, features=features, **{name: owned(getattr(columns, name)) for name in _DECISIONS})


def owned(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`column` itself when nothing else holds its memory, a copy otherwise."""
    return column.copy() if column.base is not None or not column.flags.carray else column


def harmless_columns(num_rows: int, task: Task) -> DecisionColumns:
    """Columns of the task's shape without content: zeros, the first candidate chosen with certainty."""
    per_row = len(task.actions) if task.catalogue else 1
    num_candidates = num_rows * per_row
    listed = 0 if task.catalogue else num_candidates
    propensities = np.zeros((num_rows, task.num_slots, per_row), np.int32)
    propensities[:, :, 0] = PROPENSITY_ONE
    features = FeatureColumns(
        context=np.zeros((num_rows, task.context.width), np.float32),
        num_candidates=np.full(num_rows, per_row, np.int32),
        actions=np.zeros((listed, 0 if task.catalogue else task.action.width), np.float32),
        action_keys=np.zeros(listed, np.uint64),
        context_token_counts=np.zeros(num_rows if task.context.has_tokens else 0, np.int32),
        context_tokens=np.zeros(0, np.int32),
        context_token_values=np.zeros(0, np.float32),
        action_token_counts=np.zeros(listed if task.action.has_tokens else 0, np.int32),
        action_tokens=np.zeros(0, np.int32),
        action_token_values=np.zeros(0, np.float32),
    )
    return DecisionColumns(
        features=features,
        catalogue=task.catalogue,
        chosen=np.zeros((num_rows, task.num_slots), np.int32),
        propensities=propensities.reshape(-1),
        reasons=np.zeros(num_rows, np.uint8),
        values=np.zeros((0, task.num_slots)),
        bounds=np.zeros((0, 2)),
        terminal=np.zeros(0, np.uint8),
        steps=np.zeros(0, np.int32),
        episode_keys=np.zeros(0, np.uint64),
    )


def _quiet(columns: DecisionColumns, unsound: Bools) -> DecisionColumns:
    """A copy with zeros where unsound rows had features, and all propensity on their first candidate."""
    features = columns.features
    num_slots = columns.num_slots
    candidates = np.repeat(unsound, features.num_candidates)
    propensities = np.where(np.repeat(candidates, num_slots), 0, columns.propensities).astype(np.int32)
    sizes = features.num_candidates[unsound, None]
    starts = (np.cumsum(features.num_candidates) - features.num_candidates)[unsound, None] * num_slots
    propensities[starts + np.arange(num_slots) * sizes] = PROPENSITY_ONE
    of_context = np.repeat(unsound, features.context_token_counts) if len(features.context_token_counts) else unsound
    of_actions = np.repeat(candidates, features.action_token_counts) if len(features.action_token_counts) else unsound
    quiet = replace(
        features,
        context=_zeroed(features.context, unsound),
        actions=_zeroed(features.actions, candidates),
        context_tokens=_zeroed(features.context_tokens, of_context),
        context_token_values=_zeroed(features.context_token_values, of_context),
        action_tokens=_zeroed(features.action_tokens, of_actions),
        action_token_values=_zeroed(features.action_token_values, of_actions),
    )
    return replace(
        columns,
        features=quiet,
        chosen=_zeroed(columns.chosen, unsound),
        propensities=propensities,
        values=_zeroed(columns.values, unsound),
        bounds=_zeroed(columns.bounds, unsound),
    )


def _zeroed(column: npt.NDArray[Any], where: Bools) -> npt.NDArray[Any]:
    """A copy of `column` with zeros at the rows `where`; `column` itself when the task does not use it."""
    if not len(column):
        return column
    column = column.copy()
    column[where] = 0
    return column
