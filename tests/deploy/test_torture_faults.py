"""When a fault counts as recovered, on a stage of made-up processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.torture.faults import Torturer
from deploy.torture.history import History
from deploy.torture.plan import EVERYBODY, LEARNER, PROCESSES, Kind, Planned


class Clock(History):
    """Whose time is set."""

    now = 0.0

    @property
    def now_s(self) -> float:
        return self.now


class Process:
    """A member that is up when the test says so."""

    def __init__(self) -> None:
        self.is_ready = False

    def kill(self) -> bool:
        self.is_ready = False
        return True

    def start(self) -> None:
        """Later, by the test."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Any]:
    proxy = SimpleNamespace(inject=lambda fault: SimpleNamespace(num_bites=1), heal=lambda injected: None)
    history = Clock(tmp_path / "history.jsonl", lambda line: None)
    members = {name: Process() for name in PROCESSES}
    yield SimpleNamespace(history=history, members=members, proxy=proxy, keep=lambda: None)
    history.close()


def goes_on(torturer: Torturer, now_s: float) -> list[float | None]:
    """When each fault had recovered, `now_s` after the beginning."""
    torturer.history.now = now_s  # type: ignore[attr-defined]  # a Clock
    torturer.step()
    return [hit.recovered_s for hit in torturer.history.hits]


def test_everybody_has_recovered_when_each_has_not_when_all_are_up_at_once(stage: Any) -> None:
    torturer = Torturer(stage, [Planned(0, 0.0, Kind.DELAY, EVERYBODY), Planned(1, 2.0, Kind.KILL, LEARNER)])
    assert goes_on(torturer, 0.0) == [None]
    stage.members[LEARNER].is_ready = True
    assert goes_on(torturer, 1.0) == [None]
    assert goes_on(torturer, 2.0) == [None, None]  # the learner was up, and is killed by the other one
    for name in PROCESSES:
        stage.members[name].is_ready = name != LEARNER
    assert goes_on(torturer, 3.0) == [3.0, None]
    stage.members[LEARNER].is_ready = True
    assert goes_on(torturer, 4.0) == [3.0, 4.0]


def test_who_is_down_for_no_other_reason_is_waited_for(stage: Any) -> None:
    torturer = Torturer(stage, [Planned(0, 0.0, Kind.DELAY, EVERYBODY), Planned(1, 2.0, Kind.KILL, LEARNER)])
    for name in PROCESSES:
        stage.members[name].is_ready = name != LEARNER
    assert goes_on(torturer, 1.0) == [None]  # not up since, and under no fault of its own
    stage.members[LEARNER].is_ready = True
    stage.members[PROCESSES[0]].is_ready = False
    assert goes_on(torturer, 1.5) == [None]  # up since, and down again by itself
    assert goes_on(torturer, 2.0) == [None, None]
    assert goes_on(torturer, 3.0) == [None, None]


def test_one_that_was_cut_off_before_it_was_up_is_waited_for(stage: Any) -> None:
    cut = Planned(1, 0.5, Kind.CUT, LEARNER, lasts_s=1000.0)
    torturer = Torturer(stage, [Planned(0, 0.0, Kind.DELAY, EVERYBODY), cut])
    for name in PROCESSES:
        stage.members[name].is_ready = name != LEARNER
    assert goes_on(torturer, 0.4) == [None]
    assert goes_on(torturer, 0.6) == [None, None]
    stage.members[LEARNER].is_ready = True
    assert goes_on(torturer, 0.7) == [0.7, None]
