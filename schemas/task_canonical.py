"""From the checked file to the records of `schemas.task`, by way of their canonical definitions.

There is one way in: a file is turned into canonical JSON first and that is what tasks are built from, so a process
that reads the `tasks` topic has exactly what the person who wrote the file had.
"""

from __future__ import annotations

import json
import tomllib
from hashlib import blake2b
from typing import Any, TypeVar

from pydantic import ValidationError

from schemas.encoding import catalogue_columns
from schemas.errors import UserError
from schemas.feature_spec import NUM_TOKENS_ACTION, NUM_TOKENS_ALONE, NUM_TOKENS_CONTEXT, Feature, FeatureSpec
from schemas.file_errors import user_error
from schemas.file_values import Table
from schemas.task import (
    Exploration,
    FieldRule,
    Guardrail,
    LearnerOptions,
    Namespace,
    OutcomeType,
    Project,
    Reward,
    Source,
    Task,
    canonical_json,
    fingerprint_of,
)
from schemas.task_file import NamespaceTable, PathTable, ProjectTable, RewardTable, SourceTable, TaskFile

_BOUNDED = ("first", "last", "min", "max", "mean")
"""Aggregates that keep values of 0 and 1 within [0, 1]."""
_BINARY = ("first", "last", "min", "max")
"""Aggregates that keep them 0 or 1."""
_IMMEDIATE_BACKWARD_MS = 1000
"""With reply = "immediate" an outcome may overtake its decision (join.md rule 2)."""
WIDTH_MAX = 4096
"""Dense columns per side."""

SomeTable = TypeVar("SomeTable", bound=Table)


