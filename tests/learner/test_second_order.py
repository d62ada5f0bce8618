"""The wide head's algebra against closed forms written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner import design, second_order
from learner.design import Design
from learner.second_order import Moments, Ridges
from tests.learner.learner_worlds import task_of

PRODUCT = Design(False, 3, 2, 0, 0, 0, None, None)
IDS = Design(False, 2, 1, 4, 0, 0, None, None)
BLOCKS = Design(True, 3, 0, 4, 0, 0, None, None)
EXTRAS = Design(False, 2, 2, 0, 5, 4, np.full((5, 2), 0.3), np.full((4, 2), -0.2))


def sample(shape: Design, n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    dx, da = shape.extra_x or shape.px, shape.extra_a or shape.pa
    ids = rng.integers(0, shape.num_actions, n) if shape.num_actions else np.zeros(0, np.int64)
    zx = spread * rng.standard_normal((n, dx)) + rng.standard_normal(dx)
    za = spread * rng.standard_normal((n, da)) + rng.standard_normal(da)
    return zx, za, ids, rng.standard_normal(n)


def ridge_by_hand(shape: Design, ridges: np.ndarray, zx: np.ndarray, za: np.ndarray, ids: np.ndarray, y: np.ndarray):
    """Standardise each side's columns, form φ, solve: what T must amount to. Returns predictions of the rows."""
    ids_one_hot = np.eye(shape.num_actions)[ids] if shape.num_actions else np.zeros((len(y), 0))
    px = zx if shape.x_projection is None else zx @ shape.x_projection
    pa = za if shape.a_projection is None else za @ shape.a_projection
    right = np.concatenate([pa, ids_one_hot], 1)
    extras = np.concatenate([zx if shape.extra_x else zx[:, :0], za if shape.extra_a else za[:, :0]], 1)
    x1, a1, e1 = (standard(side) for side in (px, right, extras))
    ones = np.ones((len(y), 1))
    left, right = np.concatenate([ones, x1], 1), np.concatenate([ones, a1], 1)
    phi = np.concatenate([(left[:, :, None] * right[:, None, :]).reshape(len(y), -1), e1], 1)
    penalty = np.diag(ridges[shape.groups])
    w = np.linalg.solve(phi.T @ phi + penalty, phi.T @ (y - y.mean()))
    return y.mean() + phi @ w


def standard(columns: np.ndarray) -> np.ndarray:
    sd = columns.std(0)
    return np.divide(columns - columns.mean(0), sd, out=np.zeros_like(columns), where=sd > 1e-9)


@pytest.mark.parametrize("shape", [PRODUCT, IDS, EXTRAS], ids=["product", "ids", "extras"])
def test_restandardisation_in_the_solve_equals_standardised_columns(shape: Design) -> None:
    zx, za, ids, y = sample(shape, 300, seed=1, spread=3.0)
    ridges = Ridges.start(shape.groups)
    moments = second_order.moments_of(shape, zx, za, ids, y, "cpu")
    solution = second_order.solve(shape, moments, ridges, 300, 1e-6)
    assert solution is not None
    ours = shape.rows(zx, za, ids) @ solution.weights
    np.testing.assert_allclose(ours, ridge_by_hand(shape, ridges.by_group, zx, za, ids, y), atol=1e-8)


def test_blocks_are_one_ridge_regression_per_action() -> None:
    zx, za, ids, y = sample(BLOCKS, 400, seed=2)
    ridges = Ridges.start(BLOCKS.groups)
    moments = second_order.moments_of(BLOCKS, zx, za, ids, y, "cpu")
    solution = second_order.solve(BLOCKS, moments, ridges, 400, 1e-6)
    assert solution is not None
    phi = np.concatenate([np.ones((400, 1)), (zx - zx.mean(0)) / zx.std(0)], 1)
    for action in range(4):
        mine = ids == action
        penalty = np.diag(ridges.by_group[BLOCKS.groups[action]])
        w = np.linalg.solve(phi[mine].T @ phi[mine] + penalty, phi[mine].T @ (y[mine] - y.mean()))
        ours = BLOCKS.left_rows(zx[mine]) @ solution.weights[action]
        np.testing.assert_allclose(ours, y.mean() + phi[mine] @ w, atol=1e-8)


def test_a_column_that_never_varies_gets_weight_zero() -> None:
    zx, za, ids, y = sample(PRODUCT, 200, seed=3)
    zx[:, 1] = 0.0
    moments = second_order.moments_of(PRODUCT, zx, za, ids, y, "cpu")
    solution = second_order.solve(PRODUCT, moments, Ridges.start(PRODUCT.groups), 200, 1e-6)
    assert solution is not None
    table = solution.weights.reshape(4, 3)
    assert np.array_equal(table[2], np.zeros(3))
    assert np.abs(table[1]).max() > 0


def test_the_twins_decayed_sums_come_from_the_same_product() -> None:
    one, two = (second_order.moments_of(PRODUCT, *sample(PRODUCT, 50, seed), "cpu") for seed in (4, 5))
    twin = one.plus(two, keep=0.5)
    assert torch.allclose(twin.gram, 0.5 * one.gram + two.gram)
    assert twin.n == 75.0
    assert float(twin.gram[0, 0]) == 75.0


