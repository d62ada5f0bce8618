"""Column reader: the bytes of a block become one arena of aligned columns.

Two passes: the first finds every column and its size and checks that it lies within the message, the second copies
into one allocation of exactly the size needed. So no count is believed before its items have been seen, the columns
are aligned (float views straight into a message are not, and numba would compile everything twice), and nothing keeps
the fetched message alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from schemas.arrays import I32, I64, NO_STRINGS, U8, Strings
from schemas.layout import BYTES, DTYPES, F32S, F64S, FIXED, I64S, NUMBER, STRINGS, TEXT, UNREAD_STRINGS, Layout
from schemas.varints import (
    BAD_BLOCK,
    BAD_COLUMNS,
    BAD_VARINT,
    NEGATIVE_LENGTH,
    OUT_OF_RANGE,
    TOO_MANY_ITEMS,
    TRAILING_BYTES,
    TRUNCATED,
    copy_bytes,
    read_length,
    read_long,
    utf8_end,
)

_STRIDE = 64
"""Bytes of numbers looked at together."""


@numba.njit(cache=True, nogil=True)
def _array_head(buffer: U8, position: int, items_left: int) -> tuple[int, int, int]:
    """(items of the next block of an array, position after its head or -code, where it must end or -1)."""
    end = len(buffer)
    count, position = read_long(buffer, position, end)
    if position < 0 or 0 <= count <= items_left:
        return count, position, -1
    if count > 0 or count < -items_left:
        return 0, -TOO_MANY_ITEMS, -1
    size, position = read_long(buffer, position, end)
    if position < 0:
        return 0, position, -1
    if size < 0:
        return 0, -NEGATIVE_LENGTH, -1
    if size > end - position:
        return 0, -TRUNCATED, -1
    return -count, position, position + size


@numba.njit(cache=True, nogil=True)
def _skip_strings(buffer: U8, position: int, count: int) -> tuple[int, int]:
    """(position after `count` strings or -code, their bytes). Checks UTF-8: all together where that is the same.

    It is where every length is one byte, below 0x80: a character by itself, in which no other can begin or end. The
    first byte of a longer length (64 and more) passes for the rest of a character that the string before it lacks.
    """
    first, num_bytes = position, 0
    for _ in range(count):
        length, position = read_length(buffer, position, len(buffer), len(buffer))
        if position < 0:
            break
        position += length
        num_bytes += length
    if position >= 0 and position - first == count + num_bytes:
        position = utf8_end(buffer, first, position)
    elif position >= 0:
        after = first
        for _ in range(count):
            length, after = read_long(buffer, after, len(buffer))
            after = utf8_end(buffer, after, after + length)
            if after < 0:
                position = after
                break
    return position, num_bytes


@numba.njit(cache=True, nogil=True)
def _skip_items(buffer: U8, position: int, kind: int, count: int) -> tuple[int, int]:
    """(position after `count` items or -code, bytes of their strings). Varints are only skipped: pass 2 reads them."""
    end = len(buffer)
    if kind == F32S or kind == F64S:  # noqa: SIM109 - numba compiles two comparisons, not a tuple
        size = count * (4 if kind == F32S else 8)
        return (position + size if size <= end - position else -TRUNCATED), 0
    if count > end - position:
        return -TRUNCATED, 0
    if kind >= STRINGS:
        return _skip_strings(buffer, position, count)
    while count >= _STRIDE and end - position >= _STRIDE:  # of 64 bytes at most 64 end a number: counted side by side
        ended = np.uint8(0)
        for index in range(np.uint64(_STRIDE)):
            ended += buffer[np.uint64(position) + index] >> np.uint8(7)
        count -= _STRIDE - int(ended)
        position += _STRIDE
    while count > 0 and position < end:
        count -= buffer[np.uint64(position)] < 0x80
        position += 1
    return (position if count == 0 else -TRUNCATED), 0


@numba.njit(cache=True, nogil=True)
def measure(buffer: U8, position: int, layout: I64, num_items_max: int) -> tuple[int, int, int, I64, int]:
    """Pass 1: (code, byte, field of the fault, table, size of the arena).

    table (num_fields, 4): byte of the field or value of a NUMBER; items or bytes; bytes of strings; arena offset.
    """
    table = np.zeros((len(layout), 4), np.int64)
    arena = 0
    items_left = num_items_max
    for field in range(len(layout)):
        kind = layout[field, 0]
        table[field, 0], table[field, 3] = position, arena
        if kind == NUMBER:
            value, after = read_long(buffer, position, len(buffer))
            if after > 0 and layout[field, 1] == 1 and not -(1 << 31) <= value < (1 << 31):
                after = -OUT_OF_RANGE
            table[field, 0] = value
        elif kind == FIXED:
            table[field, 1] = layout[field, 1]
            after = position + layout[field, 1]
            after = after if after <= len(buffer) else -TRUNCATED
        elif kind == TEXT or kind == BYTES:  # noqa: SIM109
            length, after = read_length(buffer, position, len(buffer), len(buffer))
            if after >= 0:
                table[field, 0], table[field, 1] = after, length
                after = utf8_end(buffer, after, after + length) if kind == TEXT else after + length
                arena += (length + 7) // 8 * 8 if kind == BYTES else 0
        else:
            after = position
            count = -1
            while count != 0:
                count, after, block_end = _array_head(buffer, after, items_left)
                if after >= 0 and count > 0:
                    after, num_bytes = _skip_items(buffer, after, kind, count)
                    table[field, 1] += count
                    table[field, 2] += num_bytes
                    items_left -= count
                if after >= 0 and block_end >= 0 and after != block_end:
                    after = -BAD_BLOCK
                if after < 0:
                    break
            if kind != UNREAD_STRINGS:
                width = 8 if kind == F64S or kind == I64S else 12 if kind == STRINGS else 4  # noqa: SIM109
                arena += (table[field, 1] * width + 7) // 8 * 8 + (table[field, 2] + 7) // 8 * 8
        if after < 0:
            return -after, position, field, table, 0
        position = after
    return (TRAILING_BYTES if position < len(buffer) else 0), position, len(layout) - 1, table, arena


@numba.njit(cache=True, nogil=True)
def _copy_numbers(
    buffer: U8, position: int, kind: int, count: int, arena: U8, ints: I32, longs: I64, target: int
) -> int:
    """Position after `count` numbers or -code; they go to byte `target` of the arena (ints, longs are views of it)."""
    end = len(buffer)
    if kind == F32S or kind == F64S:  # noqa: SIM109
        size = count * (4 if kind == F32S else 8)
        copy_bytes(buffer, position, size, arena, target)
        return position + size
    lowest = highest = 0
    for index in range(count):
        if end - position >= 10:  # `read_long` once more, in place and without looking for the end: 3 ns instead of 7
            at, shift = np.uint64(position), np.uint64(7)
            byte = np.uint64(buffer[at])
            raw = byte & np.uint64(0x7F)
            for _ in range(3):  # unrolled: most numbers are short
                if byte < np.uint64(0x80):
                    break
                at += np.uint64(1)
                byte = np.uint64(buffer[at])
                raw |= (byte & np.uint64(0x7F)) << shift
                shift += np.uint64(7)
            while byte >= np.uint64(0x80) and shift < np.uint64(70):
                at += np.uint64(1)
                byte = np.uint64(buffer[at])
                raw |= (byte & np.uint64(0x7F)) << shift
                shift += np.uint64(7)
            if shift == np.uint64(70) and byte > np.uint64(1):
                position = -BAD_VARINT
                break
            value = int(np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1)))
            position = int(np.int64(at)) + 1
        else:
            value, position = read_long(buffer, position, end)
            if position < 0:
                break
        if kind == I64S:
            longs[np.uint64(target // 8 + index)] = value
        else:
            ints[np.uint64(target // 4 + index)] = value
            lowest, highest = min(lowest, value), max(highest, value)
    if position >= 0 and (lowest < -(1 << 31) or highest >= 1 << 31):
        position = -OUT_OF_RANGE
    return position


@numba.njit(cache=True, nogil=True)
def _copy_strings(
    buffer: U8, position: int, count: int, arena: U8, starts: I64, lengths: I32, chars: int, first: int
) -> tuple[int, int]:
    """(position after `count` strings, byte of the arena after them); starts count from byte `first` of the arena."""
    for index in range(count):
        length, position = read_long(buffer, position, len(buffer))
        starts[np.uint64(index)], lengths[np.uint64(index)] = chars - first, length
        copy_bytes(buffer, position, length, arena, chars)
        position += length
        chars += length
    return position, chars


@numba.njit(cache=True, nogil=True)
def fill(buffer: U8, layout: I64, table: I64, longs: I64) -> tuple[int, int]:
    """Pass 2: copies what `measure` found sound into the arena `longs`. (code, field of the fault)."""
    ints = longs.view(np.int32)
    arena = longs.view(np.uint8)
    for field in range(len(layout)):
        kind, target = layout[field, 0], table[field, 3]
        position, total = table[field, 0], table[field, 1]
        if kind == BYTES:
            copy_bytes(buffer, position, total, arena, target)
        if kind <= BYTES or kind == UNREAD_STRINGS:
            continue
        width = 8 if kind == F64S or kind == I64S else 4  # noqa: SIM109
        lengths = target // 4 + 2 * total
        first = chars = target + 8 * total + (4 * total + 7) // 8 * 8
        done = 0
        while done < total:
            count, position, _ = _array_head(buffer, position, total)
            if kind == STRINGS:
                at = target // 8 + done
                position, chars = _copy_strings(
                    buffer, position, count, arena, longs[at:], ints[lengths + done :], chars, first
                )
            else:
                position = _copy_numbers(buffer, position, kind, count, arena, ints, longs, target + width * done)
                if position < 0:
                    return -position, field
            done += count
    return 0, 0


@numba.njit(cache=True, nogil=True)
def _read(buffer: U8, position: int, layout: I64, num_items_max: int) -> tuple[int, int, int, I64, U8]:
    """(code, byte, field of the fault, table, arena): both passes in one call."""
    code, byte, field, table, arena_bytes = measure(buffer, position, layout, num_items_max)
    if code:
        return code, byte, field, table, np.empty(0, np.uint8)
    longs = np.empty((arena_bytes + 7) // 8, np.int64)
    code, field = fill(buffer, layout, table, longs)
    return code, table[field, 0], field, table, longs.view(np.uint8)


class LayoutFault(Exception):
    """A message that does not follow its layout: `code` of `schemas.varints`, field name, byte of the message."""

    def __init__(self, code: int, field: str, byte: int) -> None:
        super().__init__(code, field, byte)
        self.code, self.field, self.byte = code, field, byte


def read_fields(
    view: U8, start: int, layout: Layout, dtypes: Mapping[str, np.dtype[Any]], num_items_max: int
) -> dict[str, Any]:
    """All fields of view[start:] by name: str, int, bytes, 1-d owned aligned arrays, Strings or, unread, their number.

    `view` read-only (n,) uint8; `dtypes` says which bytes fields are columns and of what. Raises LayoutFault.
    """
    code, byte, field, table, arena = _read(view, start, layout.table, num_items_max)
    if code:
        raise LayoutFault(code, layout.names[field], byte)
    fields: dict[str, Any] = {}
    for name, kind, (first, count, num_chars, target) in zip(layout.names, layout.kinds, table.tolist(), strict=True):
        if kind == NUMBER:
            fields[name] = first
        elif kind == TEXT:
            fields[name] = view[first : first + count].tobytes().decode()
        elif kind == UNREAD_STRINGS:
            fields[name] = count
        elif kind == STRINGS:
            fields[name] = _strings(arena, count, num_chars, target)
        elif kind in DTYPES:
            fields[name] = np.ndarray((count,), DTYPES[kind], arena, target)
        elif name not in dtypes:
            fields[name] = view[first : first + count].tobytes()
        else:
            dtype = dtypes[name]
            if count % dtype.itemsize:
                raise LayoutFault(BAD_COLUMNS, name, first)
            fields[name] = np.ndarray((count // dtype.itemsize,), dtype, arena, target)
    return fields


def _strings(arena: U8, count: int, num_chars: int, target: int) -> Strings:
    if not count:
        return NO_STRINGS
    lengths = target + 8 * count
    chars = lengths + (4 * count + 7) // 8 * 8
    return Strings(
        arena[chars : chars + num_chars],
        np.ndarray((count,), np.int64, arena, target),
        np.ndarray((count,), np.int32, arena, lengths),
    )
