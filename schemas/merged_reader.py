"""Merged reader: many blocks of one schema, each a message of its own, become the columns of one.

For the join, which reads the journal in batches of many messages: what one block costs in Python is then paid once a
batch. Only the plain case is read here: messages of the current schema whose columns agree in shape. Whatever
is unusual or wrong about any of them gives None, and the caller decodes them one by one (`schemas.codec.decode`), which
finds the same columns or the exact fault. Strings of rows are checked and left unread.

Shape legend: K messages, N rows of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from schemas.arrays import I64, NO_STRINGS, U8
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.bounds import LIMITS, BadRecord, Limits
from schemas.codec import NUM_HEADER, decode
from schemas.column_reader import fill, measure
from schemas.columns import DTYPES, block_of
from schemas.layout import BYTES, F64S, I64S, UNREAD_STRINGS, Layout, without_strings
from schemas.layout import DTYPES as ARRAY_DTYPES
from schemas.registered import Registry
from schemas.soundness import segment_sums

_FIRST, _COUNT, _TARGET = 0, 1, 3
"""Columns of a table of `column_reader.measure` that are used here."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Rows of several messages as one block."""

    block: Any
    """DecisionBlock or OutcomeBlock, as if the messages had been one; what differs between them is said below."""
    messages: I64
    """(K,) index of each message among those given."""
    rows: I64
    """(K,) rows of each."""
    versions: I64
    """(K,) snapshot version of each DecisionBlock, () for outcomes."""
    sources: tuple[tuple[str, int], ...]
    """(K,) source topic and partition of each OutcomeBlock, () for decisions."""
    type_names: tuple[tuple[str, ...], ...]
    """(K,) outcome types of each OutcomeBlock, to which the codes of its rows refer; () for decisions."""


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
            totals[field] += tables[message, field, _COUNT]
        size += (totals[field] * width + 7) // 8 * 8
    longs = np.empty(size // 8, np.int64)
    for message in range(len(starts)):
        code, _ = fill(buffer[starts[message] : stops[message]], layout, tables[message], longs)
        if code:
            return False, firsts, totals, longs.view(np.uint8)
    return True, firsts, totals, longs.view(np.uint8)


@lru_cache(maxsize=64)
def _numbers(layout: Layout) -> Layout:
    return without_strings(layout, frozenset())


class _Messages:
    """Messages of one schema, measured."""

    def __init__(self, view: U8, starts: I64, stops: I64, layout: Layout, limits: Limits) -> None:
        self.view, self.starts, self.stops, self.layout = view, starts, stops, layout
        self.place = {name: field for field, name in enumerate(layout.names)}
        self.ok, self.tables = _measure_all(view, starts, stops, layout.table, limits.num_items_max)

    def of(self, name: str) -> I64:
        """(K,) items of an array, bytes of a bytes field."""
        counts: I64 = self.tables[:, self.place[name], _COUNT]
        return counts

    def number(self, name: str) -> I64:
        """(K,) values of a number."""
        values: I64 = self.tables[:, self.place[name], _FIRST]
        return values

    def raw(self, message: int, first: str, stop: str) -> bytes:
        """Bytes of the message from field `first` up to field `stop`; neither may be a number."""
        table, start = self.tables[message], self.starts[message]
        begin, end = table[self.place[first], _FIRST], table[self.place[stop], _FIRST]
        return self.view[start + begin : start + end].tobytes()

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


def _all_or_none(counts: I64, expected: I64) -> bool:
    """Whether an optional column is there in every message, or in none."""
    return bool((counts == expected).all() or not counts.any())


_PER_ROW = {
    "decision_keys": 16, "subject_keys": 8, "reasons": 1, "num_candidates": 1, "request_partitions": 1,
    "request_offsets": 1,
}  # fmt: skip
_PER_ROW_OR_NONE = {"terminal": 1, "episode_keys": 8, "steps": 1, "context_token_counts": 1, "bounds": 2}
_STRINGS_PER_ROW = ("decision_ids", "subjects", "episode_ids")


def _rows_agree(found: _Messages, chosen: I64, limits: Limits) -> bool:
    """Whether the columns of DecisionBlocks that count rows have the lengths they must have, message by message."""
    rows = found.number("num_rows")[chosen]
    slots, width = found.number("num_slots")[chosen[0]], found.number("context_width")[chosen[0]]
    if rows.min() < 1 or rows.sum() > limits.num_rows_max or not 1 <= slots <= limits.num_slots_max or width < 0:
        return False
    required = {**_PER_ROW, "context": width, "chosen": slots}
    optional = {**_PER_ROW_OR_NONE, "values": slots}
    return (
        all((found.of(name)[chosen] == rows * size).all() for name, size in required.items())
        and all(_all_or_none(found.of(name)[chosen], rows * size) for name, size in optional.items())
        and all(_strings_fit(found.of(name)[chosen], rows) for name in _STRINGS_PER_ROW)
    )


def _strings_fit(counts: I64, expected: I64) -> bool:
    return bool(((counts == expected) | (counts == 0)).all())


def _candidates_agree(found: _Messages, chosen: I64, fields: Mapping[str, Any]) -> bool:
    """The same for columns that count candidates or tokens."""
    rows, slots = found.number("num_rows")[chosen], found.number("num_slots")[chosen[0]]
    width = found.number("action_width")[chosen[0]]
    if width < 0 or fields["num_candidates"].min() < 1:
        return False
    candidates = segment_sums(fields["num_candidates"], rows)
    context_tokens = segment_sums(fields["context_token_counts"], found.of("context_token_counts")[chosen])
    action_tokens = segment_sums(fields["action_token_counts"], found.of("action_token_counts")[chosen])
    optional = {"actions": width, "action_keys": 8, "action_token_counts": 1}
    return (
        bool((found.of("propensities")[chosen] == candidates * slots).all())
        and all(_all_or_none(found.of(name)[chosen], candidates * size) for name, size in optional.items())
        and _strings_fit(found.of("action_ids")[chosen], candidates)
        and bool((found.of("context_tokens")[chosen] == 4 * context_tokens).all())
        and bool((found.of("context_token_values")[chosen] == context_tokens).all())
        and bool((found.of("action_tokens")[chosen] == 4 * action_tokens).all())
        and bool((found.of("action_token_values")[chosen] == action_tokens).all())
    )


def _decision_fields(found: _Messages, chosen: I64, limits: Limits) -> dict[str, Any] | None:
    """Merged fields of DecisionBlocks that agree in task, fingerprint, catalogue and shape."""
    if not _rows_agree(found, chosen, limits):
        return None
    fields = found.columns(chosen)
    if fields is None or not _candidates_agree(found, chosen, fields):
        return None
    first = int(chosen[0])
    fields.update(
        task=found.text(first, "task").decode(),
        fingerprint=found.text(first, "fingerprint"),
        catalogue=found.text(first, "catalogue"),
        request_topic=found.text(first, "request_topic").decode(),
    )
    for name in ("snapshot_version", "num_slots", "context_width", "action_width"):
        fields[name] = int(found.number(name)[first])
    fields["num_rows"] = int(found.number("num_rows")[chosen].sum())
    return fields


def merge_decisions(
    view: U8, starts: I64, stops: I64, registry: Registry, limits: Limits = LIMITS
) -> list[Merged] | None:
    """DecisionBlock messages view[starts[k]:stops[k]] by task fingerprint and shape, None: decode them one by one.

    `view` read-only; the messages must carry the id of the current DecisionBlock.
    """
    layout = registry.reader_of("DecisionBlock").layout
    assert layout is not None, "our own blocks have a layout"
    found = _Messages(view, starts, stops, _numbers(layout), limits)
    if not found.ok:
        return None
    shapes = [found.number(name).tolist() for name in ("num_slots", "context_width", "action_width")]
    alike: dict[Any, list[int]] = {}
    for message in range(len(starts)):
        head = (found.text(message, "task"), found.text(message, "fingerprint"), found.text(message, "catalogue"))
        alike.setdefault((*head, *(shape[message] for shape in shapes)), []).append(message)
    if len({head[1] for head in alike}) < len(alike):
        return None  # blocks of one definition that differ in shape: at least one contradicts it
    parts = []
    for messages in alike.values():
        chosen = np.array(messages, np.int64)
        fields = _decision_fields(found, chosen, limits)
        block = None if fields is None else _block("DecisionBlock", fields, limits)
        if block is None:
            return None
        parts.append(
            Merged(block, chosen, found.number("num_rows")[chosen], found.number("snapshot_version")[chosen], (), ())
        )
    return parts


def _block(name: str, fields: Mapping[str, Any], limits: Limits) -> DecisionBlock | OutcomeBlock | None:
    try:
        block = block_of(name, fields, limits)
    except BadRecord:
        return None
    assert isinstance(block, DecisionBlock | OutcomeBlock)
    return block


_OUTCOME_ROWS = {
    "outcome_keys": 16, "subject_keys": 8, "decision_keys": 16, "action_keys": 8, "values": 1, "slots": 1, "types": 1,
    "source_offsets": 1, "times_ms": 1,
}  # fmt: skip
_OUTCOME_STRINGS = ("outcome_ids", "subjects", "decision_ids")


def merge_outcomes(view: U8, starts: I64, stops: I64, registry: Registry, limits: Limits = LIMITS) -> Merged | None:
    """OutcomeBlock messages as one, None: decode them one by one. Row codes stay those of their own type names."""
    layout = registry.reader_of("OutcomeBlock").layout
    assert layout is not None, "our own blocks have a layout"
    found = _Messages(view, starts, stops, _numbers(layout), limits)
    if not found.ok:
        return None
    rows = found.number("num_rows")
    if rows.min() < 1 or rows.sum() > limits.num_rows_max:
        return None
    fits = all((found.of(name) == rows * size).all() for name, size in _OUTCOME_ROWS.items())
    fits = fits and all(_strings_fit(found.of(name), rows) for name in _OUTCOME_STRINGS)
    fields = found.columns(np.arange(len(starts))) if fits else None
    if fields is None:
        return None
    try:
        names = _type_names(found, registry, limits)
    except BadRecord:
        return None
    ends = np.cumsum(rows)
    falls = np.diff(fields["source_offsets"]) <= 0
    falls[ends[:-1] - 1] = False  # the next message may come from another source
    sizes = np.repeat([len(each) for each in names], rows)
    types = fields["types"]
    if falls.any() or (types < 0).any() or (types >= sizes).any() or not np.isfinite(fields["values"]).all():
        return None
    block = OutcomeBlock(
        source_topic="",
        source_partition=0,
        type_names=(),
        outcome_keys=fields["outcome_keys"].reshape(-1, 2),
        decision_keys=fields["decision_keys"].reshape(-1, 2),
        outcome_ids=NO_STRINGS,
        subjects=NO_STRINGS,
        decision_ids=NO_STRINGS,
        **{name: fields[name] for name in (
            "source_offsets", "subject_keys", "action_keys", "slots", "types", "values", "times_ms"
        )},
    )  # fmt: skip
    partitions = found.number("source_partition").tolist()
    sources = tuple((found.text(k, "source_topic").decode(), partitions[k]) for k in range(len(starts)))
    return Merged(block, np.arange(len(starts)), rows, np.empty(0, np.int64), sources, names)


def _type_names(found: _Messages, registry: Registry, limits: Limits) -> tuple[tuple[str, ...], ...]:
    """Type names of each message; those with the same bytes are read once, by the ordinary decoder."""
    known: dict[bytes, tuple[str, ...]] = {}
    names = []
    for message in range(len(found.starts)):
        raw = found.raw(message, "type_names", "outcome_ids")
        if raw not in known:
            payload = found.view[found.starts[message] : found.stops[message]]
            known[raw] = decode(payload, registry, limits, OutcomeBlock, strings=False).type_names
        names.append(known[raw])
    return tuple(names)
