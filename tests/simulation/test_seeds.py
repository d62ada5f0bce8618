"""The simulation, every run: 50,000 seeds, and each seed that once found a mistake."""

from __future__ import annotations

import sys

import pytest

from tests.simulation.campaign import Campaign, replay_command, run_seed

NAMED = {
    "a definition counted from when a worker heard of it (decision 12)": 20,
    "a snapshot without its last chunk hid the one before it": 4159,
}
"""What was wrong → a seed that showed it. A change of the worlds makes another run of a seed: each mistake also has a
test of its own (`test_definitions_in_force.py`, `test_found_mistakes.py`)."""


@pytest.mark.timeout(3600)
def test_no_seed_breaks_an_invariant(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    """Minutes of all cores, beside all other tests (`tests.conftest`)."""

    def tell(line: str) -> None:
        with capsys.disabled():  # stderr is what a worker of pytest-xdist lets through
            print(line, file=sys.stderr, flush=True)

    found = campaign.wait(tell)
    tell(f"simulation: {found}")
    said = "\n".join(f"{message}\n    {replay_command(seed)}" for seed, message in found.failures[:10])
    assert not found.failures, f"{len(found.failures)} of {found.num_seeds} seeds are wrong\n{said}"


@pytest.mark.parametrize("seed", NAMED.values(), ids=NAMED.keys())
def test_a_seed_that_once_found_a_mistake_finds_none(seed: int) -> None:
    run_seed(seed)
