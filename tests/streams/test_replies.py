"""What leaves the decide role, when something can never be written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from schemas.records import Decision, Reason
from schemas.registry import FileRegistry
from schemas.settings import load_settings
from streams import replies
from streams.decider_settings import DeciderSettings
from streams.journal import WriteError
from streams.offsets import Offsets
from streams.replies import Place, Replies

NOBODY = Decision("d", "task", "subject", ["a"], [1.0], 0, Reason.NO_SNAPSHOT.label, 0)


class Output:
    """Takes what it is given; nothing is ever acked, and it fails when told to."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.told: list[Any] = []

    def __len__(self) -> int:
        return len(self.told)

    def send(self, *arguments: Any) -> None:
        self.told.append(arguments[4])


def test_who_waits_until_all_is_delivered_does_not_wait_for_what_can_never_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that is given partitions waits for its answers before it looks for them in the journal: not for ever."""
    monkeypatch.setattr(replies, "Output", Output)
    settings = load_settings(DeciderSettings, state_dir=tmp_path)
    nothing: Any = None
    answers = Replies(settings, FileRegistry(), 4, Offsets(), lambda _: nothing, lambda _: None)
    answers.unjournaled(Place(0, 0, 0, True), NOBODY)
    began_s = time.monotonic()
    assert answers.flush(0.05) == 1
    assert time.monotonic() - began_s >= 0.05
    output: Any = answers._answers
    output.told[0](WriteError("cannot write", fatal=True), -1)
    assert answers.failure is not None
    assert answers.flush(60.0) == 0
