"""Registered schemas: a writer's schema with everything that reading its messages needs. Pure: fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import fastavro

from schemas.columns import NAMES_ALWAYS_READ
from schemas.compatibility import NAMESPACE, current, fingerprint, released
from schemas.layout import Layout, layout_of, without_strings
from schemas.limits import LIMITS, BadRecord, Limits
from schemas.schema_program import Program, compile_schema

_BLOCKS = ("DecisionBlock", "OutcomeBlock", "TransitionBlock")


@dataclass(frozen=True, slots=True, eq=False)
class RegisteredSchema:
    """A writer's schema with everything that reading its messages needs."""

    id: int
    name: str
    """Name of our record, or the full name of a foreign one."""
    version: int | None
    """Version among ours, None for a schema that we never released."""
    is_current: bool
    """Written by the version that we write: blocks are read as columns, without resolution."""
    program: Program
    """For `schemas.bounds.check`."""
    avro: Any
    """For fastavro."""
    layout: Layout | None
    """Columns of a current block."""
    layout_of_numbers: Layout | None
    """The same for readers that leave the strings unread."""


class Registry(Protocol):
    """What the codec needs to know of schemas."""

    def id_of(self, name: str) -> int:
        """Id under which messages of the current version of record `name` are written."""

    def schema_of(self, schema_id: int) -> RegisteredSchema:
        """Schema with the id; raises BadRecord ("unknown-schema") or RegistryUnavailable."""

    def reader_of(self, name: str) -> RegisteredSchema:
        """The current version of our record `name`."""


def _ours(schema: Any) -> str | None:
    """Name of our record if the schema is of our namespace and known."""
    if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
        return None
    namespace, _, name = f"{schema.get('namespace', '')}.{schema['name']}".strip(".").rpartition(".")
    return name if namespace == NAMESPACE and name in current() else None


def _plain(schema: Any) -> Any:
    """The schema without logical types but decimals: times stay the integers they are, for field paths to use."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if isinstance(schema, dict):
        keep = schema.get("logicalType") == "decimal"
        return {key: _plain(value) for key, value in schema.items() if keep or key != "logicalType"}
    return schema


def register(schema_id: int, schema: Any, limits: Limits = LIMITS) -> RegisteredSchema:
    """Prepare a parsed schema for reading; raises BadRecord if it is not usable Avro."""
    schema = _plain(schema)
    program = compile_schema(schema, limits)
    try:
        parsed = fastavro.parse_schema(schema, named_schemas={})
    except Exception as error:  # fastavro raises KeyError, TypeError, its own and more for what is not Avro
        raise BadRecord("unknown-schema", f"schema {schema_id} is not valid Avro: {error!r}") from error
    name = _ours(schema)
    mark = fingerprint(schema) if name else ""
    version = next((r.version for r in released() if r.name == name and r.fingerprint == mark), None)
    is_current = name is not None and version == current()[name].version
    layout = layout_of(schema) if is_current and name in _BLOCKS else None
    full_name = name or (str(parsed.get("name", "unnamed")) if isinstance(parsed, dict) else "unnamed")
    numbers = None if layout is None else without_strings(layout, NAMES_ALWAYS_READ)
    return RegisteredSchema(schema_id, full_name, version, is_current, program, parsed, layout, numbers)
