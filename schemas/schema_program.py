"""Schema program: a writer's schema as flat tables, for `schemas.bounds.check` to follow without recursion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.arrays import I64
from schemas.limits import LIMITS, BadRecord, Limits

NULL, BOOLEAN, INT, LONG, FLOAT, DOUBLE, BYTES, STRING, FIXED, ENUM, ARRAY, MAP, UNION, RECORD = range(14)
_PRIMITIVES = {
    name: op
    for op, name in enumerate(("null", "boolean", "int", "long", "float", "double", "bytes", "string"), start=NULL)
}
_SIZES_MIN = {NULL: 0, BOOLEAN: 1, INT: 1, LONG: 1, FLOAT: 4, DOUBLE: 8, BYTES: 1, STRING: 1, ENUM: 1, ARRAY: 1, MAP: 1}


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A writer's schema, flattened for `check`."""

    nodes: I64
    """(n, 4): operation, argument (fixed size, number of symbols, first child), number of children, fewest bytes."""
    children: I64
    """Node numbers of fields, branches and items."""
    paths: tuple[str, ...]
    """Name of each node as people find it in the schema."""


@dataclass(slots=True)
class _Compiler:
    """Turns a parsed schema (as json.loads gives it) into the tables of a Program."""

    limits: Limits
    nodes: list[list[int]] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)

    def add(self, schema: Any, path: str, namespace: str, depth: int) -> int:
        """Number of the node of `schema`; recursion in Python, bounded by the depth of the schema."""
        if depth > self.limits.depth_max or len(self.nodes) >= self.limits.num_schema_nodes_max:
            raise BadRecord("too-deep", f"schema at {path}: nested deeper or larger than the limits allow")
        if isinstance(schema, list):
            return self._branches(schema, path, namespace, depth)
        if isinstance(schema, str):
            return self._named_or_primitive(schema, path, namespace)
        kind = schema["type"]
        if isinstance(kind, list | dict):
            return self.add(kind, path, namespace, depth + 1)
        if kind == "array":
            return self._single(ARRAY, schema["items"], path + "[]", namespace, depth)
        if kind == "map":
            return self._single(MAP, schema["values"], path + "{}", namespace, depth)
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(schema, kind, path, namespace, depth)
        node = self._named_or_primitive(kind, path, namespace)
        if schema.get("logicalType") == "decimal" and self.nodes[node][0] == BYTES:
            self.nodes[node][1] = self.limits.decimal_bytes_max
        return node

    def _node(self, op: int, path: str, argument: int = 0, num: int = 0, fewest_bytes: int | None = None) -> int:
        fewest = _SIZES_MIN.get(op, 0) if fewest_bytes is None else fewest_bytes
        self.nodes.append([op, argument, num, min(fewest, self.limits.message_bytes_max)])
        self.paths.append(path)
        return len(self.nodes) - 1

    def _named_or_primitive(self, name: str, path: str, namespace: str) -> int:
        if name in _PRIMITIVES:
            op = _PRIMITIVES[name]
            return self._node(op, path, self.limits.message_bytes_max if op in (BYTES, STRING) else 0)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        found = self.named.get(full, self.named.get(name))
        if found is None:
            raise BadRecord("unknown-schema", f"schema at {path}: type {name!r} is defined nowhere")
        return found

    def _single(self, op: int, items: Any, path: str, namespace: str, depth: int) -> int:
        node = self._node(op, path)
        self._set_children(node, [self.add(items, path, namespace, depth + 1)])
        return node

    def _branches(self, branches: list[Any], path: str, namespace: str, depth: int) -> int:
        node = self._node(UNION, path, fewest_bytes=1)
        self._set_children(node, [self.add(branch, path, namespace, depth + 1) for branch in branches])
        return node

    def _definition(self, schema: Mapping[str, Any], kind: str, path: str, namespace: str, depth: int) -> int:
        name = str(schema["name"])
        namespace = str(schema.get("namespace", namespace)) if "." not in name else name.rpartition(".")[0]
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        path = path or name.rpartition(".")[2]
        if kind == "fixed":
            self.named[full] = self._node(FIXED, path, int(schema["size"]), fewest_bytes=int(schema["size"]))
        elif kind == "enum":
            self.named[full] = self._node(ENUM, path, len(schema["symbols"]))
        else:
            node = self.named[full] = self._node(RECORD, path)
            fields = [self.add(f["type"], f"{path}.{f['name']}", namespace, depth + 1) for f in schema["fields"]]
            self._set_children(node, fields)
            self.nodes[node][3] = min(sum(self.nodes[f][3] for f in fields), self.limits.message_bytes_max)
        return self.named[full]

    def _set_children(self, node: int, numbers: list[int]) -> None:
        self.nodes[node][1], self.nodes[node][2] = len(self.children), len(numbers)
        self.children.extend(numbers)


def compile_schema(schema: Any, limits: Limits = LIMITS) -> Program:
    """The program of a parsed schema.

    Raises BadRecord ("too-deep", "unknown-schema") when the schema itself exceeds the limits or names unknown types.
    """
    compiler = _Compiler(limits)
    try:
        root = compiler.add(schema, "", "", 0)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord("unknown-schema", f"the writer's schema is not valid Avro: {error!r}") from error
    assert root == 0, "the first node is the root"
    return Program(
        np.array(compiler.nodes, np.int64).reshape(-1, 4), np.array(compiler.children, np.int64), tuple(compiler.paths)
    )
