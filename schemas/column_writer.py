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


def write_fields(prefix: bytes, fields: Mapping[str, Any], layout: Layout) -> bytes:
    """`prefix` and the fields in the layout's order, as one message.

    Integer columns of all fields go through numba together: one call, whatever the number of columns.
    Every block has integer columns.
    """
    int_names = [name for name, kind in zip(layout.names, layout.kinds, strict=True) if kind in (I32S, I64S)]
    columns = [fields[name].reshape(-1) for name in int_names]
    counts = np.fromiter(map(len, columns), np.int64, len(columns))
    written, stops = write_arrays(np.concatenate(columns, dtype=np.int64), counts)
    encoded, ends = written.data, iter(stops.tolist())
    parts: list[Any] = [prefix]
    first = 0
    for name, kind in zip(layout.names, layout.kinds, strict=True):
        value = fields[name]
        if kind in (I32S, I64S):
            last = next(ends)
            parts.append(encoded[first:last])
            first = last
        elif kind == NUMBER:
            parts.append(long_bytes(value))
        elif kind == FIXED:
            parts.append(value)
        elif kind == TEXT:
            text = value.encode()
            parts += (long_bytes(len(text)), text)
        elif kind == STRINGS:
            parts.append(_strings(value))
        elif kind == BYTES:
            raw = value if isinstance(value, bytes) else np.ascontiguousarray(value)
            parts += (long_bytes(len(raw) if isinstance(raw, bytes) else raw.nbytes), raw)
        elif value.size:
            parts += (long_bytes(value.size), np.ascontiguousarray(value, DTYPES[kind]), b"\0")
        else:
            parts.append(b"\0")
    return b"".join(parts)
