"""The part of docs/reference.md on `headrace.toml`: every table and key, from the models that read the file.

A key's meaning is the docstring under it in `schemas.task_file`; type, default and range are what pydantic holds it to.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from schemas import task_file
from schemas.file_values import DURATION_MS_MAX, Table

SECTIONS: tuple[tuple[str, type[Table]], ...] = (
    ("[namespace]", task_file.NamespaceTable),
    ("[[tasks]]", task_file.TaskFile),
    ("[[tasks.actions]]", task_file.ActionTable),
    ('[tasks.context] and [tasks.action]: kind = "number"', task_file.NumberTable),
    ('[tasks.context] and [tasks.action]: kind = "boolean"', task_file.BooleanTable),
    ('[tasks.context] and [tasks.action]: kind = "category"', task_file.CategoryTable),
    ('[tasks.context] and [tasks.action]: kind = "text"', task_file.TextTable),
    ('[tasks.context] and [tasks.action]: kind = "vector"', task_file.VectorTable),
    ("[tasks.reward]", task_file.RewardTable),
    ("[tasks.reward.outcomes.NAME]", task_file.OutcomeTable),
    ("[tasks.exploration]", task_file.ExplorationTable),
    ("[tasks.learner]", task_file.LearnerTable),
    ("[[tasks.guardrails]]", task_file.GuardrailTable),
    ("[[sources]]", task_file.SourceTable),
    ('{ path = "…" }', task_file.PathTable),
)
"""As the file writes them, in its order; the whole file (`ProjectTable`) is the first, second and one but last."""

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "feature value"}
_READ_AS = {"duration_ms": "duration", "jmespath_text": "jmespath", "_guard": "comparison or jmespath"}
"""By the function that reads it."""
_BOUNDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def tables() -> Iterator[tuple[str, str, list[tuple[str, str, str, str, str]]]]:
    """(header, what the table is, rows of key, type, default, range, meaning)."""
    for header, table in SECTIONS:
        said = meanings()[table.__name__]
        rows = [
            (f"`{name}`", kind_of(field), default_of(field), range_of(field), said.get(name, ""))
            for name, field in table.model_fields.items()
        ]
        yield header, inspect.getdoc(table) or "", rows


@lru_cache(maxsize=1)
def meanings() -> dict[str, dict[str, str]]:
    """The docstring under every key, by the name of its table's class."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(task_file)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        mine = found[node.name] = {}
        for key, told in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)):
                continue
            if isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant):
                mine[key.target.id] = " ".join(str(told.value.value).split())
    return found


def kind_of(field: FieldInfo) -> str:
    """What may stand there, in words."""
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Iterable[object]) -> str:
    for item in metadata:
        reader = getattr(item.func, "__name__", "") if isinstance(item, BeforeValidator) else ""
        if reader in _READ_AS:
            return _READ_AS[reader]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        members = [_kind(each, ()) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(members))
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0], ())}"
    if origin is dict:
        return f"{_kind(arguments[1], ())} by name"
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return '`{ path = "…" }`' if annotation is task_file.PathTable else "table"
    return _PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation))


def default_of(field: FieldInfo) -> str:
    """Its default as the file would write it; none where there is no value for it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Table):
        return "the defaults of its keys"
    if value in ([], {}):
        return "empty"
    return f"`{_duration(value) if kind_of(field) == 'duration' else _literal(value)}`"


def range_of(field: FieldInfo) -> str:
    """The bounds it is held to, "" for none."""
    return ", ".join(_ranges(field.annotation, field.metadata, kind_of(field)))


def _ranges(annotation: Any, metadata: Iterable[Any], kind: str) -> Iterator[str]:
    show = _duration if kind == "duration" else _literal
    one, many = ("character", "characters") if kind == "text" else ("entry", "entries")
    shown = [item for item in metadata if item is not None]
    for item in shown:
        if type(item) in _BOUNDS:
            name, words = _BOUNDS[type(item)]
            yield f"{words} {show(getattr(item, name))}"
        elif isinstance(item, MinLen):
            yield f"at least {item.min_length} {one if item.min_length == 1 else many}"
        elif isinstance(item, MaxLen):
            yield f"at most {item.max_length} {many}"
        elif isinstance(item, FieldInfo):
            yield from _ranges(None, item.metadata, kind)
        elif getattr(item, "pattern", None):
            yield f"`{item.pattern}`"
    if kind == "duration" and not any(isinstance(item, Le | Lt) for item in shown):
        yield f"at most {_duration(DURATION_MS_MAX)}"
    for inner in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ():
        if get_origin(inner) is Annotated and kind != "duration":
            yield from _ranges(None, get_args(inner)[1:], kind)


def _duration(value: Any) -> str:
    unit, size = next((unit, size) for unit, size in _UNITS if value % size == 0 and (value or unit == "ms"))
    return f"{value // size}{unit}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 1 << 31 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f'"{value}"' if isinstance(value, str) else f"{value}"
