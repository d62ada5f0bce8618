"""What comes out of a compressed record batch is bounded, and up to the bound it is what went in."""

from __future__ import annotations

import random
from typing import Any

import cramjam
import google_crc32c
import numpy as np
import pytest
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from schemas.bounds import BadRecord
from streams import transport_codecs
from streams.transport_batch import NULL_LENGTH, RecordBatch
from streams.transport_codecs import BATCH_BYTES_MAX, GZIP, LZ4, SNAPPY, ZSTD, decompressed
from streams.transport_raw import batches

ENCODERS: dict[int, Any] = {
    GZIP: codec.gzip_encode, SNAPPY: codec.snappy_encode, LZ4: codec.lz4_encode, ZSTD: codec.zstd_encode,
}  # fmt: skip
EACH_CODEC = pytest.mark.parametrize("codec_id", ENCODERS)


def batch_of(codec_id: int, first: int, values: list[bytes]) -> bytes:
    """A record batch (format v2) as a producer writes it, its first record at offset `first`."""
    builder = DefaultRecordBatchBuilder(2, codec_id, 0, -1, -1, -1, 1 << 30)
    for index, value in enumerate(values):
        builder.append(index, timestamp=1_000 + index, key=None, value=value, headers=[])
    return first.to_bytes(8, "big") + bytes(builder.build())[8:]


def read(raw: bytes, from_offset: int = 0) -> list[tuple[RecordBatch, int]]:
    """(batch, offset to fetch next) of what one call reads at or behind an offset."""
    found = batches(raw, "t", 0, from_offset, check_crcs=False)
    return [(batch, next_offset) for batch, next_offset in found if batch is not None]


@EACH_CODEC
@pytest.mark.parametrize("num_bytes", [1, 70_000, 3_000_000])
def test_what_went_in_comes_out(codec_id: int, num_bytes: int) -> None:
    for payload in (random.Random(1).randbytes(num_bytes), bytes(num_bytes)):
        found = decompressed(codec_id, bytes(ENCODERS[codec_id](payload)))
        assert found is not None
        assert found.tobytes() == payload
        assert not found.flags.writeable


def test_snappy_without_the_framing_of_java_is_read_too() -> None:
    payload = b"click " * 1_000
    found = decompressed(SNAPPY, bytes(cramjam.snappy.compress_raw(payload)))
    assert found is not None
    assert found.tobytes() == payload


@EACH_CODEC
def test_the_bound_itself_is_read_and_a_byte_more_is_not(codec_id: int) -> None:
    for num_bytes, is_read in ((BATCH_BYTES_MAX, True), (BATCH_BYTES_MAX + 1, False)):
        found = decompressed(codec_id, bytes(ENCODERS[codec_id](bytes(num_bytes))))
        assert (found is not None) == is_read


def test_thirty_gigabytes_of_zeros_cost_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int] = []

    def empty(size: int, dtype: Any) -> Any:
        rooms.append(size)
        return np.ndarray(size, dtype)

    monkeypatch.setattr(transport_codecs.np, "empty", empty)
    frame = bytes(cramjam.zstd.compress(bytes(8 << 20)))
    assert decompressed(ZSTD, frame * 4_000) is None
    assert max(rooms) == BATCH_BYTES_MAX
    assert sum(rooms) < 1.2 * BATCH_BYTES_MAX


