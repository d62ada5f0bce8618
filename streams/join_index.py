"""Records in log order with hash chains over them: the memory of the join.

A ring holds records by sequence number (rising by one per record). Old records leave at the front, new ones come at
the back, so nothing is ever deleted in the middle and nothing is ever rehashed at once:
- records live in pages of `PAGE_ROWS`; a page that has been left is the next one written, so memory follows what is
  held, not how far the log has come;
- each index is a table of chains, newest record first. A chain ends where its next record has left the ring;
- tables grow by linear hashing (Litwin, VLDB 1980): one chain is split per record added, no pause at any size.

Numba functions take a `Ring` of arrays; `PagedRing` owns the arrays and is called once per block. Knows nothing of
decisions or outcomes but their record types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import I64

KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
"""How the join's loops are compiled: without reference counts. They only borrow arrays that the caller holds, and
counting cost three quarters of the time (990 instead of 240 ns a decision). What allocates does not compile."""
SMALL: dict[str, Any] = {**KERNEL, "forceinline": True}
"""The same for functions that are called in every step of a loop."""

PAGE_BITS = 10
PAGE_ROWS = 1 << PAGE_BITS
_PAGE_MASK = PAGE_ROWS - 1
_COPY_ROWS_MAX = 1 << 16
_RESERVED_ROWS = 1 << 22
"""An array that outgrows the first gets the second at once: copying takes a pause, untouched memory costs nothing."""

HEAD, TAIL = 0, 1
"""Cursor: sequence number of the oldest record held, and of the next to come."""
BUCKETS, MASK = 2, 3
"""Cursor: chains of index i at BUCKETS + 2 i, twice the last full power of two, less one, at MASK + 2 i."""

CHAINS_MIN = 64
"""Chains of an empty table, a power of two."""
TOUCH_ROWS = 64
"""Rows looked up together: 64 rows times a few cache lines stay in the first-level cache."""

NONE = 0
"""No record: sequence numbers start at 1."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HASH_SHIFT = np.uint64(20)

DECISION = np.dtype(
    [
        ("words", "u8", (3,)),  # decision key (2), subject key
        ("time", "i8"),  # T(d), ms
        ("chosen", "u8"),  # key of the chosen action, or a digest of all slots when HAS_KEYS
        ("links", "u4", (2,)),  # steps back to the next older record of the chain by decision key, by subject
        ("first", "u4"),  # steps back to the first record of the id when this one is a duplicate, 0 unknown
        ("uses", "i4"),  # outcomes counted
        ("nodes", "i4"),  # first node of what came in, -1 none (streams.reward)
        ("task", "u2"),  # index of the definition
        ("marks", "u1"),
        ("slots", "u1"),
    ]
)
"""64 bytes, one cache line: all that the join knows of a decision beside its columns."""
DUPLICATE, QUARANTINED, CONFLICT, CUT, HAS_KEYS = 1, 2, 4, 8, 16
"""Marks of a decision."""

OUTCOME = np.dtype([("words", "u8", (2,)), ("time", "i8"), ("links", "u4", (2,))])
"""32 bytes: an outcome key and when it came last."""

PENDING = np.dtype(
    [
        ("words", "u8", (4,)),  # decision key (2), subject key, word that is hashed
        ("time", "i8"),  # T(o), ms
        ("action", "u8"),
        ("value", "f8"),
        ("done", "u8", (2,)),  # tasks that have had this outcome, a bit each
        ("links", "u4", (2,)),
        ("type", "i4"),
        ("slot", "i4"),
        ("bucket", "i4"),  # where it settles if nothing comes
        ("settled", "i4"),  # 1: already counted as used, waits for other tasks only
    ]
)
"""An outcome that may still find its decision (join.md rule 2)."""


class Ring(NamedTuple):
    """Arrays of one ring, as numba functions take them."""

    records: npt.NDArray[Any]
    pages: I64
    """Page of the records with sequence number >> PAGE_BITS, modulo its length (a power of two)."""
    cursor: I64
    heads_0: I64
    """Sequence number of the newest record per chain of the first index."""
    heads_1: I64


@njit(**SMALL)
def place(ring: Ring, seq: int) -> int:
    """Where record `seq` stands in ``ring.records``."""
    page = ring.pages[(seq >> PAGE_BITS) & (ring.pages.shape[0] - 1)]
    return int((page << PAGE_BITS) | (seq & _PAGE_MASK))


@njit(**SMALL)
def bucket_of(ring: Ring, index: int, word: np.uint64) -> int:
    """Chain of a hashed word; words are hashes already, the product only spreads hand-made ones."""
    mask = ring.cursor[MASK + 2 * index]
    bucket = np.int64((word * _GOLDEN) >> _HASH_SHIFT) & mask
    return int(bucket if bucket < ring.cursor[BUCKETS + 2 * index] else bucket & (mask >> 1))


