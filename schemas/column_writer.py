"""Column writer: the columns of a block become its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from schemas.arrays import I32, I64, U8, Strings
from schemas.layout import BYTES, DTYPES, FIXED, I32S, I64S, NUMBER, STRINGS, TEXT, Layout
from schemas.varints import write_arrays, write_long


@numba.njit(cache=True, nogil=True)
def _write_strings(buffer: U8, starts: I64, lengths: I32) -> U8:
    """Avro array<string> of a column."""
    total = 0
    for index in range(len(lengths)):
        total += lengths[index]
    out = np.empty(total + 10 * len(lengths) + 11, np.uint8)
    position = 0
    if len(lengths):
        position = write_long(out, position, len(lengths))
    for index in range(len(lengths)):
        position = write_long(out, position, lengths[index])
        for byte in range(starts[index], starts[index] + lengths[index]):
            out[position] = buffer[byte]
            position += 1
    out[position] = 0
    return out[: position + 1]


def _strings(column: Strings | tuple[str, ...]) -> bytes | U8:
    """As `_write_strings`; a column of none or one string, as a single decision has, costs no compiled call."""
    if isinstance(column, tuple):
        column = Strings.of(column)
    if len(column) == 0:
        return b"\0"
    if len(column) == 1:
        text = column.buffer[column.starts[0] : column.starts[0] + column.lengths[0]].tobytes()
        return b"\2" + long_bytes(len(text)) + text + b"\0"
    written: U8 = _write_strings(column.buffer, column.starts, column.lengths)
    return written


@lru_cache(maxsize=4096)
def long_bytes(value: int) -> bytes:
    """Zig-zag varint of one number.

    >>> long_bytes(-65).hex()
    '8101'
    """
    raw = (value << 1) ^ (value >> 63)
    out = bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)


INTS = -1
"""A step of `_steps`: all integer columns that follow each other, written by one call."""


@lru_cache(maxsize=64)
def _steps(layout: Layout) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """(places of the integer columns, steps (kind, place) in wire order; the place of an `INTS` step is which column
    ends it)."""
    ints = tuple(place for place, kind in enumerate(layout.kinds) if kind in (I32S, I64S))
    steps: list[tuple[int, int]] = []
    num_ints = 0
    for place, kind in enumerate(layout.kinds):
        if place not in ints:
            steps.append((kind, place))
            continue
        if steps and steps[-1][0] == INTS:
            steps.pop()
        steps.append((INTS, num_ints))
        num_ints += 1
    return ints, tuple(steps)


def _written_ints(values: Sequence[Any], ints: tuple[int, ...]) -> tuple[memoryview, list[int]]:
    """(the bytes of the integer columns, where each ends): one call for all, whatever their number."""
    columns = [values[place] for place in ints]
    flat = [column if column.ndim == 1 else column.reshape(-1) for column in columns]
    written, ends = write_arrays(np.concatenate(flat, dtype=np.int64), np.array([len(column) for column in flat]))
    return written.data, ends.tolist()


def write_fields(prefix: bytes, values: Sequence[Any], layout: Layout) -> bytes:
    """`prefix` and the values of the layout's fields, in its order, as one message."""
    ints, steps = _steps(layout)
    written, ends = _written_ints(values, ints)
    begin = 0
    parts: list[Any] = [prefix]
    for kind, place in steps:
        if kind == INTS:
            parts.append(written[begin : ends[place]])
            begin = ends[place]
            continue
        value = values[place]
        if kind == BYTES:
            raw: Any = value if isinstance(value, bytes) else np.ascontiguousarray(value)
            parts += (long_bytes(memoryview(raw).nbytes), raw)
        elif kind == NUMBER:
            parts.append(long_bytes(value))
        elif kind == STRINGS:
            parts.append(_strings(value))
        elif kind == TEXT:
            text = value.encode()
            parts += (long_bytes(len(text)), text)
        elif kind == FIXED:
            parts.append(value)
        elif not value.size:
            parts.append(b"\0")
        else:
            parts += (long_bytes(value.size), np.ascontiguousarray(value, DTYPES[kind]), b"\0")
    return b"".join(parts)
