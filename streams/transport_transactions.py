"""Which record batches of a fetch belong to transactions that were aborted (KIP-98).

Theory of operation. Whoever fetches ``read_committed`` gets no more than what stands before the first open transaction,
but of that everything, what was aborted too. With it comes a list: producer id and first offset of each transaction
that was aborted and reaches into the fetched range, also of those that began before it. From that offset on the
producer's transactional batches do not count, up to its ABORT marker, a control batch of its own; afterwards the same
producer may commit. Transactions of several producers stand interleaved in one partition.

Knows nothing of what is in the batches; headrace writes no transactions, the shops whose topics it reads may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch

TRANSACTIONAL_BIT, CONTROL_BIT = 0x10, 0x20
"""Of a record batch's attributes. A marker has both: it is the last that its transaction wrote."""


class AbortedTransactions:
    """The aborted transactions of one fetched partition; asked about its batches in the order of their offsets.

    >>> aborted = AbortedTransactions([(7, 2)])
    >>> [aborted.cover(producer_id, last) for producer_id, last in [(7, 1), (7, 3), (8, 4), (7, 5)]]
    [False, True, False, True]
    >>> aborted.end(7); aborted.cover(7, 7)
    False
    """

    def __init__(self, transactions: Iterable[tuple[int, int]] = ()) -> None:
        """`transactions`: (producer id, first offset) as the broker sent them, in any order."""
        self._to_come = deque(sorted(transactions, key=lambda each: each[1]))
        self._producers: set[int] = set()
        """Those whose transaction of the present place was aborted."""

    def cover(self, producer_id: int, last_offset: int) -> bool:
        """Whether a transactional batch of this producer, up to `last_offset`, is part of an aborted transaction."""
        while self._to_come and self._to_come[0][1] <= last_offset:
            self._producers.add(self._to_come.popleft()[0])
        return producer_id in self._producers

    def end(self, producer_id: int) -> None:
        """Its ABORT marker was read. There may be one of a transaction that wrote nothing into this partition."""
        self._producers.discard(producer_id)


def is_abort(control_batch: bytes) -> bool:
    """Whether this control batch says that its producer's transaction was aborted. One without records says nothing."""
    marker = next(iter(DefaultRecordBatch(control_batch)), None)
    return marker is not None and ControlRecord.parse(marker.key).type_ == ABORT_MARKER.type_
