"""What every test shares, and which tests run beside which.

`make test` has four workers (pytest-xdist), each with a lane of its own that it takes in turn:

    whole     the longest runs of all processes on a broker of their own
    broker    the other tests with a broker
    computing tests that only compute
    campaign  the simulation's 50,000 seeds

Tests of the first two wait for processes most of the time; the other two step back for them (`nice`), so that
what waits is served as if they were not there. Without workers (``pytest``, ``make test ARGS='-n 0 -s -k join'``) there
is one lane, and the campaign comes last.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# no deadline: numba compiles on the first call, and speed is a matter of benchmarks/
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

WHOLE, BROKER, COMPUTING, CAMPAIGN = "whole", "broker", "computing", "campaign"
NICE = 5
"""How far the computing lane steps back; the processes of the campaign do so by themselves, and further."""
_LONGEST = ("test_torture.py", "test_learner_killed_anywhere.py", "test_replay_on_broker.py")
_HERE = Path(__file__).parent


def lane_of(item: pytest.Item) -> str:
    """The lane of a test."""
    if "campaign" in getattr(item, "fixturenames", ()):
        return CAMPAIGN
    folder = item.path.relative_to(_HERE).parts[0]
    if folder == "end_to_end" or (folder == "kafka" and item.path.name in _LONGEST):
        return WHOLE
    return BROKER if folder == "kafka" else COMPUTING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: lane_of(item) == CAMPAIGN)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(lane_of(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker steps back once, before the first test of its lane."""
    if "PYTEST_XDIST_WORKER" in os.environ and lane_of(item) == COMPUTING and os.nice(0) < NICE:
        os.nice(NICE)
