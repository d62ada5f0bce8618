"""Rings and their chains against a plain list, whatever is added, looked up and let go."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.join_index import (
    NONE,
    OUTCOME,
    PAGE_ROWS,
    TAIL,
    PagedRing,
    newest,
    older,
    place,
    push,
    relink,
)


def add(ring: PagedRing, word: int, time: int = 0) -> int:
    """Append a record with this hashed word; returns its sequence number."""
    ring.reserve(1)
    seq = ring.tail
    record = ring.arrays.records[place(ring.arrays, seq)]
    record["words"][0], record["time"] = word, time
    ring.arrays.cursor[TAIL] += 1
    push(ring.arrays, 0, seq, record)
    return seq


def found(ring: PagedRing, word: int) -> list[int]:
    """Sequence numbers of all records with this word, newest first."""
    result, seq = [], newest(ring.arrays, np.uint64(word))
    while seq != NONE:
        if int(ring.arrays.records[place(ring.arrays, seq)]["words"][0]) == word:
            result.append(int(seq))
        seq = older(ring.arrays, seq)
    return result


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=300), st.integers(0, 2**32))
def test_a_chain_holds_every_record_of_its_word_that_has_not_left_the_ring(
    steps: list[tuple[int, int]], salt: int
) -> None:
    ring = PagedRing(OUTCOME)
    held: list[tuple[int, int]] = []
    for number, (word, leaving) in enumerate(steps):
        held.append((add(ring, word * 7919 + salt), word * 7919 + salt))
        if leaving == 3 and len(held) > 2:
            held = held[number % len(held) :]
            ring.evict(held[0][0])
    for word in {word for _, word in held}:
        assert found(ring, word) == [seq for seq, each in reversed(held) if each == word]
    assert found(ring, 2**63) == []


def test_thousands_of_records_are_found_while_the_table_grows_and_old_ones_leave() -> None:
    ring = PagedRing(OUTCOME)
    kept = 5_000
    for number in range(3 * kept):
        add(ring, number)
        if len(ring) > kept:
            ring.evict(ring.tail - kept)
    assert all(found(ring, number) == [number + 1] for number in range(2 * kept, 3 * kept, 7))
    assert all(found(ring, number) == [] for number in range(0, 2 * kept, 7))


def test_a_table_made_at_once_holds_what_it_held_and_grows_no_more_until_it_is_full() -> None:
    ring, wide = PagedRing(OUTCOME), 3_000
    for number in range(700):
        add(ring, number)
    ring.evict(101)
    ring.widen(wide)
    num_chains = ring.num_chains
    assert num_chains >= wide
    for number in range(700, wide):
        add(ring, number)
    assert ring.num_chains == num_chains
    for number in range(wide, 2 * num_chains):
        add(ring, number)
    assert ring.num_chains > num_chains
    assert all(found(ring, number) == [] for number in range(100))
    assert all(found(ring, number) == [number + 1] for number in range(100, 2 * num_chains, 3))


def test_pages_that_were_left_are_the_next_to_be_written() -> None:
    ring = PagedRing(OUTCOME)
    for number in range(20 * PAGE_ROWS):
        add(ring, number)
        if len(ring) > PAGE_ROWS:
            ring.evict(ring.tail - PAGE_ROWS)
    assert ring.num_pages <= 3
    assert len(ring.arrays.records) <= 4 * PAGE_ROWS


def test_a_record_can_be_taken_out_of_its_chain() -> None:
    ring = PagedRing(OUTCOME)
    first, second, third = (add(ring, 5) for _ in range(3))
    relink(ring.arrays, np.uint64(5), third, first)
    assert found(ring, 5) == [third, first]
    relink(ring.arrays, np.uint64(5), NONE, first)
    assert found(ring, 5) == [first]
    relink(ring.arrays, np.uint64(5), NONE, NONE)
    assert found(ring, 5) == []
    assert second == first + 1