@EACH_CODEC
def test_bytes_that_the_codec_does_not_understand_are_called_corrupt(codec_id: int) -> None:
    whole = bytes(ENCODERS[codec_id](random.Random(2).randbytes(50_000)))
    for payload in (whole[: len(whole) // 2], b"\xff" * 100):
        with pytest.raises(CorruptRecordException):
            decompressed(codec_id, payload)


def test_an_unknown_codec_is_called_corrupt() -> None:
    with pytest.raises(CorruptRecordException, match="codec 7"):
        decompressed(7, b"")


@EACH_CODEC
def test_a_record_batch_that_holds_too_much_is_one_record_and_those_around_it_are_read(codec_id: int) -> None:
    bomb = [b"x", bytes(BATCH_BYTES_MAX), b"z"]
    raw = batch_of(codec_id, 10, [b"a", b"b"]) + batch_of(codec_id, 12, bomb) + batch_of(codec_id, 15, [b"c"])
    (before, _), (oversized, next_offset) = read(raw)
    ((after, _),) = read(raw, next_offset)
    assert [bytes(batch.payload(0)) for batch in (before, after)] == [b"a", b"c"]
    assert oversized.offsets.tolist() == [12]
    assert oversized.next_offset == 15
    assert oversized.value(0) is None
    with pytest.raises(BadRecord, match="offset 12") as refusal:
        oversized.payload(0)
    assert refusal.value.reason == "too-large"


def test_of_many_in_one_fetch_each_call_decompresses_one() -> None:
    """Heartbeats run in the same thread: a fetch of thousands must not take a minute."""
    bomb = batch_of(ZSTD, 0, [bytes(BATCH_BYTES_MAX + 1)])
    raw = b"".join(offset.to_bytes(8, "big") + bomb[8:] for offset in range(20))
    for offset in range(20):
        ((stand_in, next_offset),) = read(raw, offset)
        assert (stand_in.offsets.tolist(), next_offset) == ([offset], offset + 1)


def test_gzip_of_several_members_is_read_as_java_reads_it() -> None:
    payload = bytes(codec.gzip_encode(b"a" * 100)) + bytes(codec.gzip_encode(b"b" * 50))
    found = decompressed(GZIP, payload)
    assert found is not None
    assert found.tobytes() == b"a" * 100 + b"b" * 50


def test_what_stands_behind_gzip_and_is_none_is_left_out_as_java_leaves_it_out() -> None:
    found = decompressed(GZIP, bytes(codec.gzip_encode(b"a" * 100)) + b"garbage, not a member")
    assert found is not None
    assert found.tobytes() == b"a" * 100


def test_gzip_of_many_members_is_bounded_as_a_whole() -> None:
    member = bytes(codec.gzip_encode(bytes(BATCH_BYTES_MAX // 4)))
    assert decompressed(GZIP, 4 * member) is not None
    assert decompressed(GZIP, 5 * member) is None


@pytest.mark.parametrize("codec_id", [LZ4, ZSTD])
def test_what_came_as_it_was_sent_and_cannot_be_decompressed_is_one_record(codec_id: int) -> None:
    """A broker takes, for instance, an lz4 frame with bytes behind it: to raise would end every reader in turn."""
    whole = batch_of(codec_id, 7, [b"click"] * 9)
    spoilt = bytearray(whole + b"more")
    spoilt[8:12] = (len(spoilt) - 12).to_bytes(4, "big")
    spoilt[-20] ^= 255
    spoilt[17:21] = google_crc32c.value(bytes(spoilt[21:])).to_bytes(4, "big")
    ((stand_in, next_offset),) = list(batches(bytes(spoilt), "t", 0, 0, check_crcs=True))
    assert stand_in is not None
    assert (stand_in.offsets.tolist(), next_offset) == ([7], 16)
    with pytest.raises(BadRecord, match="codec") as refusal:
        stand_in.payload(0)
    assert refusal.value.reason == "bad-compression"
    with pytest.raises(CorruptRecordException):  # without CRCs nobody knows who spoilt it
        list(batches(bytes(spoilt), "t", 0, 0, check_crcs=False))


@EACH_CODEC
def test_a_small_batch_keeps_no_more_memory_than_it_has_bytes(codec_id: int) -> None:
    found = decompressed(codec_id, bytes(ENCODERS[codec_id](b"click " * 20)))
    while isinstance(found, np.ndarray) and found.base is not None:
        found = found.base
    assert len(memoryview(found)) == 120  # type: ignore[arg-type]  # bytes or array: whatever owns the memory


def test_a_length_that_no_producer_writes_is_a_null() -> None:
    raw = bytearray(batch_of(0, 0, [b""]))
    assert raw[-2] == 0  # the value's length, zigzag; then the number of headers
    raw[-2] = 3  # -2
    ((batch, _),) = read(bytes(raw))
    assert batch.lengths.tolist() == [NULL_LENGTH]


def test_of_a_fetch_no_more_is_decompressed_at_once_than_of_a_record_batch() -> None:
    third = bytes(BATCH_BYTES_MAX // 3)
    raw = b"".join(batch_of(ZSTD, offset, [third]) for offset in range(10))
    offset, num_calls = 0, 0
    while offset < 10:
        found = read(raw, offset)
        fresh = [batch for batch, _ in found]
        assert sum(batch.size_bytes for batch in fresh) <= BATCH_BYTES_MAX + len(third)
        assert fresh[0].offsets.tolist() == [offset]
        offset, num_calls = found[-1][1], num_calls + 1
    assert num_calls == 4


@EACH_CODEC
def test_a_bit_that_flipped_on_the_way_is_found(codec_id: int) -> None:
    whole = batch_of(codec_id, 0, [b"click"] * 9)
    assert len(list(batches(whole, "t", 0, 0, check_crcs=True))) == 1
    for at in (21, 40, len(whole) - 1):  # the first byte that is covered, the header, the records
        spoilt = bytearray(whole)
        spoilt[at] ^= 16
        with pytest.raises(CorruptRecordException, match="wrong CRC"):
            list(batches(bytes(spoilt), "t", 0, 0, check_crcs=True))
