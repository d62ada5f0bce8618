"""Ingest: a batch of a users' topic becomes outcome blocks per journal partition, in source order.

Pure: bytes and arrays in, blocks and refusals out. Avro outcomes take the columnar way and cost no Python object per
record; JSON and foreign topics are decoded one by one (10–20 µs each) and join the same columns.

Shape legend: N records of the batch, M outcomes among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from schemas.arrays import I64, NO_STRINGS, U8, U64, Strings
from schemas.blocks import OutcomeBlock
from schemas.bounds import BadRecord
from schemas.codec import decode_foreign, decode_outcome
from schemas.hashing import keys64, keys128, partitions_of
from schemas.keys import PERSON_ACTION, PERSON_DECISION, PERSON_OUTCOME, PERSON_SOURCE, PERSON_SUBJECT
from schemas.outcome_columns import LOOK_AGAIN, OutcomeColumns, decode_outcomes
from schemas.records import Outcome
from schemas.registered import Registry
from streams.ingest_fields import SourceMapping
from streams.transport_batch import RecordBatch

BLOCK_BYTES_MAX = 512 << 10
BLOCK_ROWS_MAX = (1 << 16) - 1
_ROW_BYTES = 80
"""Upper bound of a row's fixed columns as encoded; strings come on top."""
_PERSON_TYPE = b"hr-type"
_OF_OUTCOME = ("outcome_id", "subject", "decision_id", "action_id", "type")


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is no outcome."""

    index: int
    """Row of the batch."""
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Ingested:
    """What a batch holds."""

    blocks: list[tuple[int, OutcomeBlock]]
    """(journal partition, block); the blocks of one partition in source order."""
    refused: list[Refused]
    num_passed_over: int
    """Events that the source's `where` leaves out."""


def ingest(batch: RecordBatch, mapping: SourceMapping | None, registry: Registry, num_partitions: int) -> Ingested:
    """Decode, hash and distribute a batch of `outcomes` (`mapping` None) or of a foreign topic.

    Raises RegistryUnavailable when a schema that is needed cannot be fetched now; nothing else for whatever the
    bytes contain.
    """
    refused: list[Refused] = []
    if mapping is None:
        schema_id = registry.id_of("Outcome")
        columns = decode_outcomes(batch.buffer, batch.starts, batch.lengths, schema_id)
        one_by_one = np.flatnonzero(~columns.ok)  # JSON, other schemas, and refused ones: those for the exact detail
        decode: Callable[[memoryview | bytes], Outcome | None] = lambda value: decode_outcome(value, registry)  # noqa: E731
    else:
        columns, form = _no_columns(len(batch), batch.buffer), mapping.source.format
        one_by_one = np.arange(len(batch))
        decode = lambda value: mapping.outcome(decode_foreign(value, registry, expect=form))  # noqa: E731
    outcomes: list[tuple[int, Outcome]] = []
    num_passed_over = 0
    for index in one_by_one.tolist():
        try:
            outcome = decode(batch.payload(index))
        except BadRecord as error:
            refused.append(Refused(index, error.reason, error.detail))
            continue
        if outcome is None:
            num_passed_over += 1
        else:
            outcomes.append((index, outcome))
    columns = _with(columns, outcomes)
    rows = np.flatnonzero(columns.ok)
    blocks = list(_blocks(batch, columns, rows, num_partitions)) if len(rows) else []
    return Ingested(blocks, refused, num_passed_over)


def _no_columns(num_records: int, buffer: U8) -> OutcomeColumns:
    """Columns of a batch of which nothing was decoded yet."""
    lengths = np.full(num_records, LOOK_AGAIN, np.int32)
    return decode_outcomes(buffer, np.zeros(num_records, np.int64), np.minimum(lengths, 0), 0)


def _with(columns: OutcomeColumns, outcomes: Sequence[tuple[int, Outcome]]) -> OutcomeColumns:
    """The columns with these rows filled in; their strings are put behind the buffer."""
    if not outcomes:
        return columns
    old = columns.subjects.buffer if columns.ok.any() else np.empty(0, np.uint8)
    strings = [columns.outcome_ids, columns.subjects, columns.decision_ids, columns.action_ids, columns.types]
    at, parts = len(old), [old.tobytes()]
    for index, outcome in outcomes:
        for name, column in zip(_OF_OUTCOME, strings, strict=True):
            text = getattr(outcome, name)
            encoded = b"" if text is None else text.encode()
            column.starts[index], column.lengths[index] = at, -1 if text is None else len(encoded)
            parts.append(encoded)
            at += len(encoded)
        columns.slots[index] = -1 if outcome.slot is None else outcome.slot
        columns.values[index] = outcome.value
        columns.times_ms[index] = outcome.time_ms or 0
        columns.ok[index] = True
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    outcome_ids, subjects, decision_ids, action_ids, types = (replace(column, buffer=buffer) for column in strings)
    return replace(
        columns,
        outcome_ids=outcome_ids,
        subjects=subjects,
        decision_ids=decision_ids,
        action_ids=action_ids,
        types=types,
    )


