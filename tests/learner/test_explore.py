"""Exploration: exact sums, floors, ties, newcomers, draws (learning.md rules 15 to 18)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.policy import explore
from schemas.decision_columns import PROPENSITY_ONE

NOBODY = np.zeros(0, np.bool_)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@st.composite
def rows(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, candidate counts and masks of one to five rows, each with at least one allowed candidate."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    scores = draw(st.lists(FINITE, min_size=sum(counts), max_size=sum(counts)))
    allowed = draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)))
    start = 0
    for count in counts:
        allowed[start + draw(st.integers(0, count - 1))] = True
        start += count
    return np.array(scores), np.array(counts, np.int32), np.array(allowed)


def _assert_is_a_distribution(propensities: np.ndarray, counts: np.ndarray, allowed: np.ndarray) -> None:
    start = 0
    for count in counts:
        row = propensities[start : start + count]
        assert row.sum() == PROPENSITY_ONE
        assert (row[~allowed[start : start + count]] == 0).all()
        assert (row[allowed[start : start + count]] >= explore.PROPENSITY_MIN).all()
        start += count


@settings(max_examples=300, deadline=None)
@given(rows(), st.sampled_from([explore.SQUARECB, explore.EPSILON, explore.SOFTMAX]), st.floats(0, 1e12), st.data())
def test_any_finite_scores_give_integers_that_sum_exactly(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], kind: int, strength: float, data: Any
) -> None:
    scores, counts, allowed = batch
    if kind == explore.EPSILON:
        strength = min(strength, 1.0)
    newcomers = NOBODY
    if data.draw(st.booleans()):
        newcomers = np.array(data.draw(st.lists(st.booleans(), min_size=int(counts[0]), max_size=int(counts[0]))))
    propensities, bad = explore._integers(scores, counts, allowed, kind, strength, newcomers)
    assert bad == -1
    _assert_is_a_distribution(propensities, counts, allowed)


@settings(max_examples=200, deadline=None)
@given(rows(), st.floats(0, 1), st.data())
def test_any_baseline_gives_integers_that_sum_exactly(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], epsilon: float, data: Any
) -> None:
    _, counts, allowed = batch
    baselines = np.array([data.draw(st.integers(-1, int(count) - 1)) for count in counts], np.int32)
    propensities = explore.baseline_integers(counts, allowed, baselines, epsilon)
    _assert_is_a_distribution(propensities, counts, allowed)


@pytest.mark.parametrize("kind", [explore.SQUARECB, explore.EPSILON, explore.SOFTMAX])
def test_the_most_candidates_allowed_still_leave_the_best_its_floor(kind: int) -> None:
    size = explore.NUM_CANDIDATES_MAX
    scores = np.linspace(-1.0, 0.0, size)
    counts = np.array([size], np.int32)
    allowed = np.ones(size, np.bool_)
    for strength in (0.0, 1.0, 1e9):
        for newcomers in (NOBODY, np.arange(size) < size - 1, np.ones(size, np.bool_)):
            given_strength = min(strength, 1.0) if kind == explore.EPSILON else strength
            propensities, bad = explore._integers(scores, counts, allowed, kind, given_strength, newcomers)
            assert bad == -1
            _assert_is_a_distribution(propensities, counts, allowed)


def test_one_candidate_too_many_is_refused() -> None:
    size = explore.NUM_CANDIDATES_MAX + 1
    counts = np.array([size], np.int32)
    with pytest.raises(ValueError, match="row 0"):
        explore.baseline_integers(counts, np.ones(size, np.bool_), np.array([-1], np.int32), 0.1)


def test_a_row_with_everything_masked_is_refused() -> None:
    counts = np.array([1, 2], np.int32)
    with pytest.raises(ValueError, match="row 1"):
        explore.baseline_integers(counts, np.array([True, False, False]), np.array([-1, -1], np.int32), 0.1)


def test_squarecb_is_the_closed_form() -> None:
    scores = np.array([0.1, 0.5, 0.3])
    got, _ = explore._integers(scores, np.array([3], np.int32), np.ones(3, np.bool_), explore.SQUARECB, 40.0, NOBODY)
    first = math.floor(PROPENSITY_ONE / (3 + 40.0 * (0.5 - 0.1)))
    third = math.floor(PROPENSITY_ONE / (3 + 40.0 * (0.5 - 0.3)))
    assert got.tolist() == [first, PROPENSITY_ONE - first - third, third]


def test_equal_scores_give_the_remainder_to_the_lowest_index() -> None:
    got, _ = explore._integers(
        np.zeros(3), np.array([3], np.int32), np.array([False, True, True]), explore.EPSILON, 0.1, NOBODY
    )
    other = int(0.05 * PROPENSITY_ONE)
    assert got.tolist() == [0, PROPENSITY_ONE - other, other]


def test_without_rows_squarecb_is_uniform() -> None:
    got, _ = explore._integers(
        np.array([5.0, -5.0, 1e308, -1e308]),
        np.array([4], np.int32),
        np.ones(4, np.bool_),
        explore.SQUARECB,
        0.0,
        NOBODY,
    )
    assert got.tolist() == [PROPENSITY_ONE // 4] * 4


def test_a_newcomer_keeps_its_floor_and_an_old_hand_does_not() -> None:
    size = 77
    scores = np.zeros(size)
    scores[0] = 1.0
    newcomers = np.zeros(size, np.bool_)
    newcomers[5] = True
    got, _ = explore._integers(
        scores, np.array([size], np.int32), np.ones(size, np.bool_), explore.SQUARECB, 1e6, newcomers
    )
    assert got[5] >= math.floor(PROPENSITY_ONE / (size + 10 * math.sqrt(30) / 0.5))
    assert got[6] == explore.PROPENSITY_MIN


def test_softmax_agrees_with_the_library_exponential() -> None:
    scores = np.random.default_rng(3).normal(size=50)
    got, _ = explore._integers(scores, np.array([50], np.int32), np.ones(50, np.bool_), explore.SOFTMAX, 2.5, NOBODY)
    expected = np.exp(2.5 * scores) / np.exp(2.5 * scores).sum() * PROPENSITY_ONE
    assert np.abs(got - expected).max() <= 50


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    for x in np.linspace(-700, 0, 5001):
        assert abs(explore.exact_exp(x) - math.exp(x)) <= 2 * math.ulp(math.exp(x))


def test_the_baseline_has_one_minus_epsilon_and_its_share_of_the_rest() -> None:
    got = explore.baseline_integers(np.array([4], np.int32), np.ones(4, np.bool_), np.array([2], np.int32), 0.1)
    other = int(0.025 * PROPENSITY_ONE)
    assert got.tolist() == [other, other, PROPENSITY_ONE - 3 * other, other]


def test_a_masked_baseline_gives_the_uniform_distribution() -> None:
    got = explore.baseline_integers(
        np.array([3], np.int32), np.array([True, True, False]), np.array([2], np.int32), 0.1
    )
    assert got.tolist() == [PROPENSITY_ONE // 2, PROPENSITY_ONE // 2, 0]


def test_every_draw_is_served_by_exactly_its_integers() -> None:
    propensities = np.array([16, 0, 100, PROPENSITY_ONE - 116], np.int32)
    counts = np.array([4], np.int32)
    edges = {0: 0, 15: 0, 16: 2, 115: 2, 116: 3, PROPENSITY_ONE - 1: 3}
    for draw, expected in edges.items():
        assert explore.choose(propensities, counts, np.array([draw], np.int32)).tolist() == [expected]


def test_choosing_is_independent_of_the_rows_around() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 9, 50).astype(np.int32)
    allowed = np.ones(counts.sum(), np.bool_)
    propensities, _ = explore._integers(rng.normal(size=counts.sum()), counts, allowed, explore.SQUARECB, 9.0, NOBODY)
    draws = rng.integers(0, PROPENSITY_ONE, 50).astype(np.int32)
    together = explore.choose(propensities, counts, draws)
    starts = np.concatenate([[0], np.cumsum(counts)])
    for i in range(50):
        alone = explore.choose(propensities[starts[i] : starts[i + 1]], counts[i : i + 1], draws[i : i + 1])
        assert alone[0] == together[i]


def test_chosen_frequencies_follow_the_integers() -> None:
    """χ² over 200,000 uniform draws, 7 degrees of freedom, limit 29.9: false-alarm rate 1e-4 (seeded, so fixed)."""
    scores = np.linspace(0.0, 0.7, 8)
    counts = np.array([8], np.int32)
    propensities, _ = explore._integers(scores, counts, np.ones(8, np.bool_), explore.SQUARECB, 30.0, NOBODY)
    num_draws = 200_000
    draws = np.random.default_rng(11).integers(0, PROPENSITY_ONE, num_draws).astype(np.int32)
    chosen = explore.choose(np.tile(propensities, num_draws), np.full(num_draws, 8, np.int32), draws)
    seen = np.bincount(chosen, minlength=8)
    expected = propensities / PROPENSITY_ONE * num_draws
    assert ((seen - expected) ** 2 / expected).sum() < 29.9