@njit(**SMALL)
def newest(ring: Ring, index: int, word: np.uint64) -> int:
    """First record of the word's chain (other words share it), or NONE."""
    heads = ring.heads_0 if index == 0 else ring.heads_1
    seq = heads[bucket_of(ring, index, word)]
    return seq if seq >= ring.cursor[HEAD] else NONE


@njit(**SMALL)
def older(ring: Ring, index: int, seq: int) -> int:
    """Next older record of the chain, or NONE."""
    steps = np.int64(ring.records[place(ring, seq)].links[index])
    found = seq - steps
    return int(found) if steps > 0 and found >= ring.cursor[HEAD] else NONE


@njit(**SMALL)
def relink(ring: Ring, index: int, word: np.uint64, before: int, target: int) -> None:
    """Let `target` (or NONE) follow record `before`; NONE as `before` makes it the first of the word's chain."""
    if before == NONE:
        heads = ring.heads_0 if index == 0 else ring.heads_1
        heads[bucket_of(ring, index, word)] = target
    else:
        ring.records[place(ring, before)].links[index] = np.uint32(before - target if target != NONE else 0)


@njit(**SMALL)
def push(ring: Ring, index: int, hashed: int, seq: int) -> None:
    """Make record `seq` the first of its chain; `hashed` names the word of the record that is hashed."""
    record = ring.records[place(ring, seq)]
    heads = ring.heads_0 if index == 0 else ring.heads_1
    bucket = bucket_of(ring, index, record.words[hashed])
    head = heads[bucket]
    record.links[index] = np.uint32(seq - head if head >= ring.cursor[HEAD] and head != NONE else 0)
    heads[bucket] = seq
    held = seq - ring.cursor[HEAD]
    for _ in range(2):
        if ring.cursor[BUCKETS + 2 * index] < held:
            _split(ring, index, hashed)


@njit(**KERNEL)
def _split(ring: Ring, index: int, hashed: int) -> None:
    """One step of linear hashing: spread the next chain over two. Keeps newest first."""
    cursor = ring.cursor
    heads = ring.heads_0 if index == 0 else ring.heads_1
    if cursor[BUCKETS + 2 * index] > cursor[MASK + 2 * index]:
        cursor[MASK + 2 * index] = 2 * cursor[MASK + 2 * index] + 1
    added = cursor[BUCKETS + 2 * index]
    divided = added & (cursor[MASK + 2 * index] >> 1)
    cursor[BUCKETS + 2 * index] += 1
    seq = heads[divided]
    if seq < cursor[HEAD]:
        seq = NONE
    heads[divided] = NONE
    heads[added] = NONE
    last_divided = last_added = np.int64(NONE)
    while seq != NONE:
        following = older(ring, index, seq)
        record = ring.records[place(ring, seq)]
        if bucket_of(ring, index, record.words[hashed]) == added:
            relink(ring, index, record.words[hashed], last_added, seq)
            last_added = seq
        else:
            relink(ring, index, record.words[hashed], last_divided, seq)
            last_divided = seq
        record.links[index] = np.uint32(0)
        seq = following


@njit(**KERNEL)
def spread(ring: Ring, index: int, hashed: int, num_chains: int) -> None:
    """Split chains until there are `num_chains`; the caller has made room for their heads."""
    while ring.cursor[BUCKETS + 2 * index] < num_chains:
        _split(ring, index, hashed)


@njit(**KERNEL)
def touch(ring: Ring, index: int, words: npt.NDArray[np.uint64], first: int, deep: bool) -> int:
    """Read what looking up the next `TOUCH_ROWS` words will read: their misses then wait together, not in a row.

    `deep`: the newest records too, not only where they are. Returns a number that means nothing, so that the reads
    are not left out.
    """
    heads = ring.heads_0 if index == 0 else ring.heads_1
    total = np.int64(0)
    stop = min(first + TOUCH_ROWS, words.shape[0])
    for row in range(first, stop):
        total += heads[bucket_of(ring, index, words[row])]
    for row in range(first, stop if deep else first):
        seq = heads[bucket_of(ring, index, words[row])]
        if seq >= ring.cursor[HEAD]:
            total += ring.records[place(ring, seq)].time
    return int(total)


