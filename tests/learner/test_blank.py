"""Blank weights: what rehearsals decide with is shaped like what the learner publishes."""

from __future__ import annotations

import numpy as np
import pytest

from learner.policy import shapes
from learner.policy.blank import blank_weights
from schemas.task import Task, TaskTable, parse
from streams.policy import blank_policy

HEAD = '[namespace]\nname = "n"\n'
REWARD = '[tasks.reward]\nwindow = "1s"\n[tasks.reward.outcomes.click]\naggregate = "max"\nbinary = true\n'
WORLDS = {
    "text and catalogue": 'actions = ["a", "b"]\n[tasks.context]\ntext = { kind = "text" }\n',
    "numbers and candidates": '[tasks.context]\nx = { kind = "number" }\n[tasks.action]\ny = { kind = "number" }\n',
    "tokens on both sides": '[tasks.context]\nt = { kind = "text" }\n[tasks.action]\nc = { kind = "category" }\n',
    "no features": 'actions = ["a", "b", "c"]\n',
    "no deep, no cross": 'actions = ["a", "b"]\n[tasks.learner]\ndeep = false\ncross = false\n[tasks.context]\n'
    't = { kind = "text" }\n',
}


def task_of(world: str) -> Task:
    return parse(f'{HEAD}[[tasks]]\nname = "t"\n{WORLDS[world]}{REWARD}').tasks[0]


@pytest.mark.parametrize("world", WORLDS)
def test_blank_weights_have_the_shapes_that_a_worker_accepts_and_decide(world: str) -> None:
    task = task_of(world)

    weights = blank_weights(task)

    assert shapes.fault_of(weights, task) is None
    assert not any(array.flags.writeable for array in weights.values())
    assert blank_policy(TaskTable([task])).serves(task)


@pytest.mark.parametrize("world", WORLDS)
def test_blank_weights_name_the_same_arrays_as_a_learner_does(world: str) -> None:
    from learner.update import TaskLearner

    task = task_of(world)

    published = TaskLearner(task).weights()

    blank = blank_weights(task)
    assert set(blank) == set(published)
    assert {name: array.dtype for name, array in blank.items()} == {
        name: np.asarray(array).dtype for name, array in published.items()
    }
