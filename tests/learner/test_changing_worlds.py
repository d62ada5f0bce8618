"""Drift in whole worlds: the learner resets when the world is replaced, and not when it stays."""

from __future__ import annotations

import numpy as np

from learner.policy import network
from learner.update import TaskLearner
from schemas.blocks import TransitionBlock
from schemas.task import Task
from tests.learner.learner_worlds import dense_rows, dense_task


def after(task: Task, *parts: TransitionBlock) -> TaskLearner:
    learner = TaskLearner(task)
    for part in parts:
        learner.learn(part)
    return learner


def correlation(task: Task, learner: TaskLearner, weights_seed: int) -> float:
    """Of scores with those of a learner that has only seen the world of that seed."""
    fresh = dense_rows(task, 1_000, seed=90).columns.features
    pure = after(task, dense_rows(task, 12_000, seed=91, weights_seed=weights_seed))
    ours, theirs = (network.scores(one.weights(), task, fresh) for one in (learner, pure))
    return float(np.corrcoef(ours, theirs)[0, 1])


def test_a_replaced_world_causes_a_reset_and_is_learnt() -> None:
    task = dense_task(4, learner="deep = false")
    before, since = dense_rows(task, 15_000, seed=1, weights_seed=1), dense_rows(task, 12_000, seed=2, weights_seed=2)
    learner = after(task, before)
    assert learner.num_resets == 0
    learner.learn(since)
    assert learner.num_resets >= 1
    assert correlation(task, learner, 2) > 0.9


def test_a_stationary_world_causes_no_reset() -> None:
    """Three worlds of 25,000 rows; none of ten seeds tried fired."""
    task = dense_task(4, learner="deep = false")
    for seed in (3, 4, 5):
        assert after(task, dense_rows(task, 25_000, seed=seed, weights_seed=seed)).num_resets == 0


def test_a_reset_keeps_the_number_of_rows_and_cuts_the_replay() -> None:
    task = dense_task(4)
    learner = after(task, dense_rows(task, 9_000, seed=6, weights_seed=1), dense_rows(task, 9_000, seed=7))
    assert learner.num_resets >= 1
    assert network.reward_stats(learner.weights())[0] == 18_000.0
    assert learner._deep is not None
    assert learner._deep.ring.oldest > 0
