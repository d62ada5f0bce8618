"""The end of what cannot be read is found in few tries, wherever it is."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from streams.unreadable import first_behind


@given(st.integers(0, 2**40), st.integers(1, 5_000_000), st.integers(0, 5_000_000))
def test_the_first_offset_behind_is_found(first: int, length: int, num_behind: int) -> None:
    end, tries = first + length + num_behind, []

    def is_inside(offset: int) -> bool:
        assert first < offset < end, "only what may hold a record is tried"
        tries.append(offset)
        return offset < first + length

    assert first_behind(is_inside, first, end) == first + length
    assert len(tries) <= 2 * math.ceil(math.log2(length + 1)) + 1


def test_a_batch_of_one_record_takes_one_try() -> None:
    tries: list[int] = []
    assert first_behind(lambda offset: tries.append(offset) or False, 7, 100) == 8  # type: ignore[func-returns-value]
    assert tries == [8]
