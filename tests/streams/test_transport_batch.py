"""Columns of records, packed one by one or joined."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numba
import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from streams import transport_raw
from streams.transport_batch import NULL_LENGTH, join, pack


def records(values: list[bytes | None], first: int = 0) -> list[Any]:
    return [SimpleNamespace(offset=first + i, timestamp=1000 + i, value=value) for i, value in enumerate(values)]


def kafka_batch(values: list[bytes | None], codec: int = 0) -> bytearray:
    """One record batch v2 at base offset 0, as a producer builds it."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 1 << 20)
    for offset, value in enumerate(values):
        builder.append(offset, 1000 + offset, None if offset % 2 else b"key", value, [("h", b"x")])
    return bytearray(builder.build())


def test_packing_keeps_null_apart_from_empty() -> None:
    batch = pack("t", 3, records([b"a", None, b"", b"bc"]))
    assert [batch.value(i) for i in range(4)] == [b"a", None, b"", b"bc"]
    assert batch.lengths.tolist() == [1, NULL_LENGTH, 0, 2]
    assert (batch.next_offset, batch.size_bytes) == (4, 3)


def test_joined_batches_read_as_their_parts() -> None:
    parts = [pack("t", 0, records([b"a", None])), pack("t", 0, records([b"", b"bc"], first=2))]
    joined = join(parts)
    assert [joined.value(i) for i in range(4)] == [b"a", None, b"", b"bc"]
    assert joined.offsets.tolist() == [0, 1, 2, 3]
    assert joined.next_offset == 4


def test_batches_of_one_buffer_are_joined_without_copying_it() -> None:
    raw = bytes(kafka_batch([b"a", b"b"]))
    (batch, _), (again, _) = [
        *transport_raw.batches(raw, "t", 0, 0, True),
        *transport_raw.batches(raw, "t", 0, 0, True),
    ]
    assert batch is not None
    assert again is not None
    assert join([batch, batch]).buffer is batch.buffer


@pytest.mark.parametrize("codecs", [(0, 3), (3, 0), (0, 0, 3, 0), (3, 3), (0, 0)], ids=str)
def test_a_fetch_of_mixed_compression_is_copied_once_and_not_once_per_batch(codecs: tuple[int, ...]) -> None:
    """Ingest compresses its blocks and decide does not: 3,000 such batches in a fetch of 4 MiB once took 15 GiB."""
    values = [[b"%d-%d" % (number, i) * 50 for i in range(3)] + [None] for number in range(60)]
    raw = b"".join(bytes(kafka_batch(each, codecs[i % len(codecs)])) for i, each in enumerate(values))
    found = [batch for batch, _ in transport_raw.batches(raw, "t", 0, 0, True) if batch is not None]
    joined = join(found)
    got = [joined.value(i) for i in range(len(joined))]
    assert [None if each is None else bytes(each) for each in got] == [value for each in values for value in each]
    assert len(joined.buffer) <= len(raw) + sum(len(batch.buffer) for batch in found if len(batch.buffer) < len(raw))


@pytest.mark.parametrize("codecs", [(0,), (1,), (2,), (3,), (4,), (0, 3), (3, 3)], ids=str)
def test_every_batch_has_the_type_that_was_compiled_at_the_start(codecs: tuple[int, ...]) -> None:
    """A joined fetch once was writable: each process compiled all that reads it again, with its event loop standing."""
    raw = b"".join(bytes(kafka_batch([b"abc", b"d"], codec)) for codec in codecs)
    found = [batch for batch, _ in transport_raw.batches(bytearray(raw), "t", 0, 0, True) if batch is not None]
    assert len(found) == len(codecs)
    warmed_up = numba.typeof(pack("t", 0, records([b"abc", b"d"])).buffer)
    assert {numba.typeof(batch.buffer) for batch in (*found, join(found))} == {warmed_up}


def test_records_below_the_wanted_offset_are_left_out() -> None:
    raw = bytes(kafka_batch([b"a", b"b", b"c"]))
    ((batch, next_offset),) = transport_raw.batches(raw, "t", 0, 2, True)
    assert batch is not None
    assert batch.offsets.tolist() == [2]
    assert bytes(batch.value(0) or b"") == b"c"
    assert next_offset == 3
    assert list(transport_raw.batches(raw, "t", 0, 3, True)) == [(None, 3)]


def test_a_record_batch_cut_off_at_the_end_is_left_for_the_next_fetch() -> None:
    raw = bytes(kafka_batch([b"a", b"b"]))
    assert list(transport_raw.batches(raw[:-1], "t", 0, 0, True)) == []
    assert len(list(transport_raw.batches(raw + raw[:30], "t", 0, 0, True))) == 1


def test_a_changed_byte_is_refused_by_its_crc() -> None:
    raw = kafka_batch([b"abc"])
    raw[-3] ^= 1
    with pytest.raises(CorruptRecordException, match=r"wrong CRC in t\[0\] at offset 0"):
        list(transport_raw.batches(bytes(raw), "t", 0, 0, True))


def test_any_broken_byte_without_crc_check_is_refused_or_read_within_bounds() -> None:
    good = kafka_batch([b"abc" * 30, b"", b"d" * 200])
    for at in range(61, len(good)):
        for value in (0x00, 0x7F, 0xFF):
            raw = bytearray(good)
            raw[at] = value
            try:
                for batch, _ in transport_raw.batches(bytes(raw), "t", 0, 0, False):
                    if batch is not None:
                        assert (batch.starts + batch.lengths.clip(0) <= len(raw)).all()
            except CorruptRecordException:
                pass


def test_an_old_record_format_is_refused() -> None:
    raw = kafka_batch([b"abc"])
    raw[16] = 1
    with pytest.raises(CorruptRecordException, match="record batch format 1"):
        list(transport_raw.batches(bytes(raw), "t", 0, 0, True))


def test_an_untested_aiokafka_falls_back_and_says_why() -> None:
    assert transport_raw.obstacle() is None
    assert "0.99.1 was not tested" in str(transport_raw.obstacle("0.99.1"))
