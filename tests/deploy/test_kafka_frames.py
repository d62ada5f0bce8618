"""Frames of Kafka's protocol as the torture proxy reads them, and which of them a fault means."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.torture.kafka_faults import Action, Direction, Fault, Rules, Seen
from deploy.torture.kafka_frames import (
    Api,
    FrameError,
    FrameSplitter,
    InFlight,
    Request,
    read_correlation,
    read_request,
)


def frame(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload


def request(api_key: int, correlation_id: int, client_id: str | None, rest: bytes = b"") -> bytes:
    name = None if client_id is None else client_id.encode()
    length = -1 if name is None else len(name)
    return frame(struct.pack(">hhih", api_key, 9, correlation_id, length) + (name or b"") + rest)


@given(st.lists(st.binary(max_size=40), max_size=12), st.lists(st.integers(0, 400), max_size=12), st.binary(max_size=3))
def test_any_split_of_bytes_into_reads_gives_the_same_frames(
    payloads: list[bytes], cuts: list[int], beginning: bytes
) -> None:
    stream = b"".join(map(frame, payloads)) + beginning
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = FrameSplitter()

    found = [each for a, b in pairwise(edges) for each in splitter.feed(stream[a:b])]

    assert found == [frame(each) for each in payloads]
    assert splitter.held_bytes == len(beginning)


@pytest.mark.parametrize("size", [-1, 129, 0x16030100])
def test_frames_before_an_impossible_size_are_still_given_and_then_it_is_named(size: int) -> None:
    splitter = FrameSplitter(size_bytes_max=128)
    frames = splitter.feed(frame(b"good") + struct.pack(">i", size) + b"x")

    assert next(frames) == frame(b"good")
    with pytest.raises(FrameError, match=f"a frame of {size} bytes"):
        next(frames)


@given(st.integers(0, 90), st.integers(-(2**31), 2**31 - 1), st.none() | st.text(max_size=20), st.binary(max_size=20))
def test_a_request_shows_api_correlation_and_client(
    api_key: int, correlation_id: int, client_id: str | None, rest: bytes
) -> None:
    assert read_request(request(api_key, correlation_id, client_id, rest)) == Request(
        api_key, 9, correlation_id, client_id or ""
    )
    assert read_correlation(frame(struct.pack(">i", correlation_id) + rest)) == correlation_id


def test_a_header_cut_short_is_refused() -> None:
    whole = request(0, 1, "client")
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            read_request(whole[:length])
    with pytest.raises(FrameError):
        read_correlation(frame(b"abc"))


def test_an_answer_settles_the_older_requests_that_never_get_one() -> None:
    waiting = InFlight()
    for correlation_id in (1, 2, 3):
        waiting.sent(Request(Api.PRODUCE, 9, correlation_id, "c"))

    assert waiting.answered(7) is None
    answered = waiting.answered(2)

    assert answered is not None
    assert (answered.correlation_id, len(waiting)) == (2, 1)
    assert waiting.answered(1) is None


def test_a_fault_means_the_frames_of_its_client_api_broker_and_direction_and_no_other() -> None:
    fault = Fault(Action.HANG, ("learn",), frozenset({Api.PRODUCE}), frozenset({1}), Direction.REQUESTS)
    meant = Seen(1, "learn-7", Direction.REQUESTS, Api.PRODUCE)
    assert fault.selects(meant)

    others = [
        Seen(0, "learn-7", Direction.REQUESTS, Api.PRODUCE),
        Seen(1, "join", Direction.REQUESTS, Api.PRODUCE),
        Seen(1, None, Direction.REQUESTS, Api.PRODUCE),
        Seen(1, "learn-7", Direction.RESPONSES, Api.PRODUCE),
        Seen(1, "learn-7", Direction.REQUESTS, Api.FETCH),
        Seen(1, "learn-7", Direction.REQUESTS),
    ]

    assert not any(fault.selects(each) for each in others)
    assert all(Fault(Action.HANG).selects(each) for each in [meant, *others])


def test_a_cut_without_apis_means_whole_connections_and_a_drop_only_responses() -> None:
    assert Fault(Action.CUT, direction=Direction.REQUESTS).selects(Seen(0, None, Direction.BOTH))
    assert not Fault(Action.CUT, apis=frozenset({0})).selects(Seen(0, "c", Direction.BOTH))
    assert not Fault(Action.DROP_RESPONSE).selects(Seen(0, "c", Direction.REQUESTS, 0))
    assert Fault(Action.DROP_RESPONSE).selects(Seen(0, "c", Direction.RESPONSES, 0))


def test_a_drop_bites_once_unless_told_otherwise_and_a_healed_fault_never() -> None:
    rules, seen = Rules(), Seen(0, "c", Direction.RESPONSES, Api.PRODUCE)
    once, twice = rules.add(Fault(Action.DROP_RESPONSE)), rules.add(Fault(Action.DROP_RESPONSE, num_bites_max=2))
    bitten = []
    while (by := rules.breaking(seen)) is not None:
        by.num_bites += 1
        bitten.append(by)
    assert bitten == [once, twice, twice]

    hung = rules.add(Fault(Action.HANG))
    assert rules.breaking(seen) is hung
    rules.remove(hung)
    rules.remove(hung)
    assert rules.breaking(seen) is None


def test_delays_lie_in_their_range_add_up_and_repeat_with_their_seed() -> None:
    def drawn() -> list[float]:
        rules, seen = Rules(), Seen(0, "c", Direction.REQUESTS, Api.FETCH)
        rules.add(Fault(Action.DELAY, delay_ms=(5, 10), seed=3))
        rules.add(Fault(Action.DELAY, delay_ms=(100, 100)))
        return [sum(wait_ms for _, wait_ms in rules.delaying(seen)) for _ in range(20)]

    first = drawn()

    assert all(105 <= each <= 110 for each in first)
    assert len(set(first)) > 10
    assert drawn() == first


@pytest.mark.parametrize(
    "wrong", [{"delay_ms": (2, 1)}, {"delay_ms": (-1, 1)}, {"num_bites_max": 0}, {"action": Action.CUT}]
)
def test_a_fault_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|belongs to"):
        Fault(**{"action": Action.DELAY, "delay_ms": (1, 2), **wrong})  # type: ignore[arg-type]
