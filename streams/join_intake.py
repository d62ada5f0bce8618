"""What the join keeps of a DecisionBlock: its columns, and which rows are sound (rule 5, quarantined).

An open decision must not pin a fetched batch or the strings of its block: columns that are views of something larger
are copied. An unsound row keeps its place and gets harmless features, so that it cannot spoil the
block it leaves in; a block that contradicts its task's definition gets harmless columns altogether.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import I32, U64
from schemas.blocks import DecisionBlock
from schemas.columns import sound_rows
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.task import Task
from schemas.task_shape import Shape

_FEATURES = tuple(each.name for each in fields(FeatureColumns))
_DECISIONS = tuple(each.name for each in fields(DecisionColumns) if each.name not in ("features", "catalogue"))

Bools = npt.NDArray[np.bool_]

_SLACK = 1.5
_SLACK_BYTES = 4096
"""A decoder's arena may be this much larger than what is kept of it; beyond, the columns are copied."""


class Intake(NamedTuple):
    """A DecisionBlock as the join keeps it."""

    columns: DecisionColumns
    """Harmless where a row is unsound."""
    decision_keys: U64
    subject_keys: U64
    chosen: I32
    """(N, S) as it stood in the block, -1 throughout where the block contradicts its task: what duplicates and outcomes
    are compared with."""
    sound: Bools
    """(N,)"""


def take_in(block: DecisionBlock, task: Task, shape: Shape) -> Intake:
    """What to keep of `block`, which stays as it is."""
    kept = [block.decision_keys, *(getattr(block.columns.features, name) for name in _FEATURES)]
    kept += [getattr(block.columns, name) for name in _DECISIONS]
    is_tight = _is_tight(kept)
    decision_keys = block.decision_keys if is_tight else owned(block.decision_keys)
    subject_keys = owned(block.subject_keys)
    if not shape.fits(block.columns):
        columns, num_rows = harmless_columns(len(block), task), len(block)
        chosen, sound = np.full_like(columns.chosen, -1), np.zeros(num_rows, np.bool_)
        return Intake(columns, decision_keys, subject_keys, chosen, sound)
    sound = sound_rows(block)
    columns = block.columns if is_tight else own(block.columns)
    if columns.catalogue:
        sound = sound & (columns.features.num_candidates == shape.catalogue_size)
    chosen = columns.chosen
    if not sound.all():
        columns = _quiet(columns, ~sound)
    return Intake(columns, decision_keys, subject_keys, chosen, sound)


def _is_tight(columns: list[npt.NDArray[Any]]) -> bool:
    """Whether keeping these views keeps little else alive: all own their memory, or share one array that is not much
    larger. So the decoder's arena stays when it holds no strings, and a fetched batch never does."""
    bases = [column.base for column in columns]
    arena = bases[0]
    if not all(base is arena for base in bases) or not all(column.flags.carray for column in columns):
        return False
    if arena is None:
        return True
    return isinstance(arena, np.ndarray) and arena.nbytes <= _SLACK * sum([c.nbytes for c in columns]) + _SLACK_BYTES


def own(columns: DecisionColumns) -> DecisionColumns:
    """`columns` with every array owned, contiguous and writable."""
    features = FeatureColumns(**{name: owned(getattr(columns.features, name)) for name in _FEATURES})
    owned_columns: dict[str, Any] = {name: owned(getattr(columns, name)) for name in _DECISIONS}
    return replace(columns, features=features, **owned_columns)


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
