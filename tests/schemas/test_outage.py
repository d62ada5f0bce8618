"""An outage is said once when it begins and once when it is over, whoever notices it."""

from __future__ import annotations

import logging

import pytest

from schemas.outage import CALM_S, REPEAT_S, Outage


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_all_complaints_of_a_minute_are_one_line_and_its_end_is_another(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    outage = Outage(clock)
    with caplog.at_level(logging.INFO):
        for second in range(60):
            outage.say("client %d misses it", second % 3)
            outage.look()
            clock.now_s += 1
        outage.answered()
        clock.now_s += CALM_S
        outage.look()
        outage.look()
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for the broker, nothing is lost: client 0 misses it",
        "the broker answers again after 60 s",
    ]
    assert not outage.is_on


def test_one_outage_after_another_is_said_again() -> None:
    clock = Clock()
    outage = Outage(clock)
    assert outage.begins()
    outage.answered()
    clock.now_s += CALM_S
    assert outage.ended() == 0
    assert outage.begins()


def test_where_some_are_answered_and_others_complain_it_is_one_outage() -> None:
    clock = Clock()
    outage = Outage(clock)
    assert outage.begins()
    for _ in range(int(REPEAT_S) - 1):
        clock.now_s += 1
        outage.answered()
        assert outage.ended() is None
        assert not outage.begins()
    clock.now_s += CALM_S
    assert outage.ended() is None, "nobody was answered since the last complaint"
    outage.answered()
    assert outage.ended() is None
    clock.now_s += CALM_S
    assert outage.ended() == REPEAT_S - 1 + CALM_S


def test_what_was_asked_in_vain_and_fails_when_the_broker_is_back_is_the_same_outage() -> None:
    """Found by CI: a request timed out 0.2 s after the first answer of a broker that had been silent for 23 s."""
    clock = Clock()
    outage = Outage(clock)
    assert outage.begins()
    clock.now_s += 23
    outage.answered()
    assert outage.ended() is None
    clock.now_s += 0.2
    assert not outage.begins()
    outage.answered()
    clock.now_s += CALM_S
    assert outage.ended() == pytest.approx(23.2)


def test_an_outage_that_lasts_is_said_again_now_and_then() -> None:
    clock = Clock()
    outage = Outage(clock)
    said = 0
    for _ in range(int(2.5 * REPEAT_S)):
        said += outage.begins()
        clock.now_s += 1
    assert said == 3


def test_answers_without_an_outage_are_no_news() -> None:
    outage = Outage(Clock())
    outage.answered()
    assert outage.ended() is None
