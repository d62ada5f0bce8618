"""Hashed tokens of texts and categories, by numba over code points.

Tokens of a text: its words, pairs of neighbouring words (``a_b``) and the character 4-grams of `` words joined by
spaces ``, lower-cased; each token once. Of what was tried these gave the best results on short customer messages
(benchmarks/banking77_offline.py). A category, or a list of strings, gives each string as it stands.

Token id: a 64-bit FNV-1a over code points, started at the feature's own seed, mixed by murmur3's finaliser, upper
30 bits; `TEXT_TOKEN` is set for text. Two different tokens of one owner that share an id count as one.

The hash, the folding table and the order of tokens are frozen: they stand in the log, and weights are indexed by
them. tests/schemas/test_text.py pins them with vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import F32, I32, empty
from schemas.decision_columns import TEXT_TOKEN
from schemas.text_composition import LENGTH_MAX, composed
from schemas.text_folding import SIZE, folding

GRAM = 4
"""Characters of a 4-gram."""

AS_IT_STANDS = 0
WORDS = 1
WORDS_COUNTED = 2

_PRIME = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)
_DROP = np.uint64(34)
_SPACE = np.uint32(32)
_UNDERSCORE = np.uint64(95)


def seed_of(feature: str) -> int:
    """Where the hash of a feature's tokens starts: the same string in two features is two tokens."""
    return int.from_bytes(blake2b(feature.encode(), digest_size=8, person=b"hr-feature").digest(), "little")