class PagedRing:
    """Owns the arrays of one ring: makes room before a block, gives pages back after it."""

    def __init__(self, dtype: np.dtype[Any], num_indexes: int) -> None:
        self._num_indexes = num_indexes
        self._free: list[int] = []
        self.num_pages = 0
        """Pages that have memory."""
        heads = [np.zeros(CHAINS_MIN if index < num_indexes else 1, np.int64) for index in range(2)]
        cursor = np.array([1, 1, *2 * (CHAINS_MIN, CHAINS_MIN - 1)], np.int64)
        self.arrays = Ring(np.zeros(PAGE_ROWS, dtype), np.zeros(8, np.int64), cursor, heads[0], heads[1])
        self._num_chains = CHAINS_MIN
        self._first = self._mapped = 0
        """Logical pages [first, mapped) have memory."""

    def __len__(self) -> int:
        return int(self.arrays.cursor[TAIL] - self.arrays.cursor[HEAD])

    @property
    def head(self) -> int:
        """Sequence number of the oldest record."""
        return int(self.arrays.cursor[HEAD])

    @property
    def tail(self) -> int:
        """Sequence number of the next record."""
        return int(self.arrays.cursor[TAIL])

    @property
    def memory_bytes(self) -> int:
        """Memory that has been written to: pages and chains; what is only reserved costs nothing."""
        chains = sum(int(self.arrays.cursor[BUCKETS + 2 * index]) for index in range(self._num_indexes))
        return self.num_pages * PAGE_ROWS * self.arrays.records.itemsize + 8 * chains + self.arrays.pages.nbytes

    def reserve(self, num_rows: int) -> None:
        """Make room for `num_rows` more records and for the chains they need."""
        head, tail = self.arrays.cursor[:2].tolist()
        last = tail + num_rows
        if last >> PAGE_BITS >= self._mapped:
            self._map(last >> PAGE_BITS)
        wanted = last - head + 1
        if wanted > self._num_chains:
            for index in range(self._num_indexes):
                self._grow_heads(index, wanted)
            self._num_chains = len(self.arrays.heads_0)

    @property
    def num_chains(self) -> int:
        """Chains of the first index; every other one has as many."""
        return int(self.arrays.cursor[BUCKETS])

    def widen(self, num_rows: int, hashed: Sequence[int]) -> None:
        """Chains for `num_rows` records at once, where so many are known to come.

        A table that grows with its records looks at each of them once more at every doubling, and each look is a cache
        miss: two fifths of what folding a decision costs (0.69 and 0.39 µs, in process). `hashed` names the word of
        each index.
        """
        num_chains = 1 << max(num_rows - 1, 1).bit_length()
        for index, word in enumerate(hashed):
            self._grow_heads(index, num_chains + 1)
            spread(self.arrays, index, word, num_chains)
        self._num_chains = len(self.arrays.heads_0)

    def evict(self, seq: int) -> None:
        """Let go of every record before `seq`."""
        pages = self.arrays.pages
        left = min(seq >> PAGE_BITS, self._mapped)
        for page in range(self._first, left):
            self._free.append(int(pages[page & (len(pages) - 1)]))
        self._first = max(self._first, left)
        self.arrays.cursor[HEAD] = seq

    def _map(self, last: int) -> None:
        """Give memory to the logical pages up to `last`."""
        pages = self.arrays.pages
        if last - self._first + 1 > len(pages):
            grown = np.zeros(1 << int(last - self._first + 1).bit_length(), np.int64)
            held = np.arange(self._first, self._mapped)
            grown[held & (len(grown) - 1)] = pages[held & (len(pages) - 1)]
            self.arrays = self.arrays._replace(pages=grown)
            pages = grown
        for page in range(self._mapped, last + 1):
            if not self._free:
                self._free.append(self.num_pages)
                self.num_pages += 1
            pages[page & (len(pages) - 1)] = self._free.pop()
        self._mapped = last + 1
        self._grow_records(self.num_pages << PAGE_BITS)

    def _grow_records(self, wanted: int) -> None:
        records = self.arrays.records
        if wanted > len(records):
            grown = np.empty(_size_for(wanted), records.dtype)
            grown[: len(records)] = records
            self.arrays = self.arrays._replace(records=grown)

    def _grow_heads(self, index: int, wanted: int) -> None:
        heads = self.arrays.heads_1 if index else self.arrays.heads_0
        if wanted > len(heads):
            grown = np.zeros(_size_for(wanted), np.int64)
            grown[: len(heads)] = heads
            self.arrays = self.arrays._replace(heads_1=grown) if index else self.arrays._replace(heads_0=grown)


def _size_for(wanted: int) -> int:
    """Length of an array that must hold `wanted` elements."""
    size = 1 << (wanted - 1).bit_length()
    return size if size <= _COPY_ROWS_MAX else max(size, _RESERVED_ROWS)
