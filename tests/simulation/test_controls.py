"""The simulation finds what it is for: with any rule of the contract switched off it fails, and says why."""

from __future__ import annotations

import pytest

from tests.simulation.controls import CONTROLS, Control
from tests.simulation.truth import Wrong

NUM_SEEDS_MAX = 1_500


def found_by(control: Control) -> int | None:
    """The first seed whose complaint is the one that the missing rule must cause."""
    with control.off():
        for seed in range(NUM_SEEDS_MAX // 4 if control.whole else NUM_SEEDS_MAX):
            try:
                control.run(seed)
            except Wrong as wrong:
                if str(wrong).startswith(control.said):
                    return seed
    return None


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
def test_with_the_rule_switched_off_the_simulation_fails(control: Control) -> None:
    assert found_by(control) is not None
