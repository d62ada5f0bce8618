"""Column writer: the columns of a block become its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from schemas.blocks import I32, I64, U8, Strings
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
    return out[: position + 1].copy()


def _strings(column: Strings) -> bytes | U8:
    """As `_write_strings`; a column of none or one string, as a single decision has, costs no compiled call."""
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


@lru_cache(maxsize=64)
def _int_names(layout: Layout) -> tuple[str, ...]:
    """Integer columns of a layout, in its order."""
    return tuple(name for name, kind in zip(layout.names, layout.kinds, strict=True) if kind in (I32S, I64S))


def _int_arrays(fields: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The bytes of each integer column that has elements: one call for all, whatever their number."""
    columns = [(name, fields[name]) for name in _int_names(layout)]
    columns = [(name, column) for name, column in columns if column.size]
    if not columns:
        return {}
    flat = [column if column.ndim == 1 else column.reshape(-1) for _, column in columns]
    written, ends = write_arrays(np.concatenate(flat, dtype=np.int64), np.array([len(column) for column in flat]))
    encoded = written.data
    arrays: dict[str, Any] = {}
    first = 0
    for (name, _), last in zip(columns, ends.tolist(), strict=True):
        arrays[name] = encoded[first:last]
        first = last
    return arrays


def write_fields(prefix: bytes, fields: Mapping[str, Any], layout: Layout) -> bytes:
    """`prefix` and the fields in the layout's order, as one message."""
    int_arrays = _int_arrays(fields, layout)
    parts: list[Any] = [prefix]
    for name, kind in zip(layout.names, layout.kinds, strict=True):
        if name in int_arrays:
            parts.append(int_arrays[name])
            continue
        value = fields[name]
        if kind == NUMBER:
            parts.append(long_bytes(value))
        elif kind == FIXED:
            parts.append(value)
        elif kind == TEXT:
            text = value.encode()
            parts += (long_bytes(len(text)), text)
        elif kind == STRINGS:
            parts.append(_strings(value))
        elif kind == BYTES:
            raw = value if isinstance(value, bytes) else value.tobytes()
            parts += (long_bytes(len(raw)), raw)
        elif not value.size:
            parts.append(b"\0")
        else:
            parts += (long_bytes(value.size), value.astype(DTYPES[kind], copy=False).tobytes(), b"\0")
    return b"".join(parts)
