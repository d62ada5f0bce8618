"""What `headrace ask` and `headrace tell` make of what they read. No broker here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deploy import exchange, reading
from schemas.codec import encode
from schemas.errors import UserError
from schemas.records import DeadLetter, Decision
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings, load_settings

REGISTRY = FileRegistry()
SENT = reading.Entry("n.requests", 0, 7, 1_000, b"", b"")


def entry(name: str, record: Any) -> reading.Entry:
    return reading.Entry(f"n.{name}", 0, 0, 1_010, b"", encode(record, REGISTRY))


def answer(reason: str) -> reading.Entry:
    return entry("decisions", Decision("d", "support", "s", ["a"], [1.0], 0, reason))


LETTER = entry("dead-letters", DeadLetter("n.requests", 0, 7, "wrong-type", "context.price is text", b"", b"", 1_000))
OF_ANOTHER = entry("dead-letters", DeadLetter("n.requests", 0, 8, "bad-json", "not ours", b"", b"", 1_000))


class Tail:
    """Reads what it is given, then nothing more."""

    entries_given: tuple[reading.Entry, ...]

    def __init__(self, *_: Any) -> None:
        self.num_hurried = 0

    def entries(self, _timeout_s: float) -> Iterator[reading.Entry]:
        yield from Tail.entries_given

    def hurry(self, _timeout_s: float) -> None:
        self.num_hurried += 1

    def close(self) -> None:
        pass


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> CommonSettings:
    monkeypatch.setattr(exchange, "Tail", Tail)
    monkeypatch.setattr(exchange, "_send", lambda *_: SENT)
    return load_settings(CommonSettings, namespace="n")


def asked(settings: CommonSettings, *entries: reading.Entry) -> dict[str, Any]:
    Tail.entries_given = entries
    return exchange.ask(settings, {"task": "support", "decision_id": "d", "context": {}}, 1.0)


def test_a_refused_request_has_its_reason_whichever_is_read_first(settings: CommonSettings) -> None:
    for entries in ((answer("invalid"), OF_ANOTHER, LETTER), (OF_ANOTHER, LETTER, answer("invalid"))):
        found = asked(settings, *entries)
        assert (found["reason"], found["refused"]) == ("invalid", "wrong-type: context.price is text")


def test_an_answer_that_is_no_refusal_waits_for_nothing(settings: CommonSettings) -> None:
    assert asked(settings, answer("policy"), answer("invalid"))["refused"] is None


def test_a_refusal_whose_dead_letter_does_not_come_says_so(settings: CommonSettings) -> None:
    assert "its dead letter has not come" in asked(settings, answer("unknown-task"))["refused"]


def test_a_dead_letter_without_an_answer_is_the_reason(settings: CommonSettings) -> None:
    with pytest.raises(UserError, match=r"refused \(wrong-type\): context.price is text"):
        asked(settings, LETTER)
