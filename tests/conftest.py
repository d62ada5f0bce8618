"""What every test shares, and which tests may run beside which.

`make test` has two workers (pytest-xdist). Tests with a real broker wait for processes most of the time and would
disturb each other: one worker takes them in turn, while the other takes those that only compute, file by file (what a
file prepares is prepared once). What both leave of the machine is the simulation's: its campaign begins with the first
of the tests in turn, and the test that waits for it is the last of them. Without workers (``pytest``, or ``make test
ARGS='-n 0 -s'``) the order is the same.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.simulation.campaign import Campaign

# no deadline: numba compiles on the first call, and speed is a matter of benchmarks/
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

_IN_TURN = ("tests/kafka/", "tests/end_to_end/", "tests/simulation/test_seeds.py")
NUM_SEEDS = int(os.environ.get("HEADRACE_SIMULATION_SEEDS", "50000"))
"""Less only while working on something else."""
RUNNING = pytest.StashKey[Campaign]()


def _waits(item: pytest.Item) -> bool:
    return "campaign" in getattr(item, "fixturenames", ())


class InTurn(LoadScopeScheduling):
    """Hands a worker all tests in turn, or those of one file."""

    def _split_scope(self, nodeid: str) -> str:
        return "in turn" if nodeid.startswith(_IN_TURN) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> InTurn:
    """How tests are handed to workers, where there are any."""
    return InTurn(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that waits for the campaign comes last."""
    items.sort(key=_waits)


def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Begin the campaign when a test that was selected waits for it; each worker has been told of all that were."""
    stash = item.config.stash
    if RUNNING not in stash and item.nodeid.startswith(_IN_TURN) and any(map(_waits, item.session.items)):
        stash[RUNNING] = Campaign(0, NUM_SEEDS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of it is left, whatever ended the session."""
    if RUNNING in session.config.stash:
        session.config.stash[RUNNING].stop()


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """All seeds of this session, running."""
    return request.config.stash[RUNNING]
