"""What may be committed, and when: the cases in which Faust's own arithmetic loses records (no broker needed)."""

from __future__ import annotations

import asyncio
import types
from collections import defaultdict, deque
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from intervaltree import IntervalTree

from streams.transport import Consumer
from streams.transport_batch import RecordBatch

TOPIC = TP("journal", 0)
BATCHES = (999, 1999, 2999)


def consumer(kind: type[Any] = Consumer, committed: int | None = None) -> Any:
    """A consumer with its books open and no connection."""
    made = kind.__new__(kind)
    made._acked, made._acked_index = defaultdict(list), defaultdict(set)
    made._gap, made._pending, made._owed = defaultdict(IntervalTree), defaultdict(deque), {}
    made._read_offset = defaultdict(lambda: None, {TOPIC: committed})
    made._committed_offset = defaultdict(lambda: None, {TOPIC: committed})
    made.app = types.SimpleNamespace(columnar_topics={"journal"}, settle=None)
    made._forward = _nothing
    made._num_seeking = made._num_forgotten = 0
    made.assignment = lambda: {TOPIC}
    return made


async def _nothing(message: Any) -> None:
    return None


def deliver(made: Any, *offsets: int) -> None:
    """What Faust's `_drain_messages` does with each message."""

    async def run() -> None:
        for offset in offsets:
            read = made._read_offset[TOPIC]
            if read and offset - read > 1:
                await made._add_gap(TOPIC, read + 1, offset)
            if isinstance(made, Consumer):
                await made._deliver(types.SimpleNamespace(topic="journal", tp=TOPIC, offset=offset))
            made._read_offset[TOPIC] = offset

    asyncio.run(run())


def ack(made: Any, offset: int) -> None:
    committed = made._committed_offset[TOPIC]
    if committed is None or offset >= committed:
        made._acked_index[TOPIC].add(offset)
        made._acked[TOPIC].append(offset)


def commit(made: Any) -> int | None:
    """What one round of Faust's commit would write."""
    offset, committed = made._new_offset(TOPIC), made._committed_offset[TOPIC]
    if offset is None or (committed is not None and offset <= committed):
        return None
    made._committed_offset[TOPIC] = offset
    return int(offset)


def test_batches_acked_in_order_are_committed_one_by_one() -> None:
    made = consumer()
    deliver(made, *BATCHES)
    committed = []
    for offset in BATCHES:
        ack(made, offset)
        committed.append(commit(made))
    assert committed == [1000, 2000, 3000]


def test_a_later_ack_in_a_fresh_group_commits_nothing() -> None:
    made = consumer()
    deliver(made, *BATCHES)
    ack(made, 1999)
    assert commit(made) is None


def test_a_later_ack_after_a_known_commit_commits_nothing() -> None:
    made = consumer(committed=1)
    deliver(made, *BATCHES)
    ack(made, 2999)
    assert commit(made) is None


def test_acks_out_of_order_commit_the_contiguous_prefix() -> None:
    made = consumer()
    deliver(made, *BATCHES)
    committed = []
    for offset in (1999, 999, 2999):
        ack(made, offset)
        committed.append(commit(made))
    assert committed == [None, 2000, 3000]


def test_a_hole_of_one_message_is_not_committed_over() -> None:
    made = consumer()
    deliver(made, 0, 1, 2)
    ack(made, 1)
    ack(made, 2)
    assert commit(made) is None


def test_a_gap_left_by_compaction_is_committed_over_only_when_the_batch_behind_it_is_done() -> None:
    made = consumer(committed=10)
    deliver(made, 10, 20, 21)
    ack(made, 10)
    ack(made, 21)
    assert commit(made) == 11
    ack(made, 20)
    assert commit(made) == 22


def test_batches_delivered_again_after_a_seek_back_do_not_stop_the_commit() -> None:
    made = consumer(committed=2000)
    deliver(made, *BATCHES)
    for offset in BATCHES:  # Faust ignores the acks of what lies below the committed offset
        ack(made, offset)
    assert commit(made) == 3000


def test_a_commit_never_goes_back() -> None:
    made = consumer(committed=3000)
    deliver(made, *BATCHES)
    for offset in BATCHES:
        ack(made, offset)
    assert commit(made) is None


def test_what_a_failed_commit_left_is_offered_again_without_more_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, False, True]

    async def commit_offsets(self: Any, offsets: dict[TP, int], start_new_transaction: bool = True) -> bool:
        self._committed_offset.update(offsets)  # as Faust does, whatever the answer
        return answers.pop(0)

    monkeypatch.setattr(driver.Consumer, "_commit_offsets", commit_offsets)
    made = consumer(committed=0)
    deliver(made, *BATCHES)
    offered = []
    for acked in (999, 1999, None, None):
        if acked is not None:
            ack(made, acked)
        offset = made._new_offset(TOPIC)
        offered.append(offset)
        if offset is not None:
            assert offset > made._committed_offset[TOPIC], "Faust would not offer it"
            asyncio.run(made._commit_offsets({TOPIC: offset}))
    assert offered == [1000, 2000, 2000, None]


