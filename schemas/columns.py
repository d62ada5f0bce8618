"""Columns: blocks ↔ their fields by name, with every shape checked.

Owns which bytes field is a column of what, and which columns must be how long. The loops over bytes stand in
`schemas.column_reader` and `schemas.column_writer`, the loops over rows in `schemas.soundness`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np

from schemas.arrays import NO_STRINGS, Strings
from schemas.blocks import DecisionBlock, OutcomeBlock, TransitionBlock
from schemas.bounds import BadRecord, Limits
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.frozen import names_of
from schemas.outcome_columns import OutcomeColumns, decode_outcomes
from schemas.records import DecisionBucket
from schemas.soundness import all_sound_where, count_sums, first_not_finite, rises, sound_rows

__all__ = ["DTYPES", "NAMES_ALWAYS_READ", "OutcomeColumns", "block_of", "decode_outcomes", "sound_rows", "values_of"]

_U64, _I32, _U8 = np.dtype("<u8"), np.dtype("<i4"), np.dtype("u1")
DTYPES: Mapping[str, np.dtype[Any]] = {
    **dict.fromkeys(
        ("decision_keys", "subject_keys", "action_keys", "outcome_keys", "episode_keys"),
        _U64,
    ),
    **dict.fromkeys(("context_tokens", "action_tokens"), _I32),
    **dict.fromkeys(("reasons", "terminal", "buckets", "flags"), _U8),
}
"""Element type of the bytes fields that are columns."""

NAMES_ALWAYS_READ = frozenset({"type_names"})
"""String columns that numbers refer to."""
_BUCKET_MAX = len(DecisionBucket) - 1
_LEARNT_MAX = int(DecisionBucket.DEFAULTED)
"""Buckets up to this one are learnt from, so their rows must be sound."""


def _mismatch(name: str, actual: int, *expected: int) -> NoReturn:
    wanted = " or ".join(str(number) for number in sorted(set(expected)))
    raise BadRecord("bad-columns", f"{name} has {actual} elements, expected {wanted}")


def _length(fields: Mapping[str, Any], name: str, *allowed: int) -> Any:
    """The column, if its length is allowed."""
    column = fields[name]
    if len(column) not in allowed:
        _mismatch(name, len(column), *allowed)
    return column


def _matrix(fields: Mapping[str, Any], name: str, num_rows: int, width: int, *, optional: bool = False) -> Any:
    """The column as (num_rows, width), or (0, width) if it is optional and empty."""
    column = fields[name]
    if len(column) == num_rows * width:
        return column.reshape(num_rows, width)
    if optional and not len(column):
        return column.reshape(0, width)
    _mismatch(name, len(column), num_rows * width, *((0,) if optional else ()))


def _strings(fields: Mapping[str, Any], name: str, num: int) -> Strings:
    """A column of `num` strings or of none; none if it was left unread."""
    strings = fields[name]
    found = strings if isinstance(strings, int) else len(strings)
    if found not in (0, num):
        _mismatch(name, found, 0, num)
    return NO_STRINGS if isinstance(strings, int) else strings


def _rows_of(fields: Mapping[str, Any], limits: Limits) -> int:
    """num_rows, within its limits."""
    num_rows = int(fields["num_rows"])
    if num_rows == 0:
        raise BadRecord("empty-block", "num_rows is 0; a block without rows is never written")
    if not 0 < num_rows <= limits.num_rows_max:
        raise BadRecord("out-of-range", f"num_rows is {num_rows}, expected 1 to {limits.num_rows_max}")
    return num_rows


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise BadRecord("out-of-range", f"{name} is {value}, expected {low} to {high}")
    return value


def _decision_columns(fields: Mapping[str, Any], num_rows: int, limits: Limits) -> DecisionColumns:
    num_slots = _in_range("num_slots", fields["num_slots"], 1, limits.num_slots_max)
    context_width = _in_range("context_width", fields["context_width"], 0, limits.num_items_max)
    action_width = _in_range("action_width", fields["action_width"], 0, limits.num_items_max)
    num_candidates = _length(fields, "num_candidates", num_rows)
    context_token_counts = _length(fields, "context_token_counts", 0, num_rows)
    most, total, num_context_tokens, num_action_tokens = count_sums(
        num_candidates, context_token_counts, fields["action_token_counts"]
    )
    if total < 0 or most > limits.num_candidates_max:
        raise BadRecord("out-of-range", f"num_candidates: every row has 1 to {limits.num_candidates_max}")
    if min(num_context_tokens, num_action_tokens) < 0:
        raise BadRecord("out-of-range", "token counts: none is negative")
    action_token_counts = _length(fields, "action_token_counts", 0, total)
    action_keys = _length(fields, "action_keys", 0, total)
    catalogue = _length(fields, "catalogue", 0, 16)
    if action_width:
        actions = _matrix(fields, "actions", total, action_width, optional=True)
    else:  # (M, 0) and (0, 0) look alike on the wire: candidates with keys have rows
        actions = _length(fields, "actions", 0).reshape(len(action_keys), 0)
    features = FeatureColumns(
        context=_matrix(fields, "context", num_rows, context_width),
        num_candidates=num_candidates,
        actions=actions,
        action_keys=action_keys,
        context_token_counts=context_token_counts,
        context_tokens=_length(fields, "context_tokens", num_context_tokens),
        context_token_values=_length(fields, "context_token_values", num_context_tokens),
        action_token_counts=action_token_counts,
        action_tokens=_length(fields, "action_tokens", num_action_tokens),
        action_token_values=_length(fields, "action_token_values", num_action_tokens),
    )
    return DecisionColumns(
        features=features,
        catalogue=catalogue,
        chosen=_matrix(fields, "chosen", num_rows, num_slots),
        propensities=_length(fields, "propensities", total * num_slots),
        reasons=_length(fields, "reasons", num_rows),
        values=_matrix(fields, "values", num_rows, num_slots, optional=True),
        bounds=_matrix(fields, "bounds", num_rows, 2, optional=True),
        terminal=_length(fields, "terminal", 0, num_rows),
        steps=_length(fields, "steps", 0, num_rows),
        episode_keys=_length(fields, "episode_keys", 0, num_rows),
    )


def _decision_block(fields: Mapping[str, Any], limits: Limits) -> DecisionBlock:
    num_rows = _rows_of(fields, limits)
    columns = _decision_columns(fields, num_rows, limits)
    return DecisionBlock(
        task=fields["task"],
        fingerprint=_length(fields, "fingerprint", 16),
        snapshot_version=fields["snapshot_version"],
        request_topic=fields["request_topic"],
        decision_keys=_matrix(fields, "decision_keys", num_rows, 2),
        subject_keys=_length(fields, "subject_keys", num_rows),
        request_partitions=_length(fields, "request_partitions", num_rows),
        request_offsets=_length(fields, "request_offsets", num_rows),
        columns=columns,
        decision_ids=_strings(fields, "decision_ids", num_rows),
        subjects=_strings(fields, "subjects", num_rows),
        action_ids=_strings(fields, "action_ids", len(columns.propensities) // columns.num_slots),
        episode_ids=_strings(fields, "episode_ids", num_rows),
    )


def _transition_block(fields: Mapping[str, Any], limits: Limits) -> TransitionBlock:
    num_rows = _rows_of(fields, limits)
    columns = _decision_columns(fields, num_rows, limits)
    buckets = _length(fields, "buckets", num_rows)
    positions = _length(fields, "positions", num_rows)
    closed_at_ms = _length(fields, "closed_at_ms", num_rows)
    rewards = _matrix(fields, "rewards", num_rows, columns.num_slots)
    if not (rises(positions, True) and fields["prev"] < positions[0]):
        raise BadRecord("out-of-range", f"positions rise strictly, from above prev {fields['prev']}")
    if not rises(closed_at_ms, False):
        raise BadRecord("out-of-range", "closed_at_ms never falls")
    if int(buckets.max()) > _BUCKET_MAX:
        raise BadRecord("out-of-range", f"buckets: code {buckets.max()} is no bucket")
    at = first_not_finite(rewards.reshape(-1))
    if at >= 0:
        raise BadRecord("not-finite", f"rewards of row {at // columns.num_slots}: {rewards.flat[at]}")
    at = all_sound_where(sound_rows(columns), buckets, _LEARNT_MAX)
    if at >= 0:
        raise BadRecord("bad-row", f"row {at} has bucket {DecisionBucket(buckets[at]).label}, but is not sound")
    return TransitionBlock(
        partition=fields["partition"],
        task=fields["task"],
        fingerprint=_length(fields, "fingerprint", 16),
        kind=fields["kind"],
        prev=fields["prev"],
        positions=positions,
        closed_at_ms=closed_at_ms,
        buckets=buckets,
        flags=_length(fields, "flags", num_rows),
        rewards=rewards,
        num_outcomes=_length(fields, "num_outcomes", num_rows),
        snapshot_versions=_length(fields, "snapshot_versions", num_rows),
        decision_keys=_matrix(fields, "decision_keys", num_rows, 2),
        columns=columns,
    )


def _outcome_block(fields: Mapping[str, Any], limits: Limits) -> OutcomeBlock:
    num_rows = _rows_of(fields, limits)
    source_offsets = _length(fields, "source_offsets", num_rows)
    types = _length(fields, "types", num_rows)
    values = _length(fields, "values", num_rows)
    type_names = tuple(fields["type_names"].tolist())
    if not rises(source_offsets, True):
        raise BadRecord("out-of-range", "source_offsets rise strictly")
    if types.min() < 0 or types.max() >= len(type_names):
        raise BadRecord("out-of-range", f"types: every code is one of {len(type_names)} type_names")
    at = first_not_finite(values)
    if at >= 0:
        raise BadRecord("not-finite", f"values of row {at}: {values[at]}")
    return OutcomeBlock(
        source_topic=fields["source_topic"],
        source_partition=fields["source_partition"],
        source_offsets=source_offsets,
        outcome_keys=_matrix(fields, "outcome_keys", num_rows, 2),
        subject_keys=_length(fields, "subject_keys", num_rows),
        decision_keys=_matrix(fields, "decision_keys", num_rows, 2),
        action_keys=_length(fields, "action_keys", num_rows),
        slots=_length(fields, "slots", num_rows),
        types=types,
        values=values,
        times_ms=_length(fields, "times_ms", num_rows),
        type_names=type_names,
        outcome_ids=_strings(fields, "outcome_ids", num_rows),
        subjects=_strings(fields, "subjects", num_rows),
        decision_ids=_strings(fields, "decision_ids", num_rows),
    )


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any], Limits], DecisionBlock | OutcomeBlock | TransitionBlock]] = {
    "DecisionBlock": _decision_block,
    "OutcomeBlock": _outcome_block,
    "TransitionBlock": _transition_block,
}


def block_of(name: str, fields: Mapping[str, Any], limits: Limits) -> DecisionBlock | OutcomeBlock | TransitionBlock:
    """The block of schema `name` from its fields (1-d arrays); raises BadRecord if they do not fit together."""
    return _BUILDERS[name](fields, limits)


def _path(block: str, name: str) -> str:
    """Where the field `name` of a block's schema stands in the block."""
    if block == "OutcomeBlock":
        return name
    if name in names_of(FeatureColumns) or name in ("context_width", "action_width"):
        return f"columns.features.{name}"
    return f"columns.{name}" if name in names_of(DecisionColumns) or name == "num_slots" else name


@cache
def _getter(block: str, names: tuple[str, ...]) -> Callable[[object], tuple[Any, ...]]:
    """Takes all fields out of a block in one call: a decision by itself is a block, and someone waits for it."""
    return attrgetter(*(_path(block, name) for name in names))


def values_of(block: DecisionBlock | OutcomeBlock | TransitionBlock, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The fields `names` of the block's schema: its own columns, not copies, not checked (reading does that)."""
    return _getter(type(block).__name__, names)(block)
