"""What every test shares, and which tests run beside which.

`make test` has four workers (pytest-xdist), each with a lane of its own that it takes in turn:

    whole     the longest runs of all processes, on brokers of their own
    broker    the other tests with a broker
    computing tests that only compute
    campaign  the simulation's 50,000 seeds

Tests of the first two wait for processes most of the time; the other two step back for them (`nice`), so that what
waits is served as if they were not there. Without workers (``make test ARGS='-n 0 -s -k join'``) there is one lane, and
the campaign comes last.
"""

from __future__ import annotations

import os

from learner import environment

# Before numpy is loaded: bits are compared, and with more threads than one sums depend on the machine.
os.environ.update({k: v for k, v in environment.pins(1, frozenset()).items() if k != environment.MARK})

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# no deadline: numba compiles on the first call, and speed is a matter of benchmarks/
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

WHOLE, BROKER, COMPUTING, CAMPAIGN = "whole", "broker", "computing", "campaign"
_BEGINNINGS = {
    "tests/simulation/test_seeds.py::test_no_seed_breaks_an_invariant": CAMPAIGN,
    "tests/end_to_end/": WHOLE,
    "tests/kafka/test_torture.py": WHOLE,
    "tests/kafka/test_learner_killed_anywhere.py": WHOLE,
    "tests/kafka/test_replay_on_broker.py": WHOLE,
    "tests/kafka/": BROKER,
}
NICE = 5
"""How far the computing lane steps back; the processes of the campaign do so by themselves, and further."""


JAVA_OPTIONS = "JDK_JAVA_OPTIONS"
_GIVEN = os.environ.get(JAVA_OPTIONS)
COMPILED_ONCE = f"{_GIVEN or ''} -XX:TieredStopAtLevel=1".strip()
"""For brokers that live for seconds: without Java's second compiler, modules of `tests/kafka` take a fifth less of the
processor. The longest runs have it: under load it pays."""


def lane_of(nodeid: str) -> str:
    """The lane of a test."""
    return next((lane for beginning, lane in _BEGINNINGS.items() if nodeid.startswith(beginning)), COMPUTING)


class Lanes(LoadScopeScheduling):
    """One worker for each lane. Not ``--dist loadgroup``, which pytest 9.2 has broken (pytest-xdist issue 1386)."""

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: lane_of(item.nodeid) == CAMPAIGN)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What Java is told follows the lane; a worker steps back once, before the first test of its lane."""
    options = COMPILED_ONCE if lane_of(item.nodeid) == BROKER else _GIVEN
    if options is None:
        os.environ.pop(JAVA_OPTIONS, None)
    else:
        os.environ[JAVA_OPTIONS] = options
    if "PYTEST_XDIST_WORKER" in os.environ and lane_of(item.nodeid) == COMPUTING and os.nice(0) < NICE:
        os.nice(NICE)
