"""The real learner at its real size over a disturbed log: the same bits as over an undisturbed one, on 20 seeds.

The rows are made up (what a transition holds does not matter here), two partitions and two tasks of them, more than two
steps of 256 rows each. The disturbed log holds them in other blocks, some twice, some after a hole, and its reader
restarts from checkpoints; the undisturbed one holds them once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import pytest

from learner import environment, replay
from learner.update import TaskLearner
from schemas.blocks import TransitionBlock
from schemas.chain import START
from schemas.decision_columns import PROPENSITY_ONE
from schemas.records import ChainPosition, Progress, Resume
from schemas.task import Task
from tests.learner.learner_worlds import catalogue_rows, catalogue_task, dense_rows, dense_task
from tests.simulation.learning import SAME, Learning
from tests.simulation.seams import replaced
from tests.simulation.truth import Wrong

ROWS_PER_CHAIN = 320
THREADS = 1
"""One environment, as every learner process pins it (learning.md rule 22)."""
SPAN_MS = 1_500_000
END_MS = SPAN_MS + 10_000
Log = list[TransitionBlock | Progress]


@lru_cache(maxsize=1)
def tasks() -> tuple[Task, Task]:
    return dense_task(learner="deep = true"), catalogue_task()


def rows_of(seed: int, partition: int) -> list[TransitionBlock]:
    """All rows of one partition, a block per task."""
    made = [
        dense_rows(tasks()[0], ROWS_PER_CHAIN, 2 * seed + partition),
        catalogue_rows(tasks()[1], ROWS_PER_CHAIN, 2 * seed + partition),
    ]
    rng = np.random.default_rng(seed + 1_000 * partition)
    blocks = []
    for number, block in enumerate(made):
        positions = (2 * np.arange(len(block)) + number) << 16
        closed = np.sort(rng.integers(0, SPAN_MS, len(block)))
        num_candidates = block.columns.features.num_candidates
        shares = np.repeat(PROPENSITY_ONE // num_candidates, num_candidates).astype(np.int32)
        columns = replace(block.columns, catalogue=tasks()[number].catalogue, propensities=shares)
        blocks.append(
            replace(block, partition=partition, prev=START, positions=positions, closed_at_ms=closed, columns=columns)
        )
    return blocks


def said(partition: int, time_ms: int, blocks: list[TransitionBlock]) -> Progress:
    """All that closed before `time_ms` is there."""
    chains = []
    for block in blocks:
        num_closed = int(np.searchsorted(block.closed_at_ms, time_ms))
        hwm = int(block.positions[num_closed - 1]) if num_closed else START
        chains.append(ChainPosition(block.fingerprint, 0, hwm))
    return Progress(partition, time_ms, 0, 0, tuple(chains), Resume(0), {}, {})


def undisturbed(seed: int, partition: int) -> Log:
    blocks = rows_of(seed, partition)
    return [*blocks, said(partition, END_MS, blocks)]


def disturbed(seed: int, partition: int, rng: Random) -> Log:
    """The same rows as joins write them that die, come back and lose what they wrote."""
    blocks, log = rows_of(seed, partition), Log()
    time_ms, sent = 0, [0, 0]
    while time_ms < END_MS:
        time_ms = min(END_MS, time_ms + rng.choice((20_000, 100_000, 300_000)))
        for chain, block in enumerate(blocks):
            stop = int(np.searchsorted(block.closed_at_ms, time_ms))
            while sent[chain] < stop:
                first = max(0, sent[chain] - rng.choice((0, 0, 0, 5, 40)))
                middle = min(stop, sent[chain] + rng.randint(1, 90))
                if rng.random() < 0.2 and middle < stop:  # lost at first: what follows it is a hole
                    log.append(block.rows(middle, min(stop, middle + 20)))
                log.append(block.rows(first, middle))
                sent[chain] = middle
        log.append(said(partition, time_ms, blocks))
    return log


def learnt(rng: Random, logs: list[Log], restarts: int) -> tuple[dict[int, bytes], dict[str, bytes]]:
    """(sha256 by version, everything that decides the future) after the whole log."""
    learning = Learning(rng, tasks(), logs, TaskLearner)
    learning.run(restarts)
    arrays, _ = learning.learner.state()
    return (
        {version: snapshot.draft.sha256 for version, snapshot in learning.snapshots.items()},
        {name: array.tobytes() for name, array in arrays.items()},
    )


def both(seed: int) -> tuple[Any, Any]:
    environment.configure(THREADS, "cpu")
    rng = Random(seed)
    calm = learnt(Random(0), [undisturbed(seed, partition) for partition in range(2)], restarts=0)
    wild = learnt(rng, [disturbed(seed, partition, rng) for partition in range(2)], restarts=2)
    return calm, wild


@pytest.mark.parametrize("seed", range(20))
def test_the_real_learner_comes_to_the_same_bits_whatever_happened_to_the_log_and_to_itself(seed: int) -> None:
    calm, wild = both(seed)
    assert len(calm[0]) > 3
    assert wild[0] == calm[0], "the versions have other bytes"
    assert wild[1] == calm[1], "the state is another"


def test_with_a_global_generator_for_replay_the_bits_differ() -> None:
    dice = np.random.default_rng(0)
    with replaced((replay, "uniforms", lambda seed, stream, count: dice.random(count))):
        try:
            calm, wild = both(0)
        except Wrong as wrong:
            assert str(wrong).startswith(SAME)  # noqa: PT017  # either way shows it: a restart alone, or both runs
        else:
            assert wild != calm
