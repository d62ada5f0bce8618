"""Decompression that knows where to stop: a megabyte of zstd may hold thirty gigabytes of zeros.

A broker limits what a record batch is while compressed, and nobody limits what comes out of it. Whoever may write to a
topic that a worker reads could otherwise end every worker that is given the partition, one after the other.

Codecs are those of Kafka's record batches (format v2), by their number in the batch's attributes.
"""

from __future__ import annotations

import struct
import zlib

import cramjam
import numpy as np
from aiokafka import codec
from aiokafka.errors import CorruptRecordException

from schemas.arrays import U8
from schemas.limits import view_of

BATCH_BYTES_MAX = 32 << 20
"""Decompressed. Producers fill a batch up to about a megabyte before it is compressed; one that counts what it expects
to be left after compression, as Java's does, may come to twenty."""

GZIP, SNAPPY, LZ4, ZSTD = range(1, 5)
_GZIP_MAGIC, _GZIP_WINDOW = b"\x1f\x8b", 16 + zlib.MAX_WBITS
"""How a member begins, and zlib's way to say that it has gzip's header."""
_FIRST_GUESS, _GROWTH = 4, 8
"""Room for so many times the compressed bytes, and so many times more room each time that it was not enough."""
_GUESS_BYTES_MIN = 64 << 10
_OVERFLOW = "write whole buffer"
"""What cramjam says when the room is used up."""
_XERIAL_MAGIC, _XERIAL_HEADER_BYTES = b"\x82SNAPPY\0", 16


def decompressed(codec_id: int, payload: bytes) -> U8 | None:
    """What a record batch holds, read-only; None when that is more than `BATCH_BYTES_MAX`.

    Raises CorruptRecordException for bytes that the codec does not understand.
    """
    try:
        if codec_id == GZIP:
            found = _gunzipped(payload)
        elif codec_id == SNAPPY:
            found = None if _snappy_bytes(payload) > BATCH_BYTES_MAX else codec.snappy_decode(payload)
        elif codec_id in (LZ4, ZSTD):
            return _streamed(cramjam.lz4 if codec_id == LZ4 else cramjam.zstd, payload)
        else:
            raise CorruptRecordException(f"codec {codec_id}: expected 1 to 4 (gzip, snappy, lz4, zstd)")
    except (zlib.error, struct.error, cramjam.DecompressionError) as error:
        raise CorruptRecordException(f"codec {codec_id}: {error}") from error
    return None if found is None else view_of(found)


def _gunzipped(payload: bytes) -> bytes | None:
    """Of all members, up to what is none: so Java reads, and what Java reads a broker takes."""
    parts: list[bytes] = []
    bytes_left = BATCH_BYTES_MAX
    while not parts or payload.startswith(_GZIP_MAGIC):
        member = zlib.decompressobj(_GZIP_WINDOW)
        parts.append(member.decompress(payload, bytes_left + 1))
        bytes_left -= len(parts[-1])
        if bytes_left < 0:
            return None
        if not member.eof:
            raise CorruptRecordException("gzip: the stream ends before its end")
        payload = member.unused_data
    return b"".join(parts)


def _snappy_bytes(payload: bytes) -> int:
    """Bytes that snappy's blocks say they hold: one block, or several in the framing of the Java library "xerial"."""
    if not payload.startswith(_XERIAL_MAGIC):
        return int(cramjam.snappy.decompress_raw_len(payload))
    total, at = 0, _XERIAL_HEADER_BYTES
    while at < len(payload):
        (size,) = struct.unpack_from(">i", payload, at)
        if size <= 0:
            raise CorruptRecordException(f"snappy: a block of {size} bytes")
        total += cramjam.snappy.decompress_raw_len(payload[at + 4 : at + 4 + size])
        at += 4 + size
    return total


def _streamed(library: object, payload: bytes) -> U8 | None:
    """lz4 and zstd do not say how much they hold: into a room that grows until they fit, or up to the limit."""
    room_bytes = min(BATCH_BYTES_MAX, max(_GUESS_BYTES_MIN, _FIRST_GUESS * len(payload)))
    while True:
        room = np.empty(room_bytes, np.uint8)
        try:
            num_bytes = library.decompress_into(payload, room)  # type: ignore[attr-defined]  # a module of cramjam's
        except cramjam.DecompressionError as error:
            if _OVERFLOW not in str(error):
                raise
            if room_bytes == BATCH_BYTES_MAX:
                return None
            room_bytes = min(BATCH_BYTES_MAX, _GROWTH * room_bytes)
        else:
            # A view keeps the whole room: of thousands of batches of one record, 64 KiB each.
            is_roomy = 2 * num_bytes < room_bytes
            return view_of(room[:num_bytes].tobytes() if is_roomy else room[:num_bytes])
