"""What can still be read of an unreadable request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Candidate
from schemas.registry import FileRegistry
from streams.salvage import salvage

REGISTRY = FileRegistry()


def test_a_nan_leaves_who_asks_what_and_the_baseline() -> None:
    payload = b"""{"decision_id": "d", "task": "t", "subject": "s", "context": {"x": NaN}, "baseline": 1,
                   "candidates": [{"action_id": "a", "features": {"y": Infinity}}, {"action_id": "b"}]}"""
    request = salvage(payload, REGISTRY)
    assert request is not None
    assert (request.decision_id, request.task, request.subject, request.baseline) == ("d", "t", "s", 1)
    assert request.candidates == [Candidate("a"), Candidate("b")]


def test_one_candidate_without_an_id_leaves_none() -> None:
    payload = b'{"decision_id": "d", "task": "t", "subject": "s", "candidates": [{"action_id": "a"}, {}]}'
    request = salvage(payload, REGISTRY)
    assert request is not None
    assert request.candidates is None


def test_without_a_subject_nobody_can_be_answered() -> None:
    assert salvage(b'{"decision_id": "d", "task": "t"}', REGISTRY) is None
    assert salvage(b'{"decision_id": "d", "task": "t", "subject": 7}', REGISTRY) is None
    assert salvage(b'{"decision_id": "", "task": "t", "subject": "s"}', REGISTRY) is None
    assert salvage(b'{"decision_id": "%s", "task": "t", "subject": "s"}' % (b"d" * 65), REGISTRY) is None
    assert salvage(b'{"decision_id": "\\ud800", "task": "t", "subject": "s"}', REGISTRY) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(payload: bytes) -> None:
    salvage(payload, REGISTRY)
    salvage(b"{" + payload, REGISTRY)
    salvage(b"\0\0\0\0\x01" + payload, REGISTRY)


def test_deep_nesting_does_not_raise() -> None:
    assert salvage(b'{"a":' * 20_000, REGISTRY) is None
