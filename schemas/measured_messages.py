"""Messages of one schema, measured: what many of them hold, without a Python object for any.

For `schemas.merged_reader`, which makes one block of them. Knows layouts, not what the fields mean.

Shape legend: K messages, F fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from schemas.arrays import I64, U8
from schemas.bounds import Limits
from schemas.codec import NUM_HEADER
from schemas.column_reader import fill, measure
from schemas.columns import DTYPES
from schemas.layout import BYTES, F64S, I64S, UNREAD_STRINGS, Layout, without_strings
from schemas.layout import DTYPES as ARRAY_DTYPES

FIRST, COUNT = 0, 1
"""Columns of a table of `column_reader.measure`: first byte, or the value of a number; items, or bytes of a text."""
_TARGET = 3


@numba.njit(cache=True, nogil=True)
def _measure_all(buffer: U8, starts: I64, stops: I64, layout: I64, num_items_max: int) -> tuple[bool, I64]:
    """(whether all messages follow the layout, their tables (K, fields, 4))."""
    tables = np.zeros((len(starts), len(layout), 4), np.int64)
    for message in range(len(starts)):
        code, _, _, table, _ = measure(buffer[starts[message] : stops[message]], NUM_HEADER, layout, num_items_max)
        if code:
            return False, tables
        tables[message] = table
    return True, tables


@numba.njit(cache=True, nogil=True)
def _fill_all(buffer: U8, starts: I64, stops: I64, layout: I64, tables: I64) -> tuple[bool, I64, I64, U8]:
    """(whether all numbers fit, where each field's column begins in the arena, its items, arena)."""
    firsts, totals = np.zeros(len(layout), np.int64), np.zeros(len(layout), np.int64)
    size = np.int64(0)
    for field in range(len(layout)):
        kind = layout[field, 0]
        if kind < BYTES or kind == UNREAD_STRINGS:
            continue
        width = 1 if kind == BYTES else 8 if kind == F64S or kind == I64S else 4  # noqa: SIM109
        firsts[field] = size
        for message in range(len(starts)):
            tables[message, field, _TARGET] = size + totals[field] * width
            totals[field] += tables[message, field, COUNT]
        size += (totals[field] * width + 7) // 8 * 8
    longs = np.empty(size // 8, np.int64)
    for message in range(len(starts)):
        code, _ = fill(buffer[starts[message] : stops[message]], layout, tables[message], longs)
        if code:
            return False, firsts, totals, longs.view(np.uint8)
    return True, firsts, totals, longs.view(np.uint8)


@numba.njit(cache=True, nogil=True)
def _leaders(buffer: U8, begins: I64, ends: I64, numbers: I64) -> I64:
    """(K,) index of the first message that each is like: the same bytes in every span, the same numbers.

    begins, ends (K, F): spans within the buffer; numbers (K, M).
    """
    leaders = np.empty(len(begins), np.int64)
    for message in range(len(begins)):
        leader = 0
        while leader < message and not (
            leaders[leader] == leader and _alike(buffer, begins, ends, numbers, leader, message)
        ):
            leader += 1
        leaders[message] = leader
    return leaders


@numba.njit(cache=True, nogil=True)
def _alike(buffer: U8, begins: I64, ends: I64, numbers: I64, one: int, other: int) -> bool:
    for number in range(numbers.shape[1]):
        if numbers[one, number] != numbers[other, number]:
            return False
    for span in range(begins.shape[1]):
        first, second, size = begins[one, span], begins[other, span], ends[one, span] - begins[one, span]
        if ends[other, span] - second != size:
            return False
        for at in range(size):
            if buffer[first + at] != buffer[second + at]:
                return False
    return True


REQUIRED, IN_ALL_OR_NONE, IN_EACH_OR_NONE = range(3)
"""How the items of a column relate to what it should have: in every message; in all or in none; in each or none."""


@numba.njit(cache=True, nogil=True)
def _fit(tables: I64, chosen: I64, expected: I64, columns: I64) -> bool:
    """Whether columns of the `chosen` messages have the items they must have.

    expected (len(chosen),): rows of each message; columns (C, 3): field, items per row, one of the rules above.
    """
    for column in range(len(columns)):
        field, size, rule = columns[column]
        num_full = num_empty = 0
        for index in range(len(chosen)):
            items = tables[chosen[index], field, COUNT]
            if items == expected[index] * size:
                num_full += 1
            elif items != 0:
                return False
            num_empty += items == 0
        is_whole = num_full == len(chosen) or rule == IN_EACH_OR_NONE
        if not is_whole and not (rule == IN_ALL_OR_NONE and num_empty == len(chosen)):
            return False
    return True


@lru_cache(maxsize=64)
def numbers_of(layout: Layout) -> Layout:
    """The layout for who reads numbers only: strings of rows are checked and left unread."""
    return without_strings(layout, frozenset())


class Messages:
    """Messages of one schema, measured."""

    def __init__(self, view: U8, starts: I64, stops: I64, layout: Layout, limits: Limits) -> None:
        self.view, self.starts, self.stops, self.layout = view, starts, stops, layout
        self.place = {name: field for field, name in enumerate(layout.names)}
        self.ok, self.tables = _measure_all(view, starts, stops, layout.table, limits.num_items_max)

    def of(self, name: str) -> I64:
        """(K,) items of an array, bytes of a bytes field."""
        counts: I64 = self.tables[:, self.place[name], COUNT]
        return counts

    def number(self, name: str) -> I64:
        """(K,) values of a number."""
        values: I64 = self.tables[:, self.place[name], FIRST]
        return values

    def fit(self, chosen: I64, expected: I64, columns: Iterable[tuple[str, int, int]]) -> bool:
        """As `_fit`, columns by name."""
        places = np.array([(self.place[name], size, rule) for name, size, rule in columns])
        return bool(_fit(self.tables, chosen, expected, places))

    def leaders(self, texts: Sequence[str], numbers: Sequence[str]) -> I64:
        """(K,) index of the first message with the same text, bytes and fixed fields `texts` and `numbers`."""
        fields = [self.place[name] for name in texts]
        begins = self.tables[:, fields, FIRST] + self.starts[:, None]
        ends = begins + self.tables[:, fields, COUNT]
        values = self.tables[:, [self.place[name] for name in numbers], FIRST]
        leaders: I64 = _leaders(self.view, begins, ends, values)
        return leaders

    def between(self, message: int, first: str, stop: str) -> bytes:
        """Bytes of the message from field `first` up to field `stop`; neither may be a number."""
        table, start = self.tables[message], self.starts[message]
        begin, end = table[self.place[first], FIRST], table[self.place[stop], FIRST]
        return self.view[start + begin : start + end].tobytes()

    def leaders_between(self, first: str, stop: str) -> I64:
        """The same by what stands from field `first` up to field `stop`, neither a number."""
        begins, ends = (self.tables[:, self.place[name], FIRST] + self.starts for name in (first, stop))
        leaders: I64 = _leaders(self.view, begins[:, None], ends[:, None], np.empty((len(begins), 0), np.int64))
        return leaders

    def text(self, message: int, name: str) -> bytes:
        """Bytes of a text, bytes or fixed field."""
        first, size = self.tables[message, self.place[name], :2]
        start = self.starts[message] + first
        return self.view[start : start + size].tobytes()

    def columns(self, chosen: I64) -> dict[str, Any] | None:
        """Columns of the `chosen` messages, one after another; numbers and texts are those of the first."""
        tables = np.ascontiguousarray(self.tables[chosen])
        good, firsts, totals, arena = _fill_all(
            self.view, self.starts[chosen], self.stops[chosen], self.layout.table, tables
        )
        if not good:
            return None
        fields: dict[str, Any] = {}
        for name, kind, first, total in zip(
            self.layout.names, self.layout.kinds, firsts.tolist(), totals.tolist(), strict=True
        ):
            dtype = DTYPES.get(name) if kind == BYTES else ARRAY_DTYPES.get(kind)
            if dtype is not None:
                size = total // dtype.itemsize if kind == BYTES else total
                fields[name] = np.ndarray((size,), dtype, arena, first)
            elif kind == UNREAD_STRINGS:
                fields[name] = 0
            else:
                fields[name] = None
        return fields
