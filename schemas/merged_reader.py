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
from typing import Any

import numpy as np

from schemas.arrays import I64, NO_STRINGS, U8
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.bounds import LIMITS, BadRecord, Limits
from schemas.codec import decode
from schemas.columns import block_of
from schemas.measured_messages import IN_ALL_OR_NONE, IN_EACH_OR_NONE, REQUIRED, Messages, numbers_of
from schemas.registered import Registry
from schemas.soundness import segment_sums

_NONE: I64 = np.empty(0, np.int64)


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
    """Source topics and partitions of OutcomeBlocks, each once, in order of their first message."""
    source_of: I64
    """(K,) index among them of each message, () for decisions."""
    type_names: tuple[tuple[str, ...], ...]
    """Outcome types to which the codes of the rows of an OutcomeBlock refer."""
    type_names_of: I64
    """(K,) index among them of each message, () for decisions."""


_NAMES_READ_MAX = 1024
_names_read: dict[bytes, tuple[str, ...]] = {}
"""Outcome types by the bytes that say them: a topic says few."""

_PER_ROW = {
    "decision_keys": 16, "subject_keys": 8, "reasons": 1, "num_candidates": 1, "request_partitions": 1,
    "request_offsets": 1,
}  # fmt: skip
_PER_ROW_OR_NONE = {"terminal": 1, "episode_keys": 8, "steps": 1, "context_token_counts": 1, "bounds": 2}
_DECISION_ROWS = (
    *((name, size, REQUIRED) for name, size in _PER_ROW.items()),
    *((name, size, IN_ALL_OR_NONE) for name, size in _PER_ROW_OR_NONE.items()),
    *((name, 1, IN_EACH_OR_NONE) for name in ("decision_ids", "subjects", "episode_ids")),
)


def _rows_agree(found: Messages, chosen: I64, limits: Limits) -> bool:
    """Whether the columns of DecisionBlocks that count rows have the lengths they must have, message by message."""
    rows = found.number("num_rows")[chosen]
    slots, width = (int(found.number(name)[chosen[0]]) for name in ("num_slots", "context_width"))
    if rows.min() < 1 or rows.sum() > limits.num_rows_max or not 1 <= slots <= limits.num_slots_max or width < 0:
        return False
    by_task = (("context", width, REQUIRED), ("chosen", slots, REQUIRED), ("values", slots, IN_ALL_OR_NONE))
    return found.fit(chosen, rows, (*_DECISION_ROWS, *by_task))


def _candidates_agree(found: Messages, chosen: I64, fields: Mapping[str, Any]) -> bool:
    """The same for columns that count candidates or tokens."""
    rows, slots = found.number("num_rows")[chosen], found.number("num_slots")[chosen[0]]
    width = found.number("action_width")[chosen[0]]
    if width < 0 or fields["num_candidates"].min() < 1:
        return False
    candidates = segment_sums(fields["num_candidates"], rows)
    by_candidate = (
        ("propensities", int(slots), REQUIRED), ("actions", int(width), IN_ALL_OR_NONE),
        ("action_keys", 8, IN_ALL_OR_NONE), ("action_token_counts", 1, IN_ALL_OR_NONE),
        ("action_ids", 1, IN_EACH_OR_NONE),
    )  # fmt: skip
    return found.fit(chosen, candidates, by_candidate) and all(
        found.fit(
            chosen,
            segment_sums(fields[f"{of}_token_counts"], found.of(f"{of}_token_counts")[chosen]),
            ((f"{of}_tokens", 4, REQUIRED), (f"{of}_token_values", 1, REQUIRED)),
        )
        for of in ("context", "action")
    )


def _decision_fields(found: Messages, chosen: I64, limits: Limits) -> dict[str, Any] | None:
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
    found = Messages(view, starts, stops, numbers_of(layout), limits)
    if not found.ok:
        return None
    leaders = found.leaders(("task", "fingerprint", "catalogue"), ("num_slots", "context_width", "action_width"))
    firsts = np.flatnonzero(leaders == np.arange(len(leaders)))
    if len({found.text(first, "fingerprint") for first in firsts.tolist()}) < len(firsts):
        return None  # blocks of one definition that differ in shape: at least one contradicts it
    parts = []
    for first in firsts:
        chosen = np.flatnonzero(leaders == first)
        fields = _decision_fields(found, chosen, limits)
        block = None if fields is None else _block("DecisionBlock", fields, limits)
        if block is None:
            return None
        rows, versions = (found.number(name)[chosen] for name in ("num_rows", "snapshot_version"))
        parts.append(Merged(block, chosen, rows, versions, (), _NONE, (), _NONE))
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
_OUTCOME_COLUMNS = (
    *((name, size, REQUIRED) for name, size in _OUTCOME_ROWS.items()),
    *((name, 1, IN_EACH_OR_NONE) for name in ("outcome_ids", "subjects", "decision_ids")),
)


def merge_outcomes(view: U8, starts: I64, stops: I64, registry: Registry, limits: Limits = LIMITS) -> Merged | None:
    """OutcomeBlock messages as one, None: decode them one by one. Row codes stay those of their own type names."""
    layout = registry.reader_of("OutcomeBlock").layout
    assert layout is not None, "our own blocks have a layout"
    found = Messages(view, starts, stops, numbers_of(layout), limits)
    if not found.ok:
        return None
    rows = found.number("num_rows")
    if rows.min() < 1 or rows.sum() > limits.num_rows_max:
        return None
    everything = np.arange(len(starts))
    fields = found.columns(everything) if found.fit(everything, rows, _OUTCOME_COLUMNS) else None
    if fields is None:
        return None
    with_names, names_of = _places(found.leaders_between("type_names", "outcome_ids"))
    try:
        names = tuple(_type_names(found, message, registry, limits) for message in with_names)
    except BadRecord:
        return None
    ends = np.cumsum(rows)
    falls = np.diff(fields["source_offsets"]) <= 0
    falls[ends[:-1] - 1] = False  # the next message may come from another source
    sizes = np.repeat(np.array([len(each) for each in names])[names_of], rows)
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
    with_sources, source_of = _places(found.leaders(("source_topic",), ("source_partition",)))
    partitions = found.number("source_partition")
    sources = tuple((found.text(k, "source_topic").decode(), int(partitions[k])) for k in with_sources)
    return Merged(block, everything, rows, _NONE, sources, source_of, names, names_of)


def _places(leaders: I64) -> tuple[list[int], I64]:
    """(the messages that are like none before, (K,) index among them of the one that each message is like)."""
    firsts = np.flatnonzero(leaders == np.arange(len(leaders)))
    return firsts.tolist(), np.searchsorted(firsts, leaders)


def _type_names(found: Messages, message: int, registry: Registry, limits: Limits) -> tuple[str, ...]:
    """Type names of one message, read by the ordinary decoder; those with the same bytes are read once."""
    raw = found.between(message, "type_names", "outcome_ids")
    if raw not in _names_read:
        payload = found.view[found.starts[message] : found.stops[message]]
        names = decode(payload, registry, limits, OutcomeBlock, strings=False).type_names
        if len(_names_read) >= _NAMES_READ_MAX:
            _names_read.clear()
        _names_read[raw] = names
    return _names_read[raw]
