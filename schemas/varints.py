"""Avro's primitives in numba: numbers, lengths and UTF-8 in a byte buffer, and what can be wrong with them.

Every reader returns the position after what it read, or minus the code of what is wrong; codes are indices into
`REASONS`. No reader allocates, and none reads a byte at or past `end`.

For developers: numba's cache on disk notices changes of the file whose function it holds, not of the files it calls;
after an edit here remove schemas/__pycache__/*.nb*.

Source: Avro 1.12 specification, "Binary encoding".
"""

from __future__ import annotations

import numba
import numpy as np

from schemas.arrays import I64, U8

REASONS: tuple[tuple[str, str], ...] = (
    ("", ""),
    ("empty", "the message has no bytes"),
    ("bad-magic", "the first byte is neither 0x00 (Avro) nor { (JSON)"),
    ("unknown-schema", "no schema of this id is known"),
    ("wrong-type", "a record of another type stands here"),
    ("truncated", "the message ends before the value does"),
    ("trailing-bytes", "bytes are left after the last field"),
    ("too-large", "it is longer than the limit"),
    ("too-deep", "it is nested deeper than the limit"),
    ("too-many-items", "it counts more items than the limit"),
    ("negative-length", "the length is negative"),
    ("bad-varint", "the number has more than 64 bits"),
    ("bad-union", "the union has no such branch"),
    ("bad-enum", "the enum has no such symbol"),
    ("bad-boolean", "a boolean is 0 or 1"),
    ("bad-block", "the items end elsewhere than the block's size says"),
    ("bad-utf8", "the string is not UTF-8"),
    ("not-finite", "the number is NaN or infinite"),
    ("out-of-range", "the number lies outside its range"),
    ("missing-field", "a required field is missing or empty"),
    ("bad-json", "it is not JSON"),
    ("unknown-field", "the record has no such field"),
    ("empty-candidates", "the list of candidates is empty"),
    ("empty-block", "the block has no rows"),
    ("bad-columns", "the columns do not fit together"),
    ("bad-row", "a row that is learnt from holds unusable numbers"),
    ("wrong-format", "the record is JSON where its source declares Avro, or Avro where it declares JSON"),
    ("bad-definition", "it is no task, source or namespace that this version reads"),
    ("bad-compression", "the record batch is not what its codec writes"),
)
"""(code, sentence) of everything that makes a record unusable; the index is the code in numba."""

(
    _OK,
    EMPTY,
    BAD_MAGIC,
    UNKNOWN_SCHEMA,
    WRONG_TYPE,
    TRUNCATED,
    TRAILING_BYTES,
    TOO_LARGE,
    TOO_DEEP,
    TOO_MANY_ITEMS,
    NEGATIVE_LENGTH,
    BAD_VARINT,
    BAD_UNION,
    BAD_ENUM,
    BAD_BOOLEAN,
    BAD_BLOCK,
    BAD_UTF8,
    NOT_FINITE,
    OUT_OF_RANGE,
    MISSING_FIELD,
    BAD_JSON,
    UNKNOWN_FIELD,
    EMPTY_CANDIDATES,
    EMPTY_BLOCK,
    BAD_COLUMNS,
    BAD_ROW,
    WRONG_FORMAT,
    BAD_DEFINITION,
    BAD_COMPRESSION,
) = range(len(REASONS))


@numba.njit(cache=True, nogil=True)
def read_long(buffer: U8, position: int, end: int) -> tuple[int, int]:
    """(value, position after it or -code). Zig-zag varint of at most ten bytes and 64 bits.

    One exit only, here and below: with several, numba counts references to the buffer at each of them, atomically,
    and the function takes eight times as long (measured: 20 ns instead of 2.4).
    """
    raw = np.uint64(0)
    shift = np.uint64(0)
    byte = np.uint64(0x80)
    while byte >= np.uint64(0x80) and position < end and shift < np.uint64(70):
        byte = np.uint64(buffer[np.uint64(position)])  # an unsigned index: no test for counting from the end
        position += 1
        raw |= (byte & np.uint64(0x7F)) << shift
        shift += np.uint64(7)
    if shift == np.uint64(70) and byte > np.uint64(1):
        position = -BAD_VARINT
    elif byte >= np.uint64(0x80):
        position = -TRUNCATED
    return int(np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1))), position


