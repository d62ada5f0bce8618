"""RecordBatch: many records of one Kafka partition as columns. The unit that an agent gets.

Knows nothing of Faust and of how the bytes were fetched. Shape legend: N records of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.arrays import I32, I64, U8
from schemas.limits import BadRecord, view_of

NULL_LENGTH = -1
"""Length of a null value (a tombstone); an empty value has length 0."""
OVERSIZED_LENGTH = -2
"""Length of a value that stands for a whole record batch, which holds more than is decompressed."""
BROKEN_LENGTH = -3
"""The same for one that came as it was sent and cannot be decompressed."""
_UNREAD = {
    OVERSIZED_LENGTH: ("too-large", "holds more than is decompressed"),
    BROKEN_LENGTH: ("bad-compression", "is not what its codec writes"),
}


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one topic partition. Keys and headers are not kept: nobody here reads them."""

    topic: str
    partition: int
    offsets: I64
    """(N,) strictly rising; compaction leaves gaps."""
    timestamps_ms: I64
    """(N,) append time where the topic is LogAppendTime, the producer's clock otherwise."""
    starts: I64
    """(N,) where each value starts in `buffer`."""
    lengths: I32
    """(N,) bytes of each value, `NULL_LENGTH` for null, or the reason why its record batch was not read."""
    buffer: U8
    """Bytes in which the values lie; may hold more than them (a whole fetch response). Always made by `view_of`: for a
    writable array numba would compile everything that reads it once more, half a minute on the event loop."""
    next_offset: int
    """First offset that is not covered by this batch: what may be committed when it is done."""

    def __len__(self) -> int:
        return len(self.offsets)

    def value(self, index: int) -> memoryview | None:
        """Bytes of one record without copying, None for null and for what was not decompressed."""
        length = int(self.lengths[index])
        if length < 0:
            return None
        start = int(self.starts[index])
        return self.buffer[start : start + length].data

    def payload(self, index: int) -> memoryview | bytes:
        """Bytes of one record to be decoded, none for null. Raises BadRecord where it stands for an unread batch."""
        if self.is_unread_batch(index):
            reason, what = _UNREAD[int(self.lengths[index])]
            which = f"the compressed record batch from offset {int(self.offsets[index])} on"
            raise BadRecord(reason, f"{which} {what}: none of its records was read")
        return self.value(index) or b""

    def is_unread_batch(self, index: int) -> bool:
        """Whether the record stands for all records of a batch that was not read."""
        return int(self.lengths[index]) in _UNREAD

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return int(np.maximum(self.lengths, 0).sum())

    @property
    def span(self) -> tuple[int, int]:
        """Where in `buffer` the first value begins and the last one ends; values lie in the order of their offsets."""
        return int(self.starts[0]), int(self.starts[-1]) + max(0, int(self.lengths[-1]))


def pack(topic: str, partition: int, records: Sequence[Any]) -> RecordBatch:
    """Columns of aiokafka's `ConsumerRecord`s: one join of their values. `records` must not be empty."""
    values = [record.value for record in records]
    num_records = len(values)
    lengths = np.fromiter((NULL_LENGTH if v is None else len(v) for v in values), np.int32, num_records)
    starts = np.zeros(num_records, np.int64)
    np.cumsum(np.maximum(lengths[:-1], 0), out=starts[1:])
    return RecordBatch(
        topic,
        partition,
        np.fromiter((record.offset for record in records), np.int64, num_records),
        np.fromiter((record.timestamp for record in records), np.int64, num_records),
        starts,
        lengths,
        view_of(b"".join(value for value in values if value)),
        records[-1].offset + 1,
    )


def join(batches: Sequence[RecordBatch]) -> RecordBatch:
    """One batch of several consecutive ones; copies values only where they lie in different buffers.

    Then only what the values of each batch span: a buffer may be a whole fetch response, of which most batches are a
    hundredth, and compressed batches (each with its own buffer) stand between uncompressed ones as producers please.
    """
    if len(batches) == 1:
        return batches[0]
    first, last = batches[0], batches[-1]
    if all(batch.buffer is first.buffer for batch in batches):
        buffer, starts = first.buffer, [batch.starts for batch in batches]
    else:
        spans = [batch.span for batch in batches]
        parts = [batch.buffer[low:high] for batch, (low, high) in zip(batches, spans, strict=True)]
        buffer = view_of(np.concatenate(parts))
        ends = np.cumsum([high - low for low, high in spans])
        starts = [batch.starts + (end - high) for batch, end, (_, high) in zip(batches, ends, spans, strict=True)]
    return RecordBatch(
        first.topic,
        first.partition,
        np.concatenate([batch.offsets for batch in batches]),
        np.concatenate([batch.timestamps_ms for batch in batches]),
        np.concatenate(starts),
        np.concatenate([batch.lengths for batch in batches]),
        buffer,
        last.next_offset,
    )
