"""An outage is said once, not a thousand times."""

from __future__ import annotations

import logging

from schemas.outage import Outage
from streams.quiet import SayOnce


def record(name: str, text: str, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, None, None)


def test_the_messages_of_an_outage_are_one_line_whatever_client_says_them() -> None:
    once = SayOnce(Outage())
    first = record("aiokafka", "Unable connect to node with id 1: [Errno 111] Connection refused")
    assert once.filter(first)
    assert first.getMessage().startswith("waiting for the broker, nothing is lost: Unable connect")
    assert not once.filter(
        record("headrace.kafka", "FAIL [thrd:bootstrap]: Connect to ipv4 failed: Connection refused")
    )
    assert not once.filter(record("aiokafka.consumer.group_coordinator", "Marking the coordinator dead (node 1)"))


def test_what_an_outage_leaves_behind_in_the_group_is_part_of_it_and_else_is_said() -> None:
    outage = Outage()
    once = SayOnce(outage)
    left = "Heartbeat failed: local member_id was not recognized; resetting and re-joining group"
    assert once.filter(record("aiokafka.consumer.group_coordinator", left))
    outage.begins()
    commit = "OffsetCommit failed for group shop.join due to group error ([Error 25] UnknownMemberIdError), will rejoin"
    assert not once.filter(record("aiokafka.consumer.group_coordinator", commit))


def test_a_repetition_is_let_through_again_later_with_how_many_were_not() -> None:
    once = SayOnce(Outage(), repeat_s=0)
    once._repeat_s = 60
    assert once.filter(record("aiokafka", "Something odd at offset 17"))
    assert not once.filter(record("aiokafka", "Something odd at offset 18"))
    once._repeat_s = 0
    again = record("aiokafka", "Something odd at offset 19")
    assert once.filter(again)
    assert again.getMessage() == "Something odd at offset 19 (and 1 like this)"


def test_our_own_messages_and_those_below_a_warning_are_never_held_back() -> None:
    once = SayOnce(Outage())
    assert all(once.filter(record("streams.agents_join", "restarts")) for _ in range(3))
    assert all(once.filter(record("aiokafka", "connected", logging.INFO)) for _ in range(3))
