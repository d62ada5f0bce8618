"""Records in log order with hash chains over them: the memory of the join.

A ring holds records by sequence number (rising by one per record). Old records leave at the front, new ones come at
the back, so nothing is ever deleted in the middle and nothing is ever rehashed at once:
- records live in pages of `PAGE_ROWS`; a page that has been left is the next one written, so memory follows what is
  held, not how far the log has come;
- its index is a table of chains, newest record first. A chain ends where its next record has left the ring;
- the table grows by linear hashing (Litwin, VLDB 1980): one chain is split per record added, no pause at any size.

A decision has a record in two rings, with one sequence number: who it is, which is remembered for D so that a second
one is known for a duplicate, and what outcomes may still change, for 2 Wmax. So what is remembered for long is small.

Numba functions take a `Ring` of arrays; `PagedRing` owns the arrays and is called once per block. Knows nothing of
decisions or outcomes but their record types.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import I64
from schemas.compiled import KERNEL, SMALL

PAGE_BITS = 10
PAGE_ROWS = 1 << PAGE_BITS
_PAGE_MASK = PAGE_ROWS - 1
_COPY_ROWS_MAX = 1 << 16
_RESERVED_ROWS = 1 << 22
"""An array that outgrows the first gets the second at once: copying takes a pause, untouched memory costs nothing."""

HEAD, TAIL = 0, 1
"""Cursor: sequence number of the oldest record held, and of the next to come."""
BUCKETS, MASK = 2, 3
"""Cursor: chains, and twice the last full power of two, less one."""

CHAINS_MIN = 64
"""Chains of an empty table, a power of two."""
TOUCH_ROWS = 64
"""Rows looked up together: 64 rows times a few cache lines stay in the first-level cache."""

NONE = 0
"""No record: sequence numbers start at 1."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HASH_SHIFT = np.uint64(20)

IDENTITY = np.dtype(
    [
        ("words", "u8", (2,)),  # decision key
        ("time", "i8"),  # T(d), ms
        ("link", "u4"),  # steps back to the next older record of the chain
        ("task", "u2"),  # index of the definition
        ("marks", "u1"),
        ("slots", "u1"),
    ]
)
"""32 bytes: who a decision is."""
DECISION = np.dtype(
    [
        ("words", "u8", (1,)),  # subject key
        ("chosen", "u8"),  # key of the chosen action, or a digest of all slots when HAS_KEYS
        ("link", "u4"),
        ("first", "u4"),  # steps back to the first record of the id when this one is a duplicate, 0 unknown
        ("uses", "i4"),  # outcomes counted
        ("nodes", "i4"),  # first node of what came in, -1 none (streams.reward)
    ]
)
"""32 bytes: what else the join knows of a decision beside its columns, while an outcome may ask for it."""
DUPLICATE, QUARANTINED, CONFLICT, CUT, HAS_KEYS = 1, 2, 4, 8, 16
"""Marks of a decision."""

OUTCOME = np.dtype([("words", "u8", (2,)), ("time", "i8"), ("link", "u4")])
"""28 bytes: an outcome key and when it came last."""

