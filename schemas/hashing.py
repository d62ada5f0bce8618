"""The hashes of `schemas.keys` over many byte strings at once, by numba. Same results, bit for bit.

BLAKE2b: RFC 7693, sequential mode without a key, with a personalisation of at most 16 bytes, as
``hashlib.blake2b(x, digest_size=n, person=p)``. murmur2: Kafka's, see `schemas.keys.murmur2`.

Spans are (starts, lengths) into one uint8 buffer; a length below 0 reads as 0. Spans outside the buffer raise
ValueError before anything is read: numba does not check.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import I32, I64, U8, U64
from schemas.keys import PERSON_ACTION

_IV = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_IV_U64 = np.array(_IV, np.uint64)
_SCHEDULE = np.array([*_SIGMA, _SIGMA[0], _SIGMA[1]], np.int64)
_BLOCK = 128
_ACTION_KEYS_MAX = 1 << 15
"""Actions whose keys are remembered, then all are forgotten at once: a few MB with ids of usual length, 15 at most."""
_action_keys: dict[str, int] = {}


@njit(cache=True, nogil=True, inline="always")
def _rotate(word: np.uint64, right: int) -> np.uint64:
    return (word >> np.uint64(right)) | (word << np.uint64(64 - right))


@njit(cache=True, nogil=True, inline="always")
def _mix(a, b, c, d, x, y):  # type: ignore[no-untyped-def]  # numba
    """G of RFC 7693 §3.1, on scalars: in registers it takes half the time that an array of 16 words does."""
    a = a + b + x
    d = _rotate(d ^ a, 32)
    c = c + d
    b = _rotate(b ^ c, 24)
    a = a + b + y
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 63)
    return a, b, c, d


@njit(cache=True, nogil=True)
def _compress(h, m, counter, last):  # type: ignore[no-untyped-def]  # numba
    """F of RFC 7693 §3.2."""
    v0, v1, v2, v3, v4, v5, v6, v7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
    v8, v9, v10, v11 = _IV_U64[0], _IV_U64[1], _IV_U64[2], _IV_U64[3]
    v12, v13, v14, v15 = _IV_U64[4] ^ np.uint64(counter), _IV_U64[5], _IV_U64[6], _IV_U64[7]
    if last:
        v14 = ~v14
    for r in range(12):
        s = _SCHEDULE[r]
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[s[0]], m[s[1]])
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[s[2]], m[s[3]])
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[s[4]], m[s[5]])
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[s[6]], m[s[7]])
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[s[8]], m[s[9]])
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[s[10]], m[s[11]])
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[s[12]], m[s[13]])
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[s[14]], m[s[15]])
    h[0] ^= v0 ^ v8
    h[1] ^= v1 ^ v9
    h[2] ^= v2 ^ v10
    h[3] ^= v3 ^ v11
    h[4] ^= v4 ^ v12
    h[5] ^= v5 ^ v13
    h[6] ^= v6 ^ v14
    h[7] ^= v7 ^ v15


@njit(cache=True, nogil=True)
def _load(m, buffer, start, size):  # type: ignore[no-untyped-def]  # numba
    """Words of a block of `size` ≤ 128 bytes, padded with zeros."""
    for word in range(16):
        value = np.uint64(0)
        low = word * 8
        for byte in range(min(8, max(0, size - low))):
            value |= np.uint64(buffer[start + low + byte]) << np.uint64(8 * byte)
        m[word] = value


@njit(cache=True, nogil=True)
def _digest(h, m, initial, buffer, start, length):  # type: ignore[no-untyped-def]  # numba
    for i in range(8):
        h[i] = initial[i]
    done = 0
    while length - done > _BLOCK:
        _load(m, buffer, start + done, _BLOCK)
        done += _BLOCK
        _compress(h, m, done, False)
    _load(m, buffer, start + done, length - done)
    _compress(h, m, length, True)


@njit(cache=True, nogil=True)
def _digests(buffer, starts, lengths, initial, num_words, out):  # type: ignore[no-untyped-def]  # numba
    h, m = np.empty(8, np.uint64), np.empty(16, np.uint64)
    for row in range(len(starts)):
        _digest(h, m, initial, buffer, starts[row], max(0, lengths[row]))
        for word in range(num_words):
            out[row, word] = h[word]


@njit(cache=True, nogil=True)
def _murmur2(buffer, start, length):  # type: ignore[no-untyped-def]  # numba
    multiplier, mask = np.uint64(0x5BD1E995), np.uint64(0xFFFFFFFF)
    state = np.uint64(0x9747B28C) ^ np.uint64(length)
    whole = length & ~3
    for at in range(start, start + whole, 4):
        word = (
            np.uint64(buffer[at])
            | (np.uint64(buffer[at + 1]) << np.uint64(8))
            | (np.uint64(buffer[at + 2]) << np.uint64(16))
            | (np.uint64(buffer[at + 3]) << np.uint64(24))
        )
        word = (word * multiplier) & mask
        word = ((word ^ (word >> np.uint64(24))) * multiplier) & mask
        state = ((state * multiplier) & mask) ^ word
    if whole < length:
        for index in range(length - whole):
            state ^= np.uint64(buffer[start + whole + index]) << np.uint64(8 * index)
        state = (state * multiplier) & mask
    state = ((state ^ (state >> np.uint64(13))) * multiplier) & mask
    return state ^ (state >> np.uint64(15))


@njit(cache=True, nogil=True)
def _partitions(buffer, starts, lengths, num_partitions, out):  # type: ignore[no-untyped-def]  # numba
    for row in range(len(starts)):
        positive = np.int64(_murmur2(buffer, starts[row], max(0, lengths[row])) & np.uint64(0x7FFFFFFF))
        out[row] = positive % num_partitions


@njit(cache=True, nogil=True)
def _within(size, starts, lengths):  # type: ignore[no-untyped-def]  # numba
    for row in range(len(starts)):
        if starts[row] < 0 or starts[row] + max(0, lengths[row]) > size:
            return row
    return -1


def _check(buffer: U8, starts: I64, lengths: I32 | I64) -> None:
    if len(starts) != len(lengths):
        raise ValueError(f"expected as many lengths as starts, got {len(lengths)} and {len(starts)}")
    row = _within(len(buffer), starts, lengths)
    if row >= 0:
        raise ValueError(
            f"span {row} ({int(starts[row])} + {int(lengths[row])}) stands outside the buffer of {len(buffer)} bytes"
        )


@cache
def _initial(digest_size: int, person: bytes) -> U64:
    """State before the first block: IV xor the parameter block (RFC 7693 §2.5, BLAKE2 specification §2.8)."""
    if len(person) > 16:
        raise ValueError(f"expected a person of at most 16 bytes, got {len(person)}")
    parameters = np.zeros(64, np.uint8)
    parameters[:4] = (digest_size, 0, 1, 1)
    parameters[48 : 48 + len(person)] = np.frombuffer(person, np.uint8)
    return _IV_U64 ^ parameters.view("<u8").astype(np.uint64)


def keys128(buffer: U8, starts: I64, lengths: I32 | I64, person: bytes) -> U64:
    """(N, 2) BLAKE2b-128 of N spans, little-endian words, personalised with `person`."""
    _check(buffer, starts, lengths)
    out = np.empty((len(starts), 2), np.uint64)
    _digests(buffer, starts, lengths, _initial(16, person), 2, out)
    return out


def keys64(buffer: U8, starts: I64, lengths: I32 | I64, person: bytes) -> U64:
    """(N,) BLAKE2b-64 of N spans, personalised with `person`."""
    _check(buffer, starts, lengths)
    out = np.empty((len(starts), 1), np.uint64)
    _digests(buffer, starts, lengths, _initial(8, person), 1, out)
    return out[:, 0]


def partitions_of(buffer: U8, starts: I64, lengths: I32 | I64, num_partitions: int) -> I32:
    """(N,) journal partition of N subjects (join.md rule 15)."""
    _check(buffer, starts, lengths)
    out: npt.NDArray[np.int32] = np.empty(len(starts), np.int32)
    _partitions(buffer, starts, lengths, num_partitions, out)
    return out


def action_keys(action_ids: Sequence[str]) -> U64:
    """(K,) `schemas.keys.action_key` of every id, never 0. Runs for every request: shops offer the same ones again."""
    found = list(map(_action_keys.get, action_ids))
    if None not in found:
        return np.array(found, np.uint64)
    buffer = [action_id.encode() for action_id in action_ids]
    lengths = np.array(list(map(len, buffer)), np.int64)
    starts = lengths.cumsum() - lengths
    keys = np.maximum(keys64(np.frombuffer(b"".join(buffer), np.uint8), starts, lengths, PERSON_ACTION), np.uint64(1))
    if len(_action_keys) > _ACTION_KEYS_MAX:
        _action_keys.clear()
    _action_keys.update(zip(action_ids, keys.tolist(), strict=True))
    return keys
