"""Bounds: what a message may contain at most, checked before anything is allocated or handed to another decoder.

Bytes from a topic are hostile until `check` has walked them. Two ways to die are known: fastavro recurses in C and
ends the process with SIGSEGV on a deeply nested record, and an array of nulls says "50 million items" in five bytes.
Neither gets past `check`: it follows the writer's schema as a flat program with an explicit stack, in numba, and
every length, count, index and number is compared with what is left of the message before it is believed.

What has bytes is limited by the message. What needs none is counted, or a short schema would make any number of it
out of an empty message: items of arrays and maps, records (four records of four records each, and so on), nulls that
are no choice. Together they may not exceed a budget, `LIMITS.num_record_items_max`; each counts once, a record that is
an item too, and the outermost value not at all.
"""

from __future__ import annotations

import numba
import numpy as np

from schemas.arrays import I64, U8
from schemas.limits import LIMITS, BadRecord, Limits, Payload, bad, too_large, view_of
from schemas.schema_program import (
    ARRAY,
    BOOLEAN,
    BYTES,
    DOUBLE,
    ENUM,
    FIXED,
    FLOAT,
    INT,
    LONG,
    MAP,
    RECORD,
    STRING,
    UNION,
    Program,
    compile_schema,
)
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
    TOO_MANY_ITEMS,
    TRAILING_BYTES,
    TRUNCATED,
    is_finite_f32,
    is_finite_f64,
    read_length,
    read_long,
    utf8_end,
)

__all__ = [
    "LIMITS",
    "REASONS",
    "BadRecord",
    "Limits",
    "Payload",
    "Program",
    "bad",
    "check",
    "compile_schema",
    "too_large",
    "view_of",
]


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
    """(code, byte, node) of the first thing that is wrong, code 0 for none. An explicit stack: no recursion.

    The time is bounded too: some steps for each byte and for each of the `num_items_max` values that need none.
    """
    frame_node = np.empty(depth_max, np.int64)
    frame_left = np.empty(depth_max, np.int64)  # items left in the block; for a record the next field
    frame_end = np.empty(depth_max, np.int64)
    top, node, reading, items_left = -1, 0, True, num_items_max
    is_counted = True  # the value that is read next: the outermost is free, an item counts with its block
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
                is_counted |= nodes[node, 0] < UNION  # no record: the choice itself had a byte
                continue
            reading = False
            if not is_counted and (op == RECORD or nodes[node, 3] == 0):
                if items_left == 0:
                    return TOO_MANY_ITEMS, position, node
                items_left -= 1
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
            node, reading, is_counted = children[nodes[parent, 1] + index], True, False
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
        node, reading, is_counted = item, True, True
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