PENDING = np.dtype(
    [
        ("words", "u8", (4,)),  # decision key (2), subject key, word that is hashed
        ("time", "i8"),  # T(o), ms
        ("action", "u8"),
        ("value", "f8"),
        ("done", "u8", (2,)),  # tasks that have had this outcome, a bit each
        ("link", "u4"),
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
    heads: I64
    """Sequence number of the newest record per chain."""


class Decisions(NamedTuple):
    """Both records of every decision. Whoever has left the second ring has closed, and no outcome asks for it."""

    known: Ring
    """`IDENTITY`, by decision key."""
    recent: Ring
    """`DECISION`, by subject."""


@njit(**SMALL)
def place(ring: Ring, seq: int) -> np.uint64:
    """Where record `seq` stands in ``ring.records``. Unsigned, as all indices here: signed ones may count from the
    end, and numba looks each time."""
    page = ring.pages[np.uint64((seq >> PAGE_BITS) & (ring.pages.shape[0] - 1))]
    return np.uint64((page << PAGE_BITS) | (seq & _PAGE_MASK))


@njit(**SMALL)
def identity_of(decisions: Decisions, seq: int) -> Any:
    """Who decision `seq` is."""
    return decisions.known.records[place(decisions.known, seq)]


@njit(**SMALL)
def recent_of(decisions: Decisions, seq: int) -> Any:
    """What outcomes may change of decision `seq`, which must not have left that ring."""
    return decisions.recent.records[place(decisions.recent, seq)]


@njit(**SMALL)
def bucket_of(ring: Ring, word: np.uint64) -> np.uint64:
    """Chain of a hashed word; words are hashes already, the product only spreads hand-made ones."""
    mask = ring.cursor[MASK]
    bucket = np.int64((word * _GOLDEN) >> _HASH_SHIFT) & mask
    return np.uint64(bucket if bucket < ring.cursor[BUCKETS] else bucket & (mask >> 1))


@njit(**SMALL)
def newest(ring: Ring, word: np.uint64) -> int:
    """First record of the word's chain (other words share it), or NONE."""
    seq = ring.heads[bucket_of(ring, word)]
    return seq if seq >= ring.cursor[HEAD] else NONE


@njit(**SMALL)
def older(ring: Ring, seq: int) -> int:
    """Next older record of the chain, or NONE."""
    steps = np.int64(ring.records[place(ring, seq)].link)
    found = seq - steps
    return int(found) if steps > 0 and found >= ring.cursor[HEAD] else NONE


@njit(**SMALL)
def relink(ring: Ring, word: np.uint64, before: int, target: int) -> None:
    """Let `target` (or NONE) follow record `before`; NONE as `before` makes it the first of the word's chain."""
    if before == NONE:
        ring.heads[bucket_of(ring, word)] = target
    else:
        ring.records[place(ring, before)].link = np.uint32(before - target if target != NONE else 0)


@njit(**SMALL)
def push(ring: Ring, hashed: int, seq: int, record: Any) -> None:
    """Make `record`, which is number `seq`, the first of its chain; `hashed` names the word that is hashed."""
    bucket = bucket_of(ring, record.words[hashed])
    head = ring.heads[bucket]
    record.link = np.uint32(seq - head if head >= ring.cursor[HEAD] and head != NONE else 0)
    ring.heads[bucket] = seq
    held = seq - ring.cursor[HEAD]
    for _ in range(2):
        if ring.cursor[BUCKETS] < held:
            _split(ring, hashed)


@njit(**KERNEL)
def _split(ring: Ring, hashed: int) -> None:
    """One step of linear hashing: spread the next chain over two. Keeps newest first."""
    cursor, heads = ring.cursor, ring.heads
    if cursor[BUCKETS] > cursor[MASK]:
        cursor[MASK] = 2 * cursor[MASK] + 1
    added = cursor[BUCKETS]
    divided = added & (cursor[MASK] >> 1)
    cursor[BUCKETS] += 1
    seq = heads[divided]
    if seq < cursor[HEAD]:
        seq = NONE
    heads[divided] = NONE
    heads[added] = NONE
    last_divided = last_added = np.int64(NONE)
    while seq != NONE:
        following = older(ring, seq)
        record = ring.records[place(ring, seq)]
        if bucket_of(ring, record.words[hashed]) == np.uint64(added):
            relink(ring, record.words[hashed], last_added, seq)
            last_added = seq
        else:
            relink(ring, record.words[hashed], last_divided, seq)
            last_divided = seq
        record.link = np.uint32(0)
        seq = following


@njit(**KERNEL)
def spread(ring: Ring, hashed: int, num_chains: int) -> None:
    """Split chains until there are `num_chains`; the caller has made room for their heads."""
    while ring.cursor[BUCKETS] < num_chains:
        _split(ring, hashed)


@njit(**KERNEL)
def touch(ring: Ring, words: npt.NDArray[np.uint64], first: int, deep: bool) -> int:
    """Read what looking up the next `TOUCH_ROWS` words will read: their misses then wait together, not in a row.

    `deep`: the newest records too, not only where they are. Returns a number that means nothing, so that the reads
    are not left out.
    """
    total = np.int64(0)
    stop = min(first + TOUCH_ROWS, words.shape[0])
    for row in range(first, stop):
        total += ring.heads[bucket_of(ring, words[row])]
    for row in range(first, stop if deep else first):
        seq = ring.heads[bucket_of(ring, words[row])]
        if seq >= ring.cursor[HEAD]:
            total += ring.records[place(ring, seq)].link
    return int(total)


class PagedRing:
    """Owns the arrays of one ring: makes room before a block, gives pages back after it."""

    def __init__(self, dtype: np.dtype[Any], hashed: int = 0) -> None:
        """`hashed`: which word of a record its chain goes by."""
        self._hashed = hashed
        self._free: list[int] = []
        self.num_pages = 0
        """Pages that have memory."""
        cursor = np.array([1, 1, CHAINS_MIN, CHAINS_MIN - 1], np.int64)
        heads = np.zeros(CHAINS_MIN, np.int64)
        self.arrays = Ring(np.zeros(PAGE_ROWS, dtype), np.zeros(8, np.int64), cursor, heads)
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
        chains = self.arrays.heads.itemsize * self.num_chains
        return self.num_pages * PAGE_ROWS * self.arrays.records.itemsize + chains + self.arrays.pages.nbytes

    def reserve(self, num_rows: int) -> None:
        """Make room for `num_rows` more records and for the chains they need."""
        head, tail = self.arrays.cursor[:2].tolist()
        last = tail + num_rows
        if last >> PAGE_BITS >= self._mapped:
            self._map(last >> PAGE_BITS)
        self._grow_heads(last - head + 1)

    @property
    def num_chains(self) -> int:
        """Chains of its table."""
        return int(self.arrays.cursor[BUCKETS])

    def widen(self, num_rows: int) -> None:
        """Chains for `num_rows` records at once, where so many are known to come.

        A table that grows with its records looks at each of them once more at every doubling, and each look is a cache
        miss: two fifths of what folding a decision costs (0.69 and 0.39 µs, in process).
        """
        num_chains = 1 << max(num_rows - 1, 1).bit_length()
        self._grow_heads(num_chains + 1)
        spread(self.arrays, self._hashed, num_chains)

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

    def _grow_heads(self, wanted: int) -> None:
        heads = self.arrays.heads
        if wanted > len(heads):
            grown = np.zeros(_size_for(wanted), np.int64)
            grown[: len(heads)] = heads
            self.arrays = self.arrays._replace(heads=grown)


def _size_for(wanted: int) -> int:
    """Length of an array that must hold `wanted` elements."""
    size = 1 << (wanted - 1).bit_length()
    return size if size <= _COPY_ROWS_MAX else max(size, _RESERVED_ROWS)
