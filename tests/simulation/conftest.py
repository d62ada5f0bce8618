"""The campaign of seeds: in a lane of its own beside all other tests (`tests.conftest`), or last."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.simulation.campaign import Campaign

NUM_SEEDS = int(os.environ.get("HEADRACE_SIMULATION_SEEDS", "50000"))
"""Less only while working on something else."""


@pytest.fixture
def campaign() -> Iterator[Campaign]:
    """All seeds, running. Nothing of it is left afterwards, whatever ended the test."""
    running = Campaign(0, NUM_SEEDS)
    try:
        yield running
    finally:
        running.stop()