@numba.njit(cache=True, nogil=True)
def read_length(buffer: U8, position: int, end: int, length_max: int) -> tuple[int, int]:
    """(length, position of the first byte or -code) of a string or of bytes that lies wholly before `end`."""
    length, position = read_long(buffer, position, end)
    if position >= 0:
        if length < 0:
            position = -NEGATIVE_LENGTH
        elif length > length_max:
            position = -TOO_LARGE
        elif length > end - position:
            position = -TRUNCATED
    return length, position


@numba.njit(cache=True, nogil=True)
def is_finite_f32(buffer: U8, position: int) -> bool:
    """Whether the little-endian float32 at `position` is finite: not all exponent bits are set."""
    return not (buffer[position + 3] & 0x7F == 0x7F and buffer[position + 2] & 0x80 == 0x80)


@numba.njit(cache=True, nogil=True)
def is_finite_f64(buffer: U8, position: int) -> bool:
    """Whether the little-endian float64 at `position` is finite."""
    return not (buffer[position + 7] & 0x7F == 0x7F and buffer[position + 6] & 0xF0 == 0xF0)


@numba.njit(cache=True, nogil=True)
def utf8_end(buffer: U8, position: int, end: int) -> int:
    """`end` if buffer[position:end] is UTF-8, else -BAD_UTF8. ASCII, the usual case, is one reduction over bytes."""
    ored = np.uint8(0)
    for index in range(np.uint64(position), np.uint64(end)):
        ored |= buffer[index]
    return end if ored < np.uint8(0x80) else _utf8_end(buffer, position, end)


@numba.njit(cache=True, nogil=True)
def _utf8_end(buffer: U8, position: int, end: int) -> int:
    """`utf8_end`, byte by byte (RFC 3629: no surrogates, nothing overlong, nothing above U+10FFFF)."""
    good = True
    while good and position < end:
        lead = buffer[position]
        position += 1
        if lead < 0x80:
            continue
        following = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        good = 0xC2 <= lead <= 0xF4 and end - position >= following
        if good:
            low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
            high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
            good = low <= buffer[position] <= high
            for index in range(1, following):
                good &= buffer[position + index] & 0xC0 == 0x80
            position += following
    return end if good else -BAD_UTF8


@numba.njit(cache=True, nogil=True)
def copy_bytes(source: U8, first: int, size: int, target: U8, at: int) -> None:
    """target[at:at + size] = source[first:first + size]; the caller has checked both. Eight times as fast as slices."""
    for index in range(np.uint64(size)):
        target[np.uint64(at) + index] = source[np.uint64(first) + index]


@numba.njit(cache=True, nogil=True)
def write_long(buffer: U8, position: int, value: int) -> int:
    """Position after the zig-zag varint of `value`; the caller left ten bytes of room."""
    raw = np.uint64(np.int64(value) << 1) ^ np.uint64(np.int64(value) >> 63)
    at = np.uint64(position)  # a signed index may be negative, and numba looks each time
    for _ in range(3):  # unrolled: most numbers are short
        if raw < np.uint64(0x80):
            buffer[at] = np.uint8(raw)
            return int(np.int64(at)) + 1
        buffer[at] = np.uint8(raw | np.uint64(0x80))
        raw >>= np.uint64(7)
        at += np.uint64(1)
    while raw >= np.uint64(0x80):
        buffer[at] = np.uint8(raw | np.uint64(0x80))
        raw >>= np.uint64(7)
        at += np.uint64(1)
    buffer[at] = np.uint8(raw)
    return int(np.int64(at)) + 1


@numba.njit(cache=True, nogil=True)
def write_arrays(values: I64, counts: I64) -> tuple[U8, I64]:
    """Arrays of numbers, one after another, as Avro writes them: count, items, 0 (only 0 when empty).

    `values` of all arrays together, `counts` their lengths. Returns (bytes, end of each array within them).
    """
    buffer = np.empty(10 * len(values) + 11 * len(counts), np.uint8)
    ends = np.empty(len(counts), np.int64)
    position = first = 0
    for column in range(len(counts)):
        last = first + counts[column]
        if last > first:
            position = write_long(buffer, position, last - first)
            for index in range(first, last):
                position = write_long(buffer, position, values[np.uint64(index)])
        buffer[position] = 0
        position += 1
        ends[column] = position
        first = last
    return buffer[:position], ends
