"""Ending the processes under torture: whose fault an exit code is."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import probes
from deploy.torture.history import History, Hit
from deploy.torture.members import Member
from deploy.torture.plan import LEARNER, Kind, Planned
from schemas import fault_points

OBEDIENT = f"""
import os, signal, sys, time
def stop(*_):
    if os.environ.get({fault_points.VARIABLE!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "history.jsonl", print)
    yield opened
    opened.close()


def _started(history: History, program: str, hit: Hit | None) -> Member:
    member = Member(LEARNER, [], {}, 1, history.file.parent, history)
    member._command = [sys.executable, "-c", program]
    member.start(hit)
    while "up" not in member.log.read_text():
        time.sleep(0.02)
    return member


def _hit() -> Hit:
    return Hit(Planned(1, 0.0, Kind.AIMED_KILL, LEARNER, point="checkpoint.before-rename=7"), 0.0)


def test_one_that_reaches_its_point_while_it_ends_is_brought_back_and_ends_in_order(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = _hit()
    member = _started(history, OBEDIENT, hit)
    monkeypatch.setattr(probes, "is_ready", lambda port: member.log.read_text().count("up") == 2)
    assert member.end(10) == 0
    assert hit.num_kills == 1


@pytest.mark.parametrize("is_armed", [False, True])
def test_one_that_does_not_end_is_killed_and_that_is_no_point_reached(history: History, is_armed: bool) -> None:
    hit = _hit()
    member = _started(history, DEAF, hit if is_armed else None)
    assert member.end(0.5) == -signal.SIGKILL
    assert "most recent call first" in member.log.read_text(), "where it hung"
    member.end(0.5)
    assert member.log.read_text().count("up") == 1, "asked again, nothing is started"
    assert hit.num_kills == 0