def _blocks(
    batch: RecordBatch, columns: OutcomeColumns, rows: I64, num_partitions: int
) -> Iterator[tuple[int, OutcomeBlock]]:
    """All M good rows as blocks, by journal partition, each in source order and within its limits."""
    whole = _whole(batch, columns, rows)
    subjects = whole.subjects
    partitions = partitions_of(subjects.buffer, subjects.starts, subjects.lengths, num_partitions)
    order = np.argsort(partitions, kind="stable")
    bounds = np.searchsorted(partitions[order], np.arange(num_partitions + 1))
    for partition in np.unique(partitions).tolist():
        chosen = order[bounds[partition] : bounds[partition + 1]]
        for piece in _within_limits(whole, chosen):
            yield partition, _taken(whole, piece)


def _whole(batch: RecordBatch, columns: OutcomeColumns, rows: I64) -> OutcomeBlock:
    """One block of all M rows, of any size, before it is distributed."""
    subjects = _take(columns.subjects, rows)
    actions = _take(columns.action_ids, rows)
    offsets = batch.offsets[rows]
    types, type_names = _dictionary(_take(columns.types, rows))
    action_keys = keys64(actions.buffer, actions.starts, actions.lengths, PERSON_ACTION)
    return OutcomeBlock(
        source_topic=batch.topic,
        source_partition=batch.partition,
        source_offsets=offsets,
        outcome_keys=_outcome_keys(batch, _take(columns.outcome_ids, rows), offsets),
        subject_keys=keys64(subjects.buffer, subjects.starts, subjects.lengths, PERSON_SUBJECT),
        decision_keys=_keys_or_zero(_take(columns.decision_ids, rows), PERSON_DECISION),
        action_keys=np.where(actions.lengths < 0, np.uint64(0), np.maximum(action_keys, np.uint64(1))),
        slots=columns.slots[rows],
        types=types,
        values=columns.values[rows],
        times_ms=columns.times_ms[rows],
        type_names=type_names,
        outcome_ids=_take(columns.outcome_ids, rows),
        subjects=subjects,
        decision_ids=_take(columns.decision_ids, rows),
    )


def _take(strings: Strings, rows: I64) -> Strings:
    return Strings(strings.buffer, strings.starts[rows], strings.lengths[rows])


def _keys_or_zero(strings: Strings, person: bytes) -> U64:
    """(M, 2) keys, zeros where there is no string."""
    keys = keys128(strings.buffer, strings.starts, strings.lengths, person)
    keys[strings.lengths < 0] = 0
    return keys


def _outcome_keys(batch: RecordBatch, ids: Strings, offsets: I64) -> U64:
    """(M, 2) key of each outcome's id, or of where it stood when it has none (`schemas.keys.source_outcome_key`)."""
    keys = keys128(ids.buffer, ids.starts, ids.lengths, PERSON_OUTCOME)
    absent = np.flatnonzero(ids.lengths < 0)
    if len(absent):
        name = batch.topic.encode()
        head = len(name).to_bytes(4, "little") + name + batch.partition.to_bytes(4, "little", signed=True)
        payload = np.empty((len(absent), len(head) + 8), np.uint8)
        payload[:, : len(head)] = np.frombuffer(head, np.uint8)
        payload[:, len(head) :] = offsets[absent].astype("<i8").view(np.uint8).reshape(-1, 8)
        starts = np.arange(len(absent), dtype=np.int64) * payload.shape[1]
        lengths = np.full(len(absent), payload.shape[1], np.int32)
        keys[absent] = keys128(payload.reshape(-1), starts, lengths, PERSON_SOURCE)
    return keys


def _dictionary(types: Strings) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """(code per row, names): the few distinct types, found by their hashes."""
    hashes = keys64(types.buffer, types.starts, types.lengths, _PERSON_TYPE)
    _, firsts, codes = np.unique(hashes, return_index=True, return_inverse=True)
    return codes.astype(np.int32), tuple(types[int(first)] for first in firsts)


def _within_limits(whole: OutcomeBlock, chosen: I64) -> Iterator[I64]:
    """`chosen` rows in pieces of at most `BLOCK_ROWS_MAX` rows and about `BLOCK_BYTES_MAX` bytes."""
    strings = (whole.outcome_ids, whole.subjects, whole.decision_ids)
    sizes = _ROW_BYTES + sum(np.maximum(column.lengths[chosen], 0).astype(np.int64) for column in strings)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(chosen):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + BLOCK_BYTES_MAX, side="right"))
        stop = min(max(last, first + 1), first + BLOCK_ROWS_MAX)
        yield chosen[first:stop]
        first = stop


def _taken(whole: OutcomeBlock, rows: I64) -> OutcomeBlock:
    """Rows of `whole` as a block of their own, with only the type names they use."""
    used, types = np.unique(whole.types[rows], return_inverse=True)
    return replace(
        whole,
        source_offsets=whole.source_offsets[rows],
        outcome_keys=whole.outcome_keys[rows],
        subject_keys=whole.subject_keys[rows],
        decision_keys=whole.decision_keys[rows],
        action_keys=whole.action_keys[rows],
        slots=whole.slots[rows],
        types=types.astype(np.int32),
        values=whole.values[rows],
        times_ms=whole.times_ms[rows],
        type_names=tuple(whole.type_names[code] for code in used.tolist()),
        outcome_ids=_present(_take(whole.outcome_ids, rows)),
        subjects=_present(_take(whole.subjects, rows)),
        decision_ids=_present(_take(whole.decision_ids, rows)),
    )


def _present(strings: Strings) -> Strings:
    """Strings with "" where there is none; no column at all when no row has one."""
    if (strings.lengths <= 0).all():
        return NO_STRINGS
    return Strings(strings.buffer, strings.starts, np.maximum(strings.lengths, 0))