def parse_file(text: str, where: str) -> Project:
    """The project of a file's text; `where` names the file in errors. Raises UserError."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of TOML itself, a number of 5,000 digits, 1,000 brackets
        raise UserError(
            f"{where} is no TOML: {error}", "correct the line named; https://toml.io shows the syntax"
        ) from error
    table = _check(ProjectTable, raw, where)
    return Project(
        namespace=namespace_of(_canonical(table.namespace)),
        tasks=tuple(_build(task, _canonical(task), f'{where}: task "{task.name}"') for task in table.tasks),
        sources=tuple(source_of(_canonical(source)) for source in table.sources),
        draws_freely=table.namespace.draw_key is None,
    )


def task_of(canonical: str) -> Task:
    """The task of canonical JSON. Raises UserError."""
    where = "task definition"
    return _build(_check(TaskFile, _json(canonical, where), where), canonical, where)


def namespace_of(canonical: str) -> Namespace:
    """The namespace of canonical JSON. Raises UserError."""
    table = _check(NamespaceTable, _json(canonical, "namespace definition"), "namespace definition")
    seed = blake2b(table.name.encode(), digest_size=32, person=b"hr-draw-key").hexdigest()
    return Namespace(
        name=table.name,
        partitions=table.partitions,
        draw_key=table.draw_key or seed,
        bucket_ms=table.bucket,
        publish_ms=table.publish,
        tick_ms=table.tick,
    )


def canonical_namespace(namespace: Namespace) -> str:
    """Canonical JSON of a namespace: what `namespace_of` reads."""
    return canonical_json(
        {
            "name": namespace.name,
            "partitions": namespace.partitions,
            "draw_key": namespace.draw_key,
            "bucket": f"{namespace.bucket_ms}ms",
            "publish": f"{namespace.publish_ms}ms",
            "tick": f"{namespace.tick_ms}ms",
        }
    )


def source_of(canonical: str) -> Source:
    """The source of canonical JSON. Raises UserError."""
    table = _check(SourceTable, _json(canonical, "source definition"), "source definition")
    return Source(
        topic=table.topic,
        format=table.format,
        canonical=canonical,
        subject=_rule(table.subject),
        type=_rule(table.type),
        value=_rule(table.value),
        decision_id=_rule(table.decision_id) if table.decision_id else None,
        action_id=_rule(table.action_id) if table.action_id else None,
        outcome_id=_rule(table.outcome_id) if table.outcome_id else None,
        slot=_rule(table.slot) if table.slot else None,
        time=_rule(table.time) if table.time else None,
        where=table.where,
    )


def _check(table: type[SomeTable], raw: Any, where: str) -> SomeTable:
    try:
        return table.model_validate(raw)
    except ValidationError as error:
        raise user_error(error, raw, where) from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deep to be read", "take out what stands in so many brackets") from error


def _json(canonical: str, where: str) -> Any:
    try:
        return json.loads(canonical)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}", "publish it again: headrace apply headrace.toml") from error


def _canonical(table: Table) -> str:
    return canonical_json(table.model_dump(exclude_none=True))


def _rule(value: PathTable | str | float) -> FieldRule:
    return FieldRule(path=value.path) if isinstance(value, PathTable) else FieldRule(constant=value)


def _build(table: TaskFile, canonical: str, where: str) -> Task:
    context, action = _sides(table, where)
    ids = tuple(item.id for item in table.actions)
    values = tuple(item.features for item in table.actions)
    if table.baseline is not None and not ids:
        raise UserError(
            f"{where}: baseline {table.baseline!r} needs a declared catalogue",
            "declare actions = [...], or send the baseline's index with each request",
        )
    return Task(
        name=table.name,
        kind=table.kind,
        canonical=canonical,
        fingerprint=fingerprint_of(canonical),
        actions=ids,
        action_values=values,
        catalogue=fingerprint_of(canonical_json([item.model_dump() for item in table.actions])) if ids else b"",
        catalogue_features=catalogue_columns(action, ids, values, where) if ids else None,
        context=context,
        action=action,
        reward=_reward(table.reward, table.reply, where),
        reply=table.reply,
        baseline=table.baseline,
        epsilon=table.epsilon,
        exploration=Exploration(**table.exploration.model_dump()),
        learner=LearnerOptions(**table.learner.model_dump()),
        guardrails=tuple(Guardrail(rule.name, rule.allow_if) for rule in table.guardrails),
    )


def _sides(table: TaskFile, where: str) -> tuple[FeatureSpec, FeatureSpec]:
    context, action = (
        tuple(_feature(name, tables[name].model_dump()) for name in sorted(tables))
        for tables in (table.context, table.action)
    )
    both = FeatureSpec(context).has_tokens and FeatureSpec(action).has_tokens
    sides = (
        FeatureSpec(context, NUM_TOKENS_CONTEXT if both else NUM_TOKENS_ALONE),
        FeatureSpec(action, NUM_TOKENS_ACTION if both else NUM_TOKENS_ALONE),
    )
    for side, name in zip(sides, ("context", "action"), strict=True):
        if side.width > WIDTH_MAX:
            raise UserError(
                f"{where}: [tasks.{name}] makes {side.width} dense columns, at most {WIDTH_MAX} are allowed",
                "use smaller vectors, or categories without declared values (they are hashed)",
            )
    return sides


def _feature(name: str, options: dict[str, Any]) -> Feature:
    return Feature(name=name, **{**options, "values": tuple(options.get("values", ()))})


def _reward(table: RewardTable, reply: str, where: str) -> Reward:
    types = tuple(
        OutcomeType(
            name, rule.aggregate, rule.weight, table.window if rule.window is None else rule.window, rule.binary
        )
        for name, rule in sorted(table.outcomes.items())
    )
    window_ms = max(kind.window_ms for kind in types)
    low, high = _bounds(table, types, where)
    backward_ms = table.backward_window
    if backward_ms is None:
        backward_ms = min(_IMMEDIATE_BACKWARD_MS, window_ms) if reply == "immediate" else 0
    if backward_ms > window_ms:
        raise UserError(
            f"{where}: reward.backward_window is {backward_ms} ms, expected at most the window, {window_ms} ms",
            "shorten backward_window or lengthen window",
        )
    binary = (low, high) == (0.0, 1.0) and table.default in (0.0, 1.0)
    binary = binary and all(kind.binary and kind.weight == 1.0 and kind.aggregate in _BINARY for kind in types)
    return Reward(window_ms, backward_ms, table.default, low, high, binary, types)


def _bounds(table: RewardTable, types: tuple[OutcomeType, ...], where: str) -> tuple[float, float]:
    """Declared bounds, or those that follow when every outcome is 0 or 1 (learning.md rule 6)."""
    derivable = all(kind.binary and kind.aggregate in _BOUNDED for kind in types)
    if (table.min is None or table.max is None) and not derivable:
        loose = next(kind for kind in types if not (kind.binary and kind.aggregate in _BOUNDED))
        raise UserError(
            f'{where}: reward.min and reward.max are required: outcome "{loose.name}" (aggregate {loose.aggregate}'
            f"{', binary' if loose.binary else ''}) has no bounds of its own",
            "give both, near what rewards really reach: what lies beyond is clipped, and exploration grows with them "
            "(rewards of 0 and 1 gave the best of four actions 0.998 with max = 1, 0.94 with 1e4, 0.34 with 1e6). With "
            "binary = true and aggregate first, last, min, max or mean they are derived",
        )
    low = min(sum(min(kind.weight, 0.0) for kind in types), table.default) if table.min is None else table.min
    high = max(sum(max(kind.weight, 0.0) for kind in types), table.default) if table.max is None else table.max
    if not low < high or not low <= table.default <= high:
        raise UserError(
            f"{where}: expected reward.min < reward.max with reward.default between, "
            f"got min {low}, max {high}, default {table.default}",
            "correct the three keys under [tasks.reward]",
        )
    return low, high
