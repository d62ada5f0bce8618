"""What `headrace torture` plants: the same for the same seed, and wrong for exactly the reason it says."""

from __future__ import annotations

import itertools
import json

import pytest

from deploy.torture import corruption
from deploy.torture.plan import (
    BROKER,
    COMPONENTS,
    EVERYBODY,
    LEARNER,
    PROCESSES,
    SESSION_S,
    STORMER,
    WEIGHTS,
    Kind,
    plan,
    plan_kills,
    points_of,
)
from schemas.codec import BadRecord, decode_outcome, decode_request, encode
from schemas.fault_points import POINTS, parse
from schemas.registry import FileRegistry

REGISTRY = FileRegistry()
GOOD = {
    "requests": {
        "decision_id": "d",
        "task": "route",
        "subject": "customer-1",
        "context": {"price": 3.0, "segment": "new", "note": "a new customer"},
    },
    "outcomes": {"outcome_id": "o", "decision_id": "d", "subject": "customer-1", "type": "resolved", "value": 1.0},
}
DECODERS = {"requests": decode_request, "outcomes": decode_outcome}
ALL = [(topic, kind) for topic, kinds in corruption.KINDS.items() for kind in kinds.values()]


@pytest.mark.parametrize(("topic", "kind"), ALL, ids=lambda each: getattr(each, "name", each))
def test_a_spoilt_message_is_refused_for_the_reason_that_it_was_spoilt_for(topic: str, kind: corruption.Kind) -> None:
    decode, plain = DECODERS[topic], json.dumps(GOOD[topic]).encode()
    spoilt = kind.make(GOOD[topic], encode(decode(plain, REGISTRY), REGISTRY))
    if kind.reason == "unknown-task":  # nothing is wrong with the message: nobody has applied the task
        assert decode(spoilt, REGISTRY).task == "no-such-task"
        return
    with pytest.raises(BadRecord) as caught:
        decode(spoilt, REGISTRY)
    assert caught.value.reason == kind.reason


def test_a_spoilt_message_is_known_by_its_key() -> None:
    for topic, kind in ALL:
        assert corruption.kind_of(topic, corruption.key_of(kind)) is kind
    assert corruption.kind_of("requests", b"customer-1") is None
    assert min(len(kinds) for kinds in corruption.KINDS.values()) >= 12


def test_the_same_seed_is_the_same_torture() -> None:
    disks = (LEARNER, f"{BROKER}-1")
    assert plan(7, 600, (1, 5), 1, disks) == plan(7, 600, (1, 5), 1, disks)
    assert plan(7, 600, (1, 5), 1, disks) != plan(8, 600, (1, 5), 1, disks)


@pytest.mark.parametrize("brokers", [1, 3])
def test_every_fault_comes_in_time_at_a_target_that_exists(brokers: int) -> None:
    nodes = [f"{BROKER}-{number + 1}" for number in range(brokers)]
    faults = plan(1, 3_600, (1, 5), brokers, (LEARNER, nodes[0]))
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(faults)]
    assert min(gaps) >= 1
    assert max(gaps) <= 5
    assert {fault.kind for fault in faults} == set(WEIGHTS)
    assert {fault.target for fault in faults} == {EVERYBODY, STORMER, *PROCESSES, *nodes}
    for fault in faults:
        assert bool(fault.point) == (fault.kind is Kind.AIMED_KILL)
        if fault.point:
            assert parse(fault.point).keys() <= set(points_of(fault.component))
        if fault.kind is Kind.ZOMBIE:
            assert fault.lasts_s > SESSION_S


def test_no_disk_is_filled_that_cannot_be() -> None:
    assert not [each for each in plan(1, 3_600, (1, 5), 1) if each.kind is Kind.FULL_DISK]


def test_kills_alone_hit_every_component_and_every_point() -> None:
    faults = plan_kills(1, 3_600, (0.5, 1.0), 1, COMPONENTS)
    assert {fault.kind for fault in faults} == {Kind.KILL, Kind.AIMED_KILL}
    assert {fault.component for fault in faults} == set(COMPONENTS)
    assert {fault.point.partition("=")[0] for fault in faults if fault.point} == set(POINTS)
    assert {fault.component for fault in plan_kills(1, 60, (0.5, 1.0), 1, (BROKER,))} == {BROKER}


def test_every_point_of_the_code_belongs_to_a_process() -> None:
    aimed = {point for component in ("join", "decide", LEARNER) for point in points_of(component)}
    assert aimed == set(POINTS)
    assert len(aimed) >= 20
