"""What was aborted is not read, and what was committed is, wherever a fetch begins (KIP-98)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from streams import transport_raw
from streams.transport_batch import RecordBatch
from streams.transport_transactions import CONTROL_BIT

TOPIC = "shop.orders"
PLAIN = -1
"""Producer id of who has none."""
ABORT, COMMIT = b"\0\0\0\0", b"\0\0\0\1"
"""Keys of markers: version, type."""
BEYOND = 1_000_000


@pytest.fixture(autouse=True)
def decoded_in_place() -> Iterator[None]:
    assert transport_raw.install([TOPIC]) is None
    yield
    transport_raw.uninstall()


def written(first: int, values: Sequence[bytes], producer_id: int, *, transactional: bool, codec: int = 0) -> bytes:
    """A record batch whose first record stands at offset `first`."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer_id, 0, 0, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, 1_000 + index, None, value, [])
    return first.to_bytes(8, "big") + bytes(builder.build())[8:]


def marker(first: int, producer_id: int, key: bytes) -> bytes:
    """The control batch by which a broker ends a transaction."""
    builder = DefaultRecordBatchBuilder(2, 0, True, producer_id, 0, -1, 1 << 20)
    builder.append(0, 1_000, key, b"\0\0\0\0\0\1", [])
    raw = bytearray(first.to_bytes(8, "big") + bytes(builder.build())[8:])
    raw[22] |= CONTROL_BIT
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    return bytes(raw)


class Log:
    """One partition as a broker keeps it; each batch has two records, whose values name their offsets."""

    def __init__(self, *events: tuple[str, int]) -> None:
        """`events`: (what, producer id), what being plain, write, abort, commit or idempotent (no transaction)."""
        self.events = events
        self.raw: list[tuple[int, int, bytes]] = []
        """(first offset, next offset, bytes) of each batch."""
        self.aborted: list[tuple[int, int, int]] = []
        """(producer id, first offset, offset of the marker) of each transaction."""
        self.expected: list[int] = []
        """Offsets that a reader of what is committed sees."""
        self.end = 0
        is_open: dict[int, list[int]] = {}
        for what, producer_id in events:
            first = self.end
            if what in ("abort", "commit"):
                batch, size = marker(first, producer_id, ABORT if what == "abort" else COMMIT), 1
                offsets = is_open.pop(producer_id, [])
                if what == "commit":
                    self.expected += offsets
                elif offsets:
                    self.aborted.append((producer_id, offsets[0], first))
            else:
                values, size = [b"%d" % first, b"%d" % (first + 1)], 2
                batch = written(first, values, producer_id, transactional=what == "write", codec=first % 3)
                found = is_open.setdefault(producer_id, []) if what == "write" else self.expected
                found += [first, first + 1]
            self.raw.append((first, first + size, batch))
            self.end += size
        assert not is_open, "a broker would not send what stands in or behind an open transaction"
        self.expected.sort()

    def __repr__(self) -> str:
        return f"Log{self.events}"

    def fetched(
        self, start: int = 0, isolation: int = fetcher.READ_COMMITTED, stop: int = BEYOND, topic: str = TOPIC
    ) -> tuple[list[int], int]:
        """(offsets read, position after it) of a fetch at `start` that ends before the batch at `stop`."""
        batches = [batch for first, after, batch in self.raw if after > start and first < stop]
        aborted = [(producer_id, first) for producer_id, first, last in self.aborted if last >= start]
        records = fetcher.PartitionRecords(
            TopicPartition(topic, 0), fetcher.MemoryRecords(b"".join(batches)), aborted, start,
            None, None, True, isolation,
        )  # fmt: skip
        found = []
        for each in records:
            if isinstance(each, RecordBatch):
                assert [bytes(each.value(i) or b"") for i in range(len(each))] == [b"%d" % o for o in each.offsets]
                found += each.offsets.tolist()
            else:
                found.append(each.offset)
        return found, records.next_fetch_offset

    def read(self, start: int = 0) -> list[int]:
        """What a reader of what is committed has once he is at the end of the log."""
        found, position = self.fetched(start)
        assert position == self.end
        return found


def test_an_aborted_transaction_is_passed_over_and_the_committed_ones_around_it_are_read() -> None:
    log = Log(("write", 7), ("commit", 7), ("write", 7), ("abort", 7), ("write", 7), ("commit", 7))
    assert log.read() == [0, 1, 6, 7] == log.expected


