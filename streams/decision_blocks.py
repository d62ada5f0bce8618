"""Rows that were decided, as journal blocks.

Pure. Owns the limits on a block's size: what leaves here fits into one Kafka message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from schemas.arrays import NO_STRINGS, U64, Strings
from schemas.blocks import DecisionBlock
from schemas.decision_columns import DecisionColumns
from schemas.frozen import frozen
from schemas.keys import PERSON_DECISION, PERSON_SUBJECT
from schemas.records import DecisionRequest, Reason
from schemas.task import Task

BLOCK_BYTES_MAX = 512 * 1024
"""One journal message: half of what a broker with default limits takes."""

ROWS_MAX = 65_535
"""A position has 16 bits for the row (join.md)."""

_ROW_BYTES = 128
"""Of one row beside strings and arrays: keys 24, and varints of at most 10 bytes each."""
_CANDIDATE_BYTES = 18
"""Of one candidate beside its features: key 8, propensity 5, token count 5."""
_TOKEN_BYTES = 9
"""Hashed id 5, value 4."""
_ROW_TEXT_BYTES = 64 + 256 + 256 + 15
"""Of decision id, subject and episode id with their lengths: the codec's limits."""
_ACTION_ID_BYTES = 256 + 5
_BLOCK_BYTES = 1024
"""Head of a block and counts of its arrays."""


@frozen
class Row:
    """One request on its way to being decided."""

    index: int
    """Place in the batch."""
    request: DecisionRequest
    request_partition: int
    request_offset: int
    journal_partition: int
    reason: Reason


def block_of(
    task: Task, version: int, rows: Sequence[Row], columns: DecisionColumns, request_topic: str
) -> DecisionBlock:
    """The block of N rows; `columns` has exactly these rows."""
    requests = [row.request for row in rows]
    action_ids = NO_STRINGS
    if not task.actions:
        action_ids = _packed_text(
            [candidate.action_id for request in requests for candidate in request.candidates or ()]
        )
    decision_ids = [request.decision_id.encode() for request in requests]
    subjects = [request.subject.encode() for request in requests]
    return DecisionBlock(
        task=task.name,
        fingerprint=task.fingerprint,
        snapshot_version=version,
        request_topic=request_topic,
        decision_keys=_digests(decision_ids, 16, PERSON_DECISION).reshape(-1, 2),
        subject_keys=_digests(subjects, 8, PERSON_SUBJECT),
        request_partitions=np.array([row.request_partition for row in rows], np.int32),
        request_offsets=np.array([row.request_offset for row in rows], np.int64),
        columns=columns,
        decision_ids=_packed(decision_ids),
        subjects=_packed(subjects),
        action_ids=action_ids,
    )


def _digests(values: list[bytes], size: int, person: bytes) -> U64:
    """Keys as `schemas.keys` makes them one by one, as one array of little-endian words."""
    joined = b"".join([blake2b(value, digest_size=size, person=person).digest() for value in values])
    return np.frombuffer(joined, "<u8")


def _packed_text(values: list[str]) -> Strings:
    """As `Strings.of`: ASCII, nearly all ids there are, is encoded in one go."""
    text = "".join(values)
    if not text.isascii():
        return _packed([value.encode() for value in values])
    lengths = np.array(list(map(len, values)), np.int32)
    starts = lengths.cumsum(dtype=np.int64)
    starts -= lengths
    return Strings(np.frombuffer(text.encode(), np.uint8), starts, lengths)


def _packed(values: list[bytes]) -> Strings:
    """As `Strings.of`, with fewer calls: a block of one row makes three of these."""
    if len(values) == 1:
        value = values[0]
        return Strings(np.frombuffer(value, np.uint8), np.zeros(1, np.int64), np.array([len(value)], np.int32))
    lengths = np.array(list(map(len, values)), np.int32)
    starts = lengths.cumsum(dtype=np.int64)
    starts -= lengths
    return Strings(np.frombuffer(b"".join(values), np.uint8), starts, lengths)


