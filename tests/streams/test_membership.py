"""A client that is out of its group is replaced if it never gets in: not while it waits for a broker that is gone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from confluent_kafka import Consumer

from streams.membership import ADMITTED_S_MAX, ASK_S, FOUND_S_MAX, Membership


class Situation:
    """A clock, a broker and a client, as a membership sees them."""

    def __init__(self) -> None:
        self.now_s, self.is_there, self.num_asked = 1_000.0, True, 0
        self.member = Membership(self.answers, lambda: self.now_s)

    def answers(self) -> bool:
        self.num_asked += 1
        return self.is_there

    def over(self, seconds: float) -> list[str]:
        """What is seen in so many seconds, looking once in each."""
        seen = set()
        for _ in range(round(seconds)):
            self.now_s += 1
            seen.add(self.member.look())
        return sorted(seen)


def statistics(state: str) -> str:
    """Of a client whose coordinator is in this state."""
    return json.dumps({"brokers": {}, "cgrp": {"state": state}})


@pytest.fixture
def situation() -> Situation:
    return Situation()


def test_of_a_member_that_has_its_share_nothing_is_asked(situation: Situation) -> None:
    situation.member.joined()
    assert situation.over(10 * ADMITTED_S_MAX) == [""]
    situation.member.lost()
    situation.member.joined()
    assert situation.over(10 * ADMITTED_S_MAX) == [""]
    assert situation.num_asked == 0


@pytest.mark.parametrize("state", ["", "query-coord", "wait-broker-transport"])
def test_a_client_that_finds_no_coordinator_beside_a_broker_that_answers_never_will(
    situation: Situation, state: str
) -> None:
    if state:
        situation.member.note(statistics(state))
    situation.member.joined()
    situation.member.lost()
    assert situation.over(ASK_S + FOUND_S_MAX - 1) == [""]
    (why,) = situation.over(1)
    assert f"for {ASK_S + FOUND_S_MAX:.0f} s" in why


def test_one_whose_coordinator_keeps_it_waiting_may_get_in_for_as_long_as_a_group_waits(situation: Situation) -> None:
    situation.member.note(statistics("up"))
    assert situation.over(ASK_S + ADMITTED_S_MAX - 1) == [""]
    assert situation.over(1) != [""]


def test_a_broker_that_is_gone_is_waited_for(situation: Situation) -> None:
    situation.is_there = False
    assert situation.over(3_600) == [""]
    assert situation.num_asked == 3_600 / ASK_S
    situation.is_there = True
    assert situation.over(ASK_S + FOUND_S_MAX - 1) == [""], "a client that was cut off has its time to connect"
    assert situation.over(1) != [""]


def test_a_broker_that_comes_and_goes_is_waited_for(situation: Situation) -> None:
    for _ in range(100):
        situation.is_there = not situation.is_there
        assert situation.over(ASK_S) == [""]


def test_a_real_client_says_in_which_state_its_coordinator_is() -> None:
    said: list[str] = []
    options: dict[str, Any] = {"group.id": "x", "statistics.interval.ms": 50, "stats_cb": said.append, "log_level": 0}
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", **options})
    end_s = time.monotonic() + 30
    while len(said) < 3 and time.monotonic() < end_s:
        consumer.poll(0.05)
    consumer.close()
    member = Membership(lambda: True)
    for each in said:
        member.note(each)
    assert len(said) >= 3
    assert not member._has_coordinator
