"""A client that is out of its group is replaced if it never gets in: not while it waits for a broker that is gone."""

from __future__ import annotations

import json

import pytest

from streams.membership import ADMITTED_S_MAX, ASK_S, FOUND_S_LONGEST, FOUND_S_MAX, Membership


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


def statistics(state: str, join_state: str = "init") -> str:
    """Of a client whose coordinator is in this state, and that is so far on its way into the group."""
    return json.dumps({"brokers": {}, "cgrp": {"state": state, "join_state": join_state}})


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


def test_one_that_was_never_told_that_it_is_out_is_noticed_too(situation: Situation) -> None:
    """A worker without partitions loses nothing, and one in a rebalance has no session that could end."""
    situation.member.joined()
    situation.member.note(statistics("up", "steady"))
    assert situation.over(3_600) == [""]
    situation.member.note(statistics("query-coord", "wait-sync"))
    assert situation.over(ASK_S + FOUND_S_MAX - 1) == [""]
    assert situation.over(1) != [""]


def test_one_that_is_steady_again_is_in(situation: Situation) -> None:
    situation.member.note(statistics("up", "wait-join"))
    assert situation.over(ADMITTED_S_MAX) == [""]
    situation.member.note(statistics("up", "steady"))
    assert situation.over(3_600) == [""]


def test_a_coordinator_that_goes_while_the_group_waits_has_its_time_to_come_back(situation: Situation) -> None:
    situation.member.note(statistics("up", "wait-join"))
    assert situation.over(300) == [""]
    situation.member.note(statistics("query-coord", "wait-join"))
    assert situation.over(FOUND_S_MAX) == [""]
    situation.member.note(statistics("up", "wait-join"))
    assert situation.over(300) == [""]


def test_whoever_comes_after_a_replaced_client_has_twice_the_time(situation: Situation) -> None:
    patience_s = FOUND_S_MAX
    for _ in range(8):
        assert situation.over(ASK_S + patience_s - 1) == [""]
        assert situation.over(1) != [""]
        situation.member.replaced()
        patience_s = min(2 * patience_s, FOUND_S_LONGEST)
    assert patience_s == FOUND_S_LONGEST
    situation.member.joined()
    situation.member.lost()
    assert situation.over(ASK_S + FOUND_S_MAX - 1) == [""]
    assert situation.over(1) != [""]
