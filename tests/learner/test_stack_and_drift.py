"""What the experts' predictions are worth, and when the past is worth less."""

from __future__ import annotations

import numpy as np
import pytest

from learner.drift import DriftTest
from learner.scaling import Scaling, indicator_columns, scaling_of, widened
from learner.stack import PSEUDO_ROWS, Stack
from tests.learner.learner_worlds import task_of


def fed(stack: Stack, steps: int, seed: int, noise: float, drift: float = 0.0) -> Stack:
    """Expert 0 knows the signal, expert 1 is noise that follows the level of the reward."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        signal, level = rng.standard_normal(256), drift * step
        predictions = np.stack([signal, level + noise * rng.standard_normal(256)], 1)
        stack.learn(predictions, signal + level + rng.standard_normal(256))
    return stack


def test_the_stack_starts_from_its_prior_and_moves_to_what_predicts() -> None:
    stack = Stack(np.array([0.0, 1.0]))
    assert stack.weights.tolist() == [0.0, 1.0]
    fed(stack, 60, seed=1, noise=1.0)
    np.testing.assert_allclose(stack.weights, [0.95, 0.05], atol=0.1)


def test_an_expert_that_only_follows_the_level_of_the_reward_earns_nothing() -> None:
    stack = fed(Stack(np.array([1.0, 0.0])), 60, seed=2, noise=0.1, drift=0.05)
    np.testing.assert_allclose(stack.weights, [1.0, 0.0], atol=0.1)


def test_experts_that_never_differ_leave_the_prior() -> None:
    stack = Stack(np.array([0.7, 0.3]))
    stack.learn(np.full((256, 2), 0.5), np.zeros(256))
    assert stack.weights.tolist() == [0.7, 0.3]


def test_the_prior_weighs_a_thousand_rows() -> None:
    rng = np.random.default_rng(3)
    stack = Stack(np.array([0.0]))
    for _ in range(4):
        signal = rng.standard_normal(256)
        stack.learn(signal[:, None], signal)
    assert stack.weights[0] == pytest.approx(1024 / (1024 + PSEUDO_ROWS), abs=0.01)


def drifted(seed: int, twin_gain: float, stack_gain: float, steps: int = 40) -> DriftTest:
    """Squared errors: the twin is better than wide by `twin_gain` and than the stack by `stack_gain`, on average."""
    rng, test = np.random.default_rng(seed), DriftTest()
    for _ in range(steps):
        y = rng.standard_normal(256)
        twin = y + rng.standard_normal(256)
        wide = y + rng.standard_normal(256) * np.sqrt(1 + twin_gain)
        stacked = y + rng.standard_normal(256) * np.sqrt(1 + stack_gain)
        test.learn(y, wide, twin, stacked)
    return test


def test_drift_fires_only_when_the_twin_beats_both_wide_and_stack() -> None:
    assert drifted(4, 0.5, 0.5).fires
    assert not drifted(5, 0.5, -0.3).fires
    assert not drifted(6, -0.3, 0.5).fires


def test_drift_rarely_fires_when_nothing_changes() -> None:
    """Under the null t > 4 has a chance of 3e-5 per look; 40 looks in each of 20 worlds: at most one in 40 runs."""
    assert not any(drifted(seed, 0.0, 0.0).fires for seed in range(20))


def test_t_is_scaled_by_the_effective_number_of_rows() -> None:
    """A difference with mean 0 has |t| of the order of 1, however long the test has run."""
    values = np.array([drifted(seed, 0.0, 0.0, steps=80).t[0] for seed in range(40)])
    assert 0.6 < values.std() < 1.5


def test_reset_forgets_all_sums_and_no_difference_is_no_evidence() -> None:
    test = drifted(7, 0.5, 0.5)
    test.reset()
    assert test.t.tolist() == [0.0, 0.0]
    test.learn(np.ones(256), np.zeros(256), np.zeros(256), np.zeros(256))
    assert test.t.tolist() == [0.0, 0.0]
    assert not test.fires


def test_scaling_ignores_one_outlier_among_the_first_rows() -> None:
    dense = np.random.default_rng(8).standard_normal((512, 2)).astype(np.float32)
    clean = scaling_of(dense, [False, False])
    dense[5, 0] = 1e30
    spoilt = scaling_of(dense, [False, False])
    assert abs(spoilt.mean[0] - clean.mean[0]) < 0.05
    assert spoilt.scale[0] == pytest.approx(clean.scale[0], rel=0.05)


def test_a_constant_column_is_zero_until_it_varies() -> None:
    dense = np.full((512, 1), 5.0, np.float32)
    scaling = scaling_of(dense, [False])
    assert (scaling.mean[0], scaling.scale[0]) == (5.0, 0.0)
    assert widened(scaling, dense).scale[0] == 0.0
    later = np.array([[5.0], [7.0]], np.float32)
    assert widened(scaling, later).scale[0] == pytest.approx(1 / np.sqrt(2))
    assert widened(Scaling(np.zeros(1), np.ones(1)), later).scale[0] == 1.0


def test_indicators_are_left_as_they_are() -> None:
    context = 'b = { kind = "boolean" }\nc = { kind = "category", values = ["u", "v"] }\nn = { kind = "number" }'
    task = task_of(context, actions=["u"])
    assert indicator_columns(task.context) == [True, True, True, False]
    scaling = scaling_of(np.zeros((512, 4), np.float32), indicator_columns(task.context))
    assert scaling.scale.tolist() == [1.0, 1.0, 1.0, 0.0]