def test_what_a_failed_commit_left_is_not_offered_once_the_partition_is_given_away() -> None:
    made = consumer(committed=0)
    made._owed[TOPIC] = 1000
    made._forget({TOPIC})
    assert made._new_offset(TOPIC) is None


class Fetcher:
    """Stands for all that is below our `_getmany`: answers of the broker, each with the position after it."""

    def __init__(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.position = 0
        self.records: list[Any] = []
        self.seek_to: int | None = None
        """The app seeks there while we wait for the broker."""
        self._made = made
        made._thread = types.SimpleNamespace(positions={})
        made.seek_wait = self._seek
        monkeypatch.setattr(driver.Consumer, "_getmany", lambda *_: self._answer())

    async def _answer(self) -> dict[TP, list[Any]]:
        if self.seek_to is not None:
            await self._made.start_at({TOPIC: self.seek_to})
        records, self.records = self.records, []
        self._made._thread.positions = {TOPIC: self.position}
        return {TOPIC: records} if records else {}

    async def _seek(self, offsets: dict[TP, int]) -> None:
        self.position = offsets[TOPIC]

    def fetch(self, *offsets: int, position: int) -> list[RecordBatch]:
        """What one round of Faust's fetching delivers, records with these offsets having come."""
        self.records = [types.SimpleNamespace(offset=offset, timestamp=1, value=b"v") for offset in offsets]
        self.position = position
        found = asyncio.run(self._made._getmany({TOPIC}, 1.0)).get(TOPIC, [])
        deliver(self._made, *(batch.next_offset - 1 for batch in found))
        return list(found)


def test_what_ends_a_fetch_without_records_belongs_to_the_batch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = consumer(committed=0)
    (batch,) = Fetcher(made, monkeypatch).fetch(0, 1, 2, position=4)
    assert batch.next_offset == 4
    assert commit(made) is None
    ack(made, 3)
    assert commit(made) == 4


def test_a_fetch_without_records_is_committed_once_all_before_it_is_acked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = consumer(committed=0)
    fetcher = Fetcher(made, monkeypatch)
    fetcher.fetch(0, 1, 2, position=3)
    for position in (6, 6, 7):
        assert fetcher.fetch(position=position) == []
        assert commit(made) is None
    ack(made, 2)
    assert [commit(made), commit(made)] == [7, None]
    fetcher.fetch(position=9)
    assert commit(made) == 9


def test_a_topic_of_nothing_but_aborted_transactions_is_committed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = consumer()
    fetcher = Fetcher(made, monkeypatch)
    fetcher.fetch(position=0)
    assert commit(made) is None
    fetcher.fetch(position=8)
    assert commit(made) == 8


def test_positions_of_a_fetch_during_which_the_app_sought_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = consumer(committed=10)
    fetcher = Fetcher(made, monkeypatch)
    fetcher.seek_to = 500
    fetcher.fetch(position=20)
    assert commit(made) is None
    assert made.committed(TOPIC) == 10


def test_waiting_for_records_costs_no_books_and_no_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = consumer(committed=0)
    fetcher = Fetcher(made, monkeypatch)
    fetcher.fetch(0, 1, position=2)
    ack(made, 1)
    for _ in range(5):
        fetcher.fetch(position=2)
        assert len(made._pending[TOPIC]) == 1
    assert [commit(made), commit(made)] == [2, None]
    fetcher.fetch(position=2)
    assert not made._pending[TOPIC]


def test_books_do_not_grow_with_what_was_committed() -> None:
    made = consumer()
    for offset in range(999, 100_000, 1000):
        deliver(made, offset)
        ack(made, offset)
        commit(made)
    assert not made._pending[TOPIC]
    assert not made._acked[TOPIC]
    assert not made._acked_index[TOPIC]
    assert not made._gap[TOPIC]


def test_revoking_settles_and_commits_before_faust_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    made, order = consumer(), []

    async def note(name: str) -> bool:
        order.append(name)
        return True

    made.app.settle = lambda: note("settle")
    made.commit = lambda: note("commit")
    monkeypatch.setattr(driver.Consumer, "on_partitions_revoked", lambda self, revoked: note("forget"))
    asyncio.run(Consumer.on_partitions_revoked(made, {TOPIC}))
    assert order == ["settle", "commit", "commit", "forget"]


def test_fausts_own_arithmetic_still_commits_past_what_nobody_acked() -> None:
    """Should a release of Faust mend this, our replacement may go: this test says when."""
    made = consumer(driver.Consumer)
    deliver(made, *BATCHES)
    ack(made, 1999)
    assert commit(made) == 2000