@frozen
class Part:
    """Rows of one task, snapshot and journal partition that fit into one block, which is still to be made."""

    task: Task
    version: int
    """Snapshot that decided, 0 for none."""
    rows: Sequence[Row]
    columns: DecisionColumns
    request_topic: str

    @property
    def partition(self) -> int:
        """Journal partition of every row."""
        return self.rows[0].journal_partition

    def block(self) -> DecisionBlock:
        """The block of these rows."""
        return block_of(self.task, self.version, self.rows, self.columns, self.request_topic)

    def joins(self, other: Part) -> bool:
        """Whether the rows of both may stand in one block."""
        return (
            self.version == other.version
            and self.task.fingerprint == other.task.fingerprint
            and self.partition == other.partition
        )


def merged(parts: Sequence[Part]) -> Part:
    """Rows of all parts, one after another; each must join the first, and all must fit into one block."""
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = [row for part in parts for row in part.rows]
    columns = DecisionColumns.concat([part.columns for part in parts])
    return Part(first.task, first.version, rows, columns, first.request_topic)


def parts_of(
    task: Task, version: int, rows: Sequence[Row], columns: DecisionColumns, request_topic: str
) -> Iterator[tuple[range, Part]]:
    """(which of the rows, part) for rows in order of journal partition."""
    start = 0
    is_small = _is_small(columns)
    while start < len(rows):
        stop = _end_of_block(rows, columns, start, is_small)
        whole = stop - start == len(rows)
        cut = columns if whole else columns.rows(start, stop)
        yield range(start, stop), Part(task, version, rows[start:stop], cut, request_topic)
        start = stop


def bytes_ceiling_of(columns: DecisionColumns) -> int:
    """Upper bound of the encoded size of N rows without looking at a single string: what each may be at most."""
    features = columns.features
    return (
        _BLOCK_BYTES
        + (_ROW_BYTES + _ROW_TEXT_BYTES) * len(features)
        + 4 * (features.context.size + features.actions.size)
        + _CANDIDATE_BYTES * len(columns.propensities)
        + _ACTION_ID_BYTES * len(features.action_keys)
        + _TOKEN_BYTES * (len(features.context_tokens) + len(features.action_tokens))
    )


def bytes_max_of(rows: Sequence[Row], columns: DecisionColumns) -> int:
    """Upper bound of the encoded size, from sizes of arrays alone: cheap enough to ask for every batch."""
    features = columns.features
    text = 0
    for row in rows:
        request = row.request
        text += len(request.decision_id) + len(request.subject)
        if not columns.catalogue:
            text += sum(len(candidate.action_id) + 2 for candidate in request.candidates or ())
    return (
        _BLOCK_BYTES
        + _ROW_BYTES * len(rows)
        + 4 * text  # a character takes at most four bytes
        + 4 * (features.context.size + features.actions.size)
        + _CANDIDATE_BYTES * len(columns.propensities)
        + _TOKEN_BYTES * (len(features.context_tokens) + len(features.action_tokens))
    )


def _end_of_block(rows: Sequence[Row], columns: DecisionColumns, start: int, is_small: bool) -> int:
    """End of the longest run from `start` with one journal partition that is sure to fit; all do when `is_small`."""
    partition = rows[start].journal_partition
    stop = start + 1
    while stop < len(rows) and stop - start < ROWS_MAX and rows[stop].journal_partition == partition:
        stop += 1
    if is_small:
        return stop
    while stop - start > 1 and not _fits(rows[start:stop], columns.rows(start, stop)):
        stop = start + (stop - start + 1) // 2
    return stop


def _fits(rows: Sequence[Row], columns: DecisionColumns) -> bool:
    """Whether these rows are sure to fit into one block; strings are looked at only where their ceiling would not."""
    return _is_small(columns) or bytes_max_of(rows, columns) <= BLOCK_BYTES_MAX


def _is_small(columns: DecisionColumns) -> bool:
    """Whether any strings would fit: a ceiling takes the longest ids, the maximum four bytes a character."""
    return 4 * bytes_ceiling_of(columns) <= BLOCK_BYTES_MAX