def test_a_failing_cholesky_climbs_the_ladder() -> None:
    zx, za, ids, y = sample(PRODUCT, 60, seed=6)
    moments = second_order.moments_of(PRODUCT, zx, za, ids, y, "cpu")
    gram = moments.gram.clone()
    gram[5, 5] -= 120.0
    solution = second_order.solve(PRODUCT, replace(moments, gram=gram), Ridges.start(PRODUCT.groups), 60, 1e-6)
    assert solution is not None
    assert np.isfinite(solution.weights).all()


def test_no_rung_of_the_ladder_means_no_solution() -> None:
    moments = second_order.moments_of(PRODUCT, *sample(PRODUCT, 60, seed=7), "cpu")
    broken = replace(moments, cross=moments.cross * float("inf"))
    assert second_order.solve(PRODUCT, broken, Ridges.start(PRODUCT.groups), 60, 1e-6) is None


def test_equal_rewards_set_every_ridge_back_to_its_start() -> None:
    zx, za, ids, _ = sample(PRODUCT, 500, seed=8)
    start = Ridges.start(PRODUCT.groups)
    moved = Ridges(start.by_group * 3.0, 0.0)
    moments = second_order.moments_of(PRODUCT, zx, za, ids, np.full(500, 0.25), "cpu")
    solution = second_order.solve(PRODUCT, moments, moved, 500, 1e-6)
    assert solution is not None
    sizes = start.by_group[1:]
    assert np.array_equal(solution.ridges.by_group[1:][sizes > 0], sizes[sizes > 0])


def test_evidence_raises_the_ridge_of_noise_and_lowers_that_of_signal() -> None:
    rng = np.random.default_rng(9)
    shape = Design(False, 4, 4, 0, 0, 0, None, None)
    zx, za = rng.standard_normal((4_000, 4)), rng.standard_normal((4_000, 4))
    y = za @ np.array([1.0, -1.0, 0.5, 0.5]) + rng.standard_normal(4_000)
    moments = second_order.moments_of(shape, zx, za, np.zeros(0, np.int64), y, "cpu")
    ridges = Ridges.start(shape.groups)
    for step in range(12):
        solution = second_order.solve(shape, moments, ridges, 1.2**step, 1e-6)
        assert solution is not None
        ridges = solution.ridges
    start = Ridges.start(shape.groups).by_group
    assert ridges.by_group[design.MAIN_X] > 30 * start[design.MAIN_X]
    assert ridges.by_group[design.PRODUCT_A] > 30 * start[design.PRODUCT_A]
    assert ridges.by_group[design.MAIN_A] < start[design.MAIN_A]


def test_the_evidence_is_asked_again_only_after_15_percent_more_rows() -> None:
    moments = second_order.moments_of(PRODUCT, *sample(PRODUCT, 300, seed=10), "cpu")
    first = second_order.solve(PRODUCT, moments, Ridges.start(PRODUCT.groups), 300, 1e-6)
    assert first is not None
    second = second_order.solve(PRODUCT, moments, first.ridges, 340, 1e-6)
    assert second is not None
    assert second.ridges is first.ridges


def test_moments_survive_a_checkpoint_bit_for_bit() -> None:
    moments = second_order.moments_of(IDS, *sample(IDS, 90, seed=11), "cpu")
    arrays = second_order.arrays_of("h_", moments, Ridges(np.arange(8.0), 17.0))
    back, ridges = second_order.of_arrays("h_", arrays, "cpu")
    assert torch.equal(back.gram, moments.gram)
    assert (back.yy, back.y, back.n) == (moments.yy, moments.y, moments.n)
    assert ridges.last_evidence == 17.0
    assert Moments.none(BLOCKS, "cpu").gram.shape == (4, 4, 4)


def test_the_shape_of_the_wide_head_follows_the_widths() -> None:
    vector = "{{ kind = 'vector', size = {} }}"
    small = task_of("x = " + vector.format(32), "a = " + vector.format(32))
    assert (design.design_of(small).blocks, design.design_of(small).width) == (False, 33 * 33)
    wide = design.design_of(task_of("x = " + vector.format(100), "a = " + vector.format(50)))
    assert (wide.px, wide.pa, wide.extra_x, wide.extra_a) == (32, 32, 100, 50)
    many = design.design_of(task_of("x = " + vector.format(40), actions=[str(k) for k in range(60)]))
    assert (many.blocks, many.px) == (True, 40)
    vast = design.design_of(task_of("x = " + vector.format(900), actions=[str(k) for k in range(500)]))
    assert vast.px < 900
    assert 500 * (1 + vast.px) ** 2 <= design.BLOCK_ELEMENTS_MAX


def test_philox_numbers_are_pinned() -> None:
    assert design.uniforms(0, 1, 3).tolist() == [0.8133540609793564, 0.7513314251083365, 0.6716490436969984]
