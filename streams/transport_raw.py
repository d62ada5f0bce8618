"""Kafka record batches decoded in place, straight out of the fetch response: no Python object per record.

Theory of operation. aiokafka's fetcher wraps the bytes of each fetched partition into `MemoryRecords` and hands them to
`PartitionRecords`, an iterator that makes a Python object per record. `install` puts two classes of ours in place of
these two names of the module ``aiokafka.consumer.fetcher``; for topics that were not named it does what aiokafka does.
For the others the iterator yields `RecordBatch`es: headers of record batches (format v2) are read with `struct`, the
records in them by one numba loop over the varints. Measured: 0.46 µs per record against 82 µs in plain Faust.

Where aiokafka is not one of `TESTED_VERSIONS` or looks different, nothing is installed and the caller packs records
itself (`transport_batch.pack`): same batches, four times the price.

Batches of aborted transactions are passed over like control batches and the holes that compaction leaves
(`streams.transport_transactions`), where the consumer reads ``read_committed``.

Simplification: record batches older than format v2 raise.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import aiokafka
import google_crc32c
import numpy as np
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.util import calc_crc32c
from numba import njit

from schemas.arrays import I32, I64, U8
from schemas.limits import view_of
from streams import transport_frames
from streams.transport_batch import BROKEN_LENGTH, OVERSIZED_LENGTH, RecordBatch, join
from streams.transport_codecs import BATCH_BYTES_MAX, decompressed
from streams.transport_transactions import CONTROL_BIT, TRANSACTIONAL_BIT, AbortedTransactions, is_abort

TESTED_VERSIONS = ("0.14.",)
_PARAMETERS = (
    "self tp records aborted_transactions fetch_offset key_deserializer value_deserializer check_crcs isolation_level"
)
_HEADER = struct.Struct(">qiibIhiqqqhii")
_HEADER_BYTES = 61
_CRC_FROM = 21
"""The CRC covers everything from the attributes on."""
_CODEC_BITS, _APPEND_TIME_BIT = 0x07, 0x08

BATCH_BYTES_TARGET = 2 << 20
"""Small record batches of one fetch are joined up to this: a Faust message costs about 80 µs whatever it holds, and the
join folds so much at once (`join_groups.BYTES_MAX`)."""

_crc32c = google_crc32c.value if google_crc32c.implementation == "c" else calc_crc32c
"""Without its compiled part the former is Python, byte by byte. Both take a read-only array without copying it."""
_topics: set[str] = set()


@njit(cache=True, nogil=True)
def _varint(buffer: U8, at: int) -> tuple[int, int]:
    """Zigzag varint at `at` → (value, first byte after it); (0, past the end) where there is none."""
    result, shift = 0, 0
    while at < len(buffer) and shift < 70:
        byte = int(buffer[at])
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return (result >> 1) ^ -(result & 1), at
        shift += 7
    return 0, len(buffer) + 1


@njit(cache=True, nogil=True)
def _walk(
    buffer: U8, at: int, num_records: int, base_offset: int, base_time: int, wanted: int,
    offsets: I64, times: I64, starts: I64, lengths: I32,
) -> int:  # fmt: skip
    """Records section → columns. Returns how many records have an offset ≥ `wanted`, or -1 for broken bytes."""
    num_found = 0
    size = len(buffer)
    for _ in range(num_records):
        if at + 6 > size:
            return -1
        length, at = _varint(buffer, at)
        end = at + length
        if length < 6 or end > size:
            return -1
        time_delta, at = _varint(buffer, at + 1)
        offset_delta, at = _varint(buffer, at)
        key_length, at = _varint(buffer, at)
        if key_length > 0:
            at += key_length
        if at >= end:
            return -1
        value_length, at = _varint(buffer, at)
        if value_length > 0 and at + value_length > end:
            return -1
        if base_offset + offset_delta >= wanted:
            offsets[num_found] = base_offset + offset_delta
            times[num_found] = base_time + time_delta
            starts[num_found] = at
            lengths[num_found] = max(value_length, -1)
            num_found += 1
        at = end
    return num_found


def batches(
    raw: bytes | memoryview,
    topic: str,
    partition: int,
    from_offset: int,
    check_crcs: bool,
    aborted: AbortedTransactions | None = None,
) -> Iterator[tuple[RecordBatch | None, int]]:
    """Record batches in the bytes of one fetched partition, those below `from_offset` left out.

    `aborted`: None where what was aborted is read like everything else (``read_uncommitted``).
    Yields (batch or None for a control batch, an aborted one or one without records, offset to fetch next).
    A record batch that is cut off at the end ends the iteration, and so does one after which `BATCH_BYTES_MAX` were
    decompressed: what is left will be fetched again. One that holds more than that, or what its codec does not
    understand, is one record without a value, which stands for all of its offsets.
    Raises `CorruptRecordException` for a wrong CRC, a broken record or a format before v2 (Kafka 0.11).
    """
    view, at = memoryview(raw), 0
    whole = view_of(raw)
    bytes_left = BATCH_BYTES_MAX
    while at + _HEADER_BYTES <= len(view) and bytes_left > 0:
        (base, length, _, magic, crc, attributes, last_delta, first_time, max_time, producer_id, _, _, num_records) = (
            _HEADER.unpack_from(view, at)
        )
        end = at + 12 + length
        if end > len(view):
            return
        where = f"{topic}[{partition}] at offset {base}"
        if magic != 2:
            raise CorruptRecordException(f"record batch format {magic} in {where}: expected 2")
        if check_crcs and _crc32c(whole[at + _CRC_FROM : end]) != crc:
            raise CorruptRecordException(f"wrong CRC in {where}")
        next_offset = base + last_delta + 1
        is_passed_over = attributes & CONTROL_BIT or num_records <= 0 or next_offset <= from_offset
        if aborted is not None and attributes & TRANSACTIONAL_BIT:
            is_passed_over |= aborted.cover(producer_id, next_offset - 1)
            if attributes & CONTROL_BIT and is_abort(bytes(view[at:end])):
                aborted.end(producer_id)
        if is_passed_over:
            yield None, max(from_offset, next_offset)
        else:
            codec_id = attributes & _CODEC_BITS
            buffer, first = whole, at + _HEADER_BYTES
            if codec_id:
                content = _content(codec_id, bytes(view[first:end]), check_crcs)
                if isinstance(content, int):
                    bytes_left = 0  # it took as long as a whole fetch: heartbeats run in this thread too
                    place = (max(base, from_offset), max_time, first, content)
                    yield _stand_in(topic, partition, place, whole, next_offset), next_offset
                    at = end
                    continue
                buffer, first = content, 0
                bytes_left -= len(content)
            if num_records > len(buffer):  # before allocating columns for a count that cannot be true
                raise CorruptRecordException(f"{num_records} records in {len(buffer)} bytes in {where}")
            offsets, times, starts = (np.empty(num_records, np.int64) for _ in range(3))
            lengths = np.empty(num_records, np.int32)
            found = _walk(buffer, first, num_records, base, first_time, from_offset, offsets, times, starts, lengths)
            if found < 0:
                raise CorruptRecordException(f"broken record in {where}")
            if attributes & _APPEND_TIME_BIT:
                times[:] = max_time
            columns = (offsets[:found], times[:found], starts[:found], lengths[:found])
            yield RecordBatch(topic, partition, *columns, buffer, next_offset) if found else None, next_offset
        at = end


def _content(codec_id: int, payload: bytes, is_as_sent: bool) -> U8 | int:
    """What a record batch holds, or the length that says why it is not read.

    Bytes that came as they were sent (their CRC was right) and that no codec understands would come again for ever.
    """
    try:
        content = decompressed(codec_id, payload)
    except CorruptRecordException:
        if not is_as_sent:
            raise
        return BROKEN_LENGTH
    return OVERSIZED_LENGTH if content is None else content


def _stand_in(
    topic: str, partition: int, place: tuple[int, int, int, int], buffer: U8, next_offset: int
) -> RecordBatch:
    """One record in place of all that a record batch may hold: whoever reads it says what became of them.

    `place`: offset, time, where it starts in `buffer`, length.
    """
    offset, time_ms, start, length = place
    rows = (np.array([offset]), np.array([time_ms]), np.array([start]), np.array([length], np.int32))
    return RecordBatch(topic, partition, *rows, buffer, next_offset)


def joined(found: Iterable[tuple[RecordBatch | None, int]]) -> Iterator[tuple[RecordBatch, int]]:
    """The same with small batches joined up to `BATCH_BYTES_TARGET`; each with the offset to fetch after it."""
    waiting: list[RecordBatch] = []
    size_bytes, next_offset = 0, -1
    for batch, following in found:
        if batch is not None and waiting and size_bytes + batch.size_bytes > BATCH_BYTES_TARGET:
            yield join(waiting), next_offset
            waiting, size_bytes = [], 0
        if batch is not None:
            waiting.append(batch)
            size_bytes += batch.size_bytes
        next_offset = following
    if waiting:
        yield join(waiting), next_offset


class _RawRecords:
    """Stands where aiokafka's `MemoryRecords` stood and keeps the bytes reachable."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._records = _MemoryRecords(raw)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        return self._records.next_batch()

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())


