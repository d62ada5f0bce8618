"""The neural expert against torch's own optimiser, and the ring it learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner import deep, losses, replay
from learner.chosen import chosen_of
from learner.deep import Deep
from learner.experts import deep_rows
from learner.replay import Ring, Rows
from learner.scaling import Scaling
from tests.learner.learner_worlds import catalogue_rows, catalogue_task, dense_rows, dense_task


def plain(width: int) -> Scaling:
    return Scaling(np.zeros(width), np.ones(width))


def ring_rows(start: int, count: int) -> Rows:
    """Rows whose every number is their own."""
    marks = np.arange(start, start + count)
    none16, none32 = np.zeros((count, 0), np.uint16), np.zeros((count, 0), np.float32)
    column = marks[:, None].astype(np.float32)
    return Rows(column, column, marks.astype(np.int64), none16, none32, none16, none32, marks.astype(np.float64))


def test_one_step_equals_torchs_adamw_with_clipping() -> None:
    task = catalogue_task()
    ours = Deep(task, "cpu")
    rows = deep_rows(chosen_of(catalogue_rows(task, 256, seed=1), task), np.ones(1 << 16, np.float32), task)
    x, a = plain(4), plain(0)
    theirs = {name: value.clone().requires_grad_() for name, value in ours._parameters.items()}
    optimiser = torch.optim.AdamW(
        list(theirs.values()), lr=deep.LEARNING_RATE, weight_decay=deep.WEIGHT_DECAY, betas=(deep.BETA_1, deep.BETA_2)
    )
    for _ in range(3):
        optimiser.zero_grad()
        loss = losses.reward_regression(ours._forward(theirs, rows, x, a), torch.from_numpy(rows.y.astype(np.float32)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), deep.NORM_MAX)
        optimiser.step()
        ours._descend(rows, x, a)
        ours._step += 1
    for name, value in ours._parameters.items():
        torch.testing.assert_close(value.detach(), theirs[name].detach(), atol=1e-6, rtol=1e-4)


def test_an_untrained_net_predicts_the_mean_reward() -> None:
    task = dense_task()
    rows = deep_rows(chosen_of(dense_rows(task, 64, seed=2), task), None, task)
    assert np.ptp(Deep(task, "cpu").predict(rows, plain(6), plain(6))) == 0.0


def test_parameters_follow_the_tasks_seed_and_nothing_else() -> None:
    first, again = (Deep(dense_task(), "cpu").weights() for _ in range(2))
    other = Deep(dense_task(learner="seed = 5"), "cpu").weights()
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert first["deep_x"].tobytes() != other["deep_x"].tobytes()


def test_a_loss_wants_two_vectors_of_one_length() -> None:
    with pytest.raises(ValueError, match="expected two tensors of one shape"):
        losses.reward_regression(torch.zeros(3), torch.zeros(3, 1))


def test_the_ring_forgets_the_oldest_rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CAPACITY", 1_000)
    ring = Ring()
    for start in range(0, 2_560, 256):
        ring.add(ring_rows(start, 256))
    assert (ring.oldest, ring.num_seen) == (1_560, 2_560)
    drawn = ring.sample(500, seed=0, step=3).ids
    assert drawn.min() >= 1_560
    assert drawn.max() < 2_560
    assert len(np.unique(drawn)) > 300
    mean, variance = ring.reward_moments()
    assert mean == pytest.approx(np.arange(1_560, 2_560).mean())
    assert variance == pytest.approx(np.arange(1_560, 2_560).var())


def test_what_is_replayed_is_a_function_of_seed_and_step() -> None:
    ring = Ring()
    ring.add(ring_rows(0, 256))
    one, again, later, other = (
        ring.sample(64, seed, step).ids.tolist() for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert one == again
    assert one != later
    assert one != other


def test_after_drift_only_the_newest_rows_are_replayed() -> None:
    ring = Ring()
    ring.add(ring_rows(0, 256))
    ring.keep_last(10)
    ring.add(ring_rows(256, 256))
    assert ring.sample(500, 0, 1).ids.min() >= 246


def test_a_rings_contents_survive_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CAPACITY", 300)
    ring = Ring()
    ring.add(ring_rows(0, 256))
    ring.add(ring_rows(256, 256))
    back = Ring()
    back.load_state(ring.state())
    for both in (ring, back):
        both.add(ring_rows(512, 100))
    assert ring.sample(50, 1, 1).ids.tolist() == back.sample(50, 1, 1).ids.tolist()
    assert ring.reward_moments() == back.reward_moments()
