"""Bounds: what a message may contain at most, checked before anything is allocated or handed to another decoder.

Bytes from a topic are hostile until `check` has walked them. Two ways to die are known: fastavro recurses in C and
ends the process with SIGSEGV on a deeply nested record, and an array of nulls says "50 million items" in five bytes.
Neither gets past `check`: it follows the writer's schema as a flat program with an explicit stack, in numba, and
every length, count, index and number is compared with what is left of the message before it is believed.

Deliberate simplification: an item of an array takes at least one byte of the budget even if it has none on the wire
(null, empty records); a message can therefore not hold more of them than `LIMITS.num_items_max`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from schemas.blocks import I64, U8
from schemas.varints import (
    BAD_BLOCK,
    BAD_BOOLEAN,
    BAD_ENUM,
    BAD_UNION,
    NEGATIVE_LENGTH,
    NOT_FINITE,
    OUT_OF_RANGE,
    REASONS,
    TOO_DEEP,
    TOO_LARGE,
    TOO_MANY_ITEMS,
    TRAILING_BYTES,
    TRUNCATED,
    is_finite_f32,
    is_finite_f64,
    read_length,
    read_long,
    utf8_end,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest things that are read. Each number has its reason beside it; the defaults serve every process."""

    message_bytes_max: int = 1 << 20
    """Kafka's own default for a message (1,048,588): what is larger cannot stand in a topic of ours."""
    num_items_max: int = 1 << 20
    """Items of all arrays and maps of a message: every real item takes a byte, so a message cannot hold more."""
    num_record_items_max: int = 1 << 18
    """The same for messages that become Python objects (≈ 250 bytes an item): 64 MiB at the very worst."""
    depth_max: int = 32
    """Nesting of records, arrays and maps; ours need 5, an order of a shop 10; C decoders recurse, so it is small."""
    id_bytes_max: int = 64
    """decision_id and type: they are repeated in journal, decisions and transitions of every decision."""
    name_bytes_max: int = 256
    """subject, outcome_id, action_id, task, episode_id, feature names: longer than any e-mail address or URL key."""
    text_bytes_max: int = 1 << 16
    """One string feature: a long e-mail; its tokens are cut at 4,096 anyway (learning.md rule 4)."""
    num_features_max: int = 1 << 10
    """Named features of a context or of one candidate: more belong into a vector."""
    num_vector_max: int = 1 << 14
    """Numbers of one vector feature: four times the largest embedding in use."""
    num_tokens_max: int = 1 << 12
    """Strings of one list feature (learning.md rule 4)."""
    num_candidates_max: int = 1 << 16
    """learning.md rule 15: propensities are 24-bit integers, at least 16 each."""
    num_slots_max: int = 1 << 10
    """Slots of a slate: nobody reads the thousandth position."""
    num_rows_max: int = (1 << 16) - 1
    """Rows of a block: a position has 16 bits for the row (join.md)."""
    schema_bytes_max: int = 1 << 18
    """A writer's schema fetched from a registry; the largest of ours has 12 KiB."""
    num_schema_nodes_max: int = 10_000
    """Types in such a schema."""
    decimal_bytes_max: int = 64
    """An Avro decimal: turning a longer one into a number costs the square of its length."""


LIMITS = Limits()


