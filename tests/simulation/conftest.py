"""The campaign runs beside all other tests: they wait for processes most of the time, and it only computes.

It begins before the first test when a test that was selected waits for it (the fixture `campaign`); that test is
ordered behind all others. Nothing of it is left when the session is over, whatever ended it.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.campaign import Campaign

NUM_SEEDS = int(os.environ.get("HEADRACE_SIMULATION_SEEDS", "50000"))
"""Less only while working on something else."""
RUNNING = pytest.StashKey[Campaign]()


def _waits(item: pytest.Item) -> bool:
    return "campaign" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_waits)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if any(map(_waits, session.items)) and not (session.config.option.collectonly or session.testsfailed):
        session.config.stash[RUNNING] = Campaign(0, NUM_SEEDS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RUNNING in session.config.stash:
        session.config.stash[RUNNING].stop()


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """All seeds of this session, running."""
    return request.config.stash[RUNNING]
