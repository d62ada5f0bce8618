"""The simulation, every run: 50,000 seeds, and each seed that once found a mistake."""

from __future__ import annotations

import os

import pytest

from tests.simulation.campaign import replay_command, run_campaign, run_seed

NUM_SEEDS = int(os.environ.get("HEADRACE_SIMULATION_SEEDS", "50000"))
"""Less only while working on something else."""

NAMED = {
    "a definition counted from when a worker heard of it (decision 12)": 20,
    "a snapshot without its last chunk hid the one before it": 4159,
}
"""What was wrong → a seed that showed it. A change of the worlds makes another run of a seed: each mistake also has a
test of its own (`test_definitions_in_force.py`, `test_found_mistakes.py`)."""


@pytest.mark.timeout(1800)
def test_no_seed_breaks_an_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    found = run_campaign(0, NUM_SEEDS, tell)
    said = "\n".join(f"{message}\n    {replay_command(seed)}" for seed, message in found.failures[:10])
    assert not found.failures, f"{len(found.failures)} of {found.num_seeds} seeds are wrong\n{said}"


@pytest.mark.parametrize("seed", NAMED.values(), ids=NAMED.keys())
def test_a_seed_that_once_found_a_mistake_finds_none(seed: int) -> None:
    run_seed(seed)