def test_read_uncommitted_still_reads_what_was_aborted() -> None:
    log = Log(("write", 7), ("abort", 7), ("write", 7), ("commit", 7))
    assert log.fetched(isolation=fetcher.READ_UNCOMMITTED) == ([0, 1, 3, 4], log.end)


def test_interleaved_transactions_of_two_producers_end_each_by_its_own_marker() -> None:
    log = Log(
        ("write", 7), ("write", 8), ("write", 7), ("abort", 7), ("write", 8), ("write", 7), ("commit", 8), ("commit", 7)
    )  # fmt: skip
    assert log.read() == [2, 3, 7, 8, 9, 10] == log.expected


def test_what_a_producer_of_an_aborted_transaction_writes_without_one_is_read() -> None:
    """An idempotent producer has a producer id too, and its batches are not transactional."""
    log = Log(("write", 7), ("idempotent", 7), ("plain", PLAIN), ("write", 7), ("abort", 7))
    assert log.read() == [2, 3, 4, 5] == log.expected


def test_aborted_transactions_may_be_listed_in_any_order() -> None:
    log = Log(
        ("write", 9), ("abort", 9), ("write", 7), ("abort", 7), ("write", 9), ("commit", 9), ("write", 8), ("abort", 8)
    )
    for aborted in (log.aborted, log.aborted[::-1], log.aborted[1:] + log.aborted[:1]):
        log.aborted = aborted
        assert log.read() == [6, 7] == log.expected


def test_a_fetch_may_begin_in_the_middle_of_an_aborted_transaction() -> None:
    log = Log(("write", 7), ("write", 7), ("plain", PLAIN), ("write", 7), ("abort", 7), ("write", 7), ("commit", 7))
    for start in range(log.end):
        assert log.read(start) == [offset for offset in log.expected if offset >= start]


def test_a_marker_of_a_transaction_that_wrote_nothing_here_harms_nobody() -> None:
    log = Log(("abort", 7), ("write", 8), ("abort", 9), ("commit", 8), ("commit", 9))
    assert log.read() == [1, 2] == log.expected


def test_a_position_passes_over_a_fetch_of_nothing_but_what_was_aborted() -> None:
    log = Log(("write", 7), ("write", 7), ("abort", 7), ("plain", PLAIN))
    assert log.fetched(0, stop=4) == ([], 4)
    assert log.fetched(4, stop=5) == ([], 5)
    assert log.fetched(5) == ([5, 6], 7)


def test_an_aborted_batch_is_not_even_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(("plain", PLAIN), ("write", 7), ("abort", 7))
    first, after, _ = log.raw[1]
    log.raw[1] = (first, after, written(first, [b"a", b"b"], 7, transactional=True, codec=4))
    monkeypatch.setattr(transport_raw, "decompressed", lambda *_: pytest.fail("it was"))
    assert log.read() == [0, 1]


def test_an_empty_marker_that_compaction_left_ends_nothing() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, True, 7, 0, -1, 1 << 20)
    builder.append(0, 1_000, ABORT, b"", [])
    raw = bytearray(builder.build())[:61]
    raw[8:12] = (49).to_bytes(4, "big")
    raw[22] |= CONTROL_BIT
    raw[57:61] = bytes(4)
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    log = Log(("plain", PLAIN))
    log.raw, log.end = (
        [(0, 1, bytes(raw)), *((f + 1, a + 1, written(1, [b"1"], PLAIN, transactional=False)) for f, a, _ in log.raw)],
        2,
    )
    assert log.read() == [1]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Any interleaving of three transactional producers and two others, every transaction ended."""
    events: list[tuple[str, int]] = []
    is_open: set[int] = set()
    for _ in range(draw(st.integers(1, 25))):
        what = draw(st.sampled_from(["plain", "write", "write", "write", "idempotent", "abort", "commit"]))
        producer_id = PLAIN if what == "plain" else draw(st.integers(0, 2))
        if what == "write":
            is_open.add(producer_id)
        elif what in ("abort", "commit"):
            is_open.discard(producer_id)
        events.append((what, producer_id))
    events += [(draw(st.sampled_from(["abort", "commit"])), producer_id) for producer_id in sorted(is_open)]
    return Log(*events)


@given(logs(), st.data())
def test_any_log_read_from_anywhere_gives_what_was_committed_as_aiokafka_reads_it(
    log: Log, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, log.end - 1))
    expected = [offset for offset in log.expected if offset >= start]
    assert log.read(start) == expected
    assert log.fetched(start, topic="not-named") == (expected, log.end)