@dataclass(slots=True)
class Pieces:
    """Strings of many owners (contexts, or candidates), waiting to become tokens.

    Add them owner by owner; within an owner, those that stand as they are before texts.
    """

    owners: list[int]
    seeds: list[int]
    modes: list[int]
    """AS_IT_STANDS, WORDS or WORDS_COUNTED, plus TEXT_TOKEN when idf applies."""
    strings: list[str]
    num_cut: int = 0
    """Strings that were cut before they were composed and do not show it by their length."""

    @classmethod
    def none(cls) -> Pieces:
        """No pieces yet."""
        return cls([], [], [], [])

    def add(self, owner: int, seed: int, mode: int, string: str) -> None:
        """One more piece; owners never fall."""
        self.owners.append(owner)
        self.seeds.append(seed)
        self.modes.append(mode)
        if not string.isascii():
            string, is_whole = composed(string)
            self.num_cut += not is_whole and (mode & 3 == AS_IT_STANDS or len(string) <= LENGTH_MAX)
        self.strings.append(string)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of N owners."""

    counts: I32
    """(N,) tokens per owner."""
    ids: I32
    """(T,)"""
    values: F32
    """(T,) 1, or how often the token occurs."""
    num_cut: int
    """Texts that were longer than `LENGTH_MAX`, or than `schemas.text_composition` allows."""
    num_dropped: int
    """Owners that had more tokens than allowed."""


def tokens_of(pieces: Pieces, num_owners: int, num_tokens_max: int) -> Tokens:
    """Tokens of every owner, at most `num_tokens_max` each: a text gets an even share of what is left to its owner."""
    if not pieces.strings:
        return Tokens(np.zeros(num_owners, np.int32), empty(np.int32), empty(np.float32), 0, 0)
    lengths = np.fromiter(map(len, pieces.strings), np.int64, len(pieces.strings))
    points = np.frombuffer("".join(pieces.strings).encode("utf-32-le", "surrogatepass"), np.uint32)
    counts, ids, values, num_cut, num_dropped = _tokenise(
        points,
        lengths,
        np.array(pieces.owners, np.int64),
        np.array(pieces.seeds, np.uint64),
        np.array(pieces.modes, np.int64),
        num_owners,
        num_tokens_max,
        folding(),
    )
    return Tokens(counts, ids, values, pieces.num_cut + num_cut, num_dropped)


def tokens_of_text(feature: str, text: str) -> Sequence[int]:
    """Token ids of one text; for people, `lint` and tests."""
    pieces = Pieces.none()
    pieces.add(0, seed_of(feature), WORDS | TEXT_TOKEN, text)
    ids: list[int] = tokens_of(pieces, 1, 1 << 20).ids.tolist()
    return ids


@njit(cache=True, nogil=True, inline="always")
def _step(state: np.uint64, point: np.uint64) -> np.uint64:
    return (state ^ point) * _PRIME


@njit(cache=True, nogil=True)
def _finish(state: np.uint64) -> np.int64:
    state = (state ^ (state >> _SHIFT)) * _MIX_1
    state = (state ^ (state >> _SHIFT)) * _MIX_2
    return np.int64((state ^ (state >> _SHIFT)) >> _DROP)


@njit(cache=True, nogil=True)
def _keep(token, first, count, ids, values, slots, counted, budget_end):  # type: ignore[no-untyped-def]  # numba
    """Add a token of the owner whose tokens start at `first`, unless it is there. Returns the new count, -1: full."""
    mask = len(slots) - 1
    place = (token ^ (token >> 15)) & mask
    while slots[place] >= first:  # a smaller index belongs to an earlier owner: the slot is free
        if ids[slots[place]] == token:
            if counted:
                values[slots[place]] += np.float32(1.0)
            return count
        place = (place + 1) & mask
    if count >= budget_end:
        return -1
    slots[place] = count
    ids[count] = token
    values[count] = np.float32(1.0)
    return count + 1


@njit(cache=True, nogil=True)
def _fold(points, start, length, table, norm, word_starts):  # type: ignore[no-untyped-def]  # numba
    """Write ``" words "`` to `norm`, where words start to `word_starts`. Returns (characters, words)."""
    size, num_words, inside = 1, 0, False
    norm[0] = _SPACE
    for index in range(start, start + length):
        point = points[index]
        folded = np.uint32(table[point]) if point < SIZE else point
        if folded == 0:
            if inside:
                norm[size] = _SPACE
                size += 1
            inside = False
            continue
        if not inside:
            word_starts[num_words] = size
            num_words += 1
            inside = True
        norm[size] = folded
        size += 1
    if inside:
        norm[size] = _SPACE
        size += 1
    word_starts[num_words] = size
    return size, num_words


@njit(cache=True, nogil=True)
def _add_words(norm, size, word_starts, num_words, seed, flag, count, ids, values, slots, counted, end):  # type: ignore[no-untyped-def]  # numba
    """All tokens of one folded text. Returns (new count, whether some did not fit)."""
    states = np.empty(num_words, np.uint64)
    first = slots[len(slots) - 1]
    full = False
    for kind in range(3):
        total = num_words if kind == 0 else num_words - 1 if kind == 1 else size - GRAM + 1 if num_words else 0
        for item in range(total):
            state = seed
            if kind == 2:
                low, high = item, item + GRAM
            else:
                word = item + kind  # a pair goes on from the state of its first word
                low, high = word_starts[word], word_starts[word + 1] - 1
                if kind == 1:
                    state = _step(states[item], _UNDERSCORE)
            for index in range(low, high):
                state = _step(state, np.uint64(norm[index]))
            if kind == 0:
                states[item] = state
            added = _keep(_finish(state) | flag, first, count, ids, values, slots[:-1], counted, end)
            if added < 0:
                full = True
            else:
                count = added
    return count, full


@njit(cache=True, nogil=True)
def _tokenise(points, lengths, owners, seeds, modes, num_owners, budget, table):  # type: ignore[no-untyped-def]  # numba
    num_pieces = len(lengths)
    bound, longest = 0, 0
    for piece in range(num_pieces):
        length = min(lengths[piece], LENGTH_MAX)
        bound += 1 if modes[piece] & 3 == AS_IT_STANDS else min(3 * length + 4, budget)
        longest = max(longest, length)
    ids, values = np.empty(bound, np.int32), np.empty(bound, np.float32)
    counts = np.zeros(num_owners, np.int32)
    norm, word_starts = np.empty(2 * longest + 4, np.uint32), np.empty(longest + 2, np.int64)
    num_slots = 64
    while num_slots < 2 * min(budget, bound) + 2:
        num_slots *= 2
    slots = np.full(num_slots + 1, -1, np.int64)  # the last one holds where the owner's tokens start
    count, num_cut, num_dropped, start, piece = 0, 0, 0, 0, 0
    while piece < num_pieces:
        owner, first, full = owners[piece], count, False
        last = piece
        while last < num_pieces and owners[last] == owner:
            last += 1
        slots[num_slots] = first
        for index in range(piece, last):
            length, mode = lengths[index], modes[index]
            flag = mode & TEXT_TOKEN
            if mode & 3 == AS_IT_STANDS:
                state = seeds[index]
                for at in range(start, start + length):
                    state = _step(state, np.uint64(points[at]))
                added = _keep(_finish(state) | flag, first, count, ids, values, slots[:-1], False, first + budget)
                full = full or added < 0
                count = max(count, added)
            else:
                share = (first + budget - count) // (last - index)
                num_cut += length > LENGTH_MAX
                size, words = _fold(points, start, min(length, LENGTH_MAX), table, norm, word_starts)
                counted = mode & 3 == WORDS_COUNTED
                count, cut = _add_words(
                    norm,
                    size,
                    word_starts,
                    words,
                    seeds[index],
                    flag,
                    count,
                    ids,
                    values,
                    slots,
                    counted,
                    count + share,
                )
                full = full or cut
            start += length
        counts[owner] = count - first
        num_dropped += full
        piece = last
    return counts, ids[:count].copy(), values[:count].copy(), num_cut, num_dropped


def folded(text: str) -> str:
    """A text as its 4-grams see it; for people, `lint` and tests.

    >>> folded("I can’t PAY!")
    " i can't pay "
    """
    points = np.frombuffer(text[:LENGTH_MAX].encode("utf-32-le", "surrogatepass"), np.uint32)
    norm: npt.NDArray[np.uint32] = np.empty(2 * len(points) + 4, np.uint32)
    size, _ = _fold(points, 0, len(points), folding(), norm, np.empty(len(points) + 2, np.int64))
    return norm[:size].astype("<u4").tobytes().decode("utf-32-le")