_MemoryRecords: Any = fetcher.MemoryRecords
_PartitionRecords: Any = fetcher.PartitionRecords


class _BatchRecords(_PartitionRecords):
    """Yields `RecordBatch`es for the named topics and what aiokafka yields for the others."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        if self._tp.topic not in _topics:
            yield from super()._unpack_records()
            return
        topic, partition = self._tp
        last = self.next_fetch_offset
        is_filtered = self._isolation_level == fetcher.READ_COMMITTED
        aborted = AbortedTransactions(self._aborted_transactions) if is_filtered else None
        found = list(batches(self._records.raw, topic, partition, last, self._check_crcs, aborted))
        for batch, next_offset in joined(found):
            self.next_fetch_offset = next_offset
            yield batch
        if found:
            self.next_fetch_offset = max(self.next_fetch_offset, found[-1][1])


def obstacle(version: str = aiokafka.__version__) -> str | None:
    """Why record batches cannot be decoded in place with this aiokafka, or None."""
    if not version.startswith(TESTED_VERSIONS):
        return f"aiokafka {version} was not tested (tested: {', '.join(v + '*' for v in TESTED_VERSIONS)})"
    if " ".join(inspect.signature(_PartitionRecords.__init__).parameters) != _PARAMETERS:
        return "aiokafka's PartitionRecords takes other arguments"
    if not hasattr(_PartitionRecords, "_unpack_records"):
        return "aiokafka's PartitionRecords has no _unpack_records"
    return transport_frames.obstacle()


def install(topics: Iterable[str]) -> str | None:
    """Decode these topics in place from now on, in this process. Returns the obstacle where that is impossible."""
    reason = obstacle()
    if reason is None:
        _topics.update(topics)
        transport_frames.install()
        fetcher.MemoryRecords, fetcher.PartitionRecords = _RawRecords, _BatchRecords
    return reason


def uninstall() -> None:
    """Put aiokafka's own classes back: for tests that compare both ways."""
    _topics.clear()
    transport_frames.uninstall()
    fetcher.MemoryRecords, fetcher.PartitionRecords = _MemoryRecords, _PartitionRecords
