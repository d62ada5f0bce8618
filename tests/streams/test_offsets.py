"""Committable offsets: never past an unfinished request, whatever the order of finishing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.offsets import Offsets


@given(st.lists(st.integers(0, 99), unique=True, min_size=1), st.data())
def test_what_is_taken_is_always_the_end_of_the_contiguous_run(offsets: list[int], data: st.DataObject) -> None:
    read = sorted(offsets)
    book = Offsets()
    book.own([0])
    for offset in read:
        book.begin(0, offset)
    committed = -1
    finished: set[int] = set()
    for offset in data.draw(st.permutations(read)):
        book.end(0, offset)
        finished.add(offset)
        committed = book.take().get(0, committed)
        unfinished = [each for each in read if each not in finished]
        assert committed <= min(unfinished, default=read[-1] + 1)
        assert book.num_open == len(unfinished)
    assert committed == read[-1] + 1
    assert book.is_idle([0])


def test_finishing_twice_counts_once() -> None:
    book = Offsets()
    book.own([0])
    book.begin(0, 1)
    book.begin(0, 2)
    book.end(0, 2)
    book.end(0, 2)
    assert book.num_open == 1
    book.end(0, 1)
    book.end(0, 1)
    assert (book.num_open, book.take()) == (0, {0: 3})


def test_a_partition_that_is_not_ours_is_ignored() -> None:
    book = Offsets()
    book.own([0, 1])
    book.begin(0, 5)
    book.begin(1, 5)
    book.disown([1])
    book.end(0, 5)
    book.end(1, 5)
    book.begin(1, 6)
    assert book.take() == {0: 6}
    assert book.num_open == 0
    assert book.is_idle([0, 1])


def test_a_commit_that_failed_is_taken_again_and_never_one_from_before_the_partition_changed_hands() -> None:
    book = Offsets()
    book.own([0])
    for offset in (5, 6, 7):
        book.begin(0, offset)
    book.end(0, 5)
    assert book.take() == {0: 6}
    book.give_back(0, 6)
    assert book.take() == {0: 6}
    book.end(0, 6)
    book.give_back(0, 6)  # the failure is heard of after more has been finished
    assert book.take() == {0: 7}
    book.disown([0])
    book.give_back(0, 7)
    assert book.take() == {}
    book.own([0])
    book.give_back(0, 7)  # nothing is known of where its new life begins
    book.begin(0, 9)
    book.give_back(0, 7)
    assert book.take() == {}


def test_what_is_passed_over_is_ready_when_no_request_before_it_is_on_its_way() -> None:
    book = Offsets()
    book.own([0])
    book.pass_over(0, 3)  # an aborted transaction at its beginning
    assert book.take() == {0: 3}
    book.give_back(0, 3)
    assert book.take() == {0: 3}
    book.begin(0, 3)
    book.pass_over(0, 6)
    assert book.take() == {}
    book.end(0, 3)
    assert book.take() == {0: 4}
    book.pass_over(0, 6)
    assert book.take() == {0: 6}
    for offset in (4, 6):
        book.pass_over(0, offset)
        assert book.take() == {}
    book.pass_over(1, 6)  # not ours
    assert book.take() == {}