class BadRecord(ValueError):
    """Bytes that cannot be used. The sender's fault, never ours; nothing was changed by reading them.

    `reason` is a code of `schemas.varints.REASONS`, stable for metrics and dead letters; `detail` a sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Payload = bytes | bytearray | memoryview | U8


def view_of(payload: Payload) -> U8:
    """The payload as a read-only contiguous (n,) uint8 array, without copying where that is possible.

    Always read-only: numba compiles another version of every function for writable input.
    """
    if isinstance(payload, bytes):
        return np.frombuffer(payload, np.uint8)
    array = payload if isinstance(payload, np.ndarray) else np.frombuffer(payload, np.uint8)
    view = np.ascontiguousarray(array, np.uint8).view()
    view.flags.writeable = False
    return view


# ── the schema as a program ──────────────────────────────────────────────────────────────────────────────────────
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


@numba.njit(cache=True, nogil=True)
def _read_primitive(buffer: U8, position: int, op: int, argument: int, finite: bool) -> int:
    """Position after one primitive value, or minus the code of what is wrong with it."""
    end = len(buffer)
    if op == LONG:
        return read_long(buffer, position, end)[1]
    if op in (STRING, BYTES):
        length, position = read_length(buffer, position, end, argument)
        if position < 0 or op == BYTES:
            return position + length if position >= 0 else position
        return utf8_end(buffer, position, position + length)
    if op in (INT, ENUM):
        value, position = read_long(buffer, position, end)
        if position < 0:
            return position
        if op == ENUM and (value < 0 or value >= argument):
            return -BAD_ENUM
        return position if -(1 << 31) <= value < (1 << 31) else -OUT_OF_RANGE
    size = argument if op == FIXED else 4 if op == FLOAT else 8 if op == DOUBLE else 1 if op == BOOLEAN else 0
    if size > end - position:
        return -TRUNCATED
    if op == BOOLEAN and buffer[position] > 1:
        return -BAD_BOOLEAN
    if finite and op == FLOAT and not is_finite_f32(buffer, position):
        return -NOT_FINITE
    if finite and op == DOUBLE and not is_finite_f64(buffer, position):
        return -NOT_FINITE
    return position + size


@numba.njit(cache=True, nogil=True)
def _read_block_head(buffer: U8, position: int, items_left: int, fewest_bytes: int) -> tuple[int, int, int]:
    """(items, position after the head or minus a code, position at which the block must end or -1)."""
    end = len(buffer)
    block_end = -1
    count, position = read_long(buffer, position, end)
    if position < 0:
        return 0, position, block_end
    if count < 0:
        if count < -items_left:
            return 0, -TOO_MANY_ITEMS, block_end
        count = -count
        size, position = read_long(buffer, position, end)
        if position < 0:
            return 0, position, block_end
        if size < 0:
            return 0, -NEGATIVE_LENGTH, block_end
        if size > end - position:
            return 0, -TRUNCATED, block_end
        block_end = position + size
    if count > items_left:
        return 0, -TOO_MANY_ITEMS, block_end
    if count * fewest_bytes > end - position:
        return 0, -TRUNCATED, block_end
    return count, position, block_end


@numba.njit(cache=True, nogil=True)
def _walk(
    buffer: U8, position: int, nodes: I64, children: I64, depth_max: int, num_items_max: int, finite: bool
) -> tuple[int, int, int]:
    """(code, byte, node) of the first thing that is wrong, code 0 for none. An explicit stack: no recursion."""
    frame_node = np.empty(depth_max, np.int64)
    frame_left = np.empty(depth_max, np.int64)  # items left in the block; for a record the next field
    frame_end = np.empty(depth_max, np.int64)
    top, node, reading, items_left = -1, 0, True, num_items_max
    while reading or top >= 0:
        if reading:
            op = nodes[node, 0]
            if op == UNION:
                branch, after = read_long(buffer, position, len(buffer))
                if after < 0:
                    return -after, position, node
                if branch < 0 or branch >= nodes[node, 2]:
                    return BAD_UNION, position, node
                position, node = after, children[nodes[node, 1] + branch]
                continue
            reading = False
            if op >= ARRAY:
                top += 1
                if top == depth_max:
                    return TOO_DEEP, position, node
                frame_node[top], frame_left[top], frame_end[top] = node, 0, -1
                continue
            after = _read_primitive(buffer, position, op, nodes[node, 1], finite)
            if after < 0:
                return -after, position, node
            position = after
            continue
        parent = frame_node[top]
        if nodes[parent, 0] == RECORD:
            index = frame_left[top]
            if index == nodes[parent, 2]:
                top -= 1
                continue
            frame_left[top] = index + 1
            node, reading = children[nodes[parent, 1] + index], True
            continue
        item = children[nodes[parent, 1]]
        if frame_left[top] == 0:
            if frame_end[top] >= 0 and position != frame_end[top]:
                return BAD_BLOCK, position, parent
            fewest = nodes[item, 3] + (1 if nodes[parent, 0] == MAP else 0)
            count, after, block_end = _read_block_head(buffer, position, items_left, fewest)
            if after < 0:
                return -after, position, parent
            position, items_left = after, items_left - count
            frame_left[top], frame_end[top] = count, block_end
            if count == 0:
                top -= 1
            continue
        frame_left[top] -= 1
        if nodes[parent, 0] == MAP:
            after = _read_primitive(buffer, position, STRING, len(buffer), finite)
            if after < 0:
                return -after, position, parent
            position = after
        node, reading = item, True
    return (TRAILING_BYTES if position < len(buffer) else 0), position, 0


def check(
    payload: U8, start: int, program: Program, limits: Limits = LIMITS, *, finite: bool = True, as_objects: bool = True
) -> None:
    """Walk payload[start:] along the writer's schema; return only if a decoder can be trusted with it.

    `payload` from `view_of`; `finite` refuses NaN and ±Inf anywhere; `as_objects`: it will become Python objects,
    so the smaller budget of items holds. Raises BadRecord with the exact reason, the field and the byte.
    """
    if len(payload) > limits.message_bytes_max:
        raise too_large(len(payload), limits)
    items = limits.num_record_items_max if as_objects else limits.num_items_max
    code, byte, node = _walk(payload, start, program.nodes, program.children, limits.depth_max, items, finite)
    if code:
        raise bad(code, program.paths[node], byte)


def too_large(size_bytes: int, limits: Limits) -> BadRecord:
    """The refusal of a whole message for its size."""
    return BadRecord("too-large", f"the message has {size_bytes} bytes, at most {limits.message_bytes_max} are read")


def bad(code: int, path: str, byte: int) -> BadRecord:
    """The refusal for a code of `schemas.varints`, found in a field at a byte of the message."""
    reason, sentence = REASONS[code]
    return BadRecord(reason, f"{path} at byte {byte}: {sentence}")


@lru_cache(maxsize=1)
def reason_codes() -> tuple[str, ...]:
    """All reason codes by number; index 0 is the empty code of a good record."""
    return tuple(reason for reason, _ in REASONS)


__all__ = ["LIMITS", "REASONS", "TOO_LARGE", "BadRecord", "Limits", "Program", "check", "compile_schema", "view_of"]
