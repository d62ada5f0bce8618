"""Records that wait for the schema registry."""

from __future__ import annotations

import logging

import pytest

from schemas.registry import RegistryUnavailable
from schemas.undecoded import Undecoded


class Reader:
    """Takes every number but those that need an unknown schema while the registry is away."""

    def __init__(self, *unknown: int) -> None:
        self.unknown = set(unknown)
        self.taken: list[int] = []
        self.records = Undecoded("a log", self._take)

    def _take(self, number: int) -> None:
        if number in self.unknown:
            raise RegistryUnavailable("the schema registry did not answer", "check that it runs")
        self.taken.append(number)


def test_what_stands_behind_a_record_that_waits_is_not_taken_before_it() -> None:
    reader = Reader(3)
    assert reader.records.offer([1, 2, 3, 4]) == 2
    assert reader.records.offer([5]) == 0
    assert (reader.taken, len(reader.records)) == ([1, 2], 3)
    assert reader.records.why is not None
    reader.unknown.clear()
    assert reader.records.offer([6]) == 4
    assert (reader.taken, len(reader.records), reader.records.why) == ([1, 2, 3, 4, 5, 6], 0, None)


def test_a_second_wait_begins_where_the_first_ended() -> None:
    reader = Reader(1, 3)
    reader.records.offer([1, 2, 3, 4])
    reader.unknown = {3}
    assert reader.records.offer() == 2
    assert (reader.taken, len(reader.records)) == ([1, 2], 2)


def test_a_wait_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(1)
    with caplog.at_level(logging.INFO):
        for number in range(1, 50):
            reader.records.offer([number])
        reader.unknown.clear()
        reader.records.offer()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "check that it runs" in caplog.text


def test_a_record_that_fails_otherwise_is_not_offered_again() -> None:
    def take(number: int) -> None:
        taken.append(number)
        raise ZeroDivisionError

    taken: list[int] = []
    records = Undecoded("a log", take)
    with pytest.raises(ZeroDivisionError):
        records.offer([1, 2])
    with pytest.raises(ZeroDivisionError):
        records.offer()
    assert taken == [1, 2]
