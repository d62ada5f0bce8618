"""Vowpal Wabbit in the synthetic worlds, decision by decision: what `benchmarks.worlds` puts beside the learner.

squarecb over action-dependent features with all crosses of context and action (``-q xa``), cost -reward. It learns each
reward before the next decision; the learner beside it hears of one up to 256 decisions later. Not a dependency: ``pip
install vowpalwabbit``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.synthetic import BATCH, NUM_CANDIDATES, Batch, World
from schemas.arrays import F64

BASE = "--cb_explore_adf --cb_type mtr --squarecb -q xa -b 18 --quiet"
SETTINGS = {"default": "", "gamma_scale 100": "--gamma_scale 100"}
"""Its defaults, and with ten times the exploitation, which suits these worlds better."""


def is_installed() -> bool:
    """Whether there is one to compare with."""
    return find_spec("vowpalwabbit") is not None


def decide(setting: str, world: World, seed: int, num_decisions: int) -> tuple[F64, F64, F64]:
    """(N,) expected reward of what it chose, of the best candidate, and of a uniform choice, in whole batches."""
    from vowpalwabbit import Workspace

    vw, rng = Workspace(f"{BASE} {SETTINGS[setting]}"), np.random.default_rng([seed, 5])
    got, best, uniform = [], [], []
    for start in range(0, num_decisions, BATCH):
        batch = world.batch(start)
        for row, (context, actions) in enumerate(_examples(batch)):
            weights = np.array(vw.predict([context, *actions]))
            probabilities = weights / weights.sum()
            action = int(rng.choice(NUM_CANDIDATES, p=probabilities))
            reward = float(batch.luck[row, action] < batch.means[row, action])
            actions[action] = f"0:{-reward}:{probabilities[action]:.6f} {actions[action]}"
            vw.learn([context, *actions])
            got.append(batch.means[row, action])
        best.append(batch.means.max(1))
        uniform.append(batch.means.mean(1))
    return np.array(got), np.concatenate(best), np.concatenate(uniform)


def _examples(batch: Batch) -> list[tuple[str, list[str]]]:
    """Each decision in VW's text format: the shared line, and one line per candidate."""
    features, n = batch.features, len(batch.means)
    if len(features.context_tokens):
        contexts = [_tokens(row) for row in features.context_tokens.reshape(n, -1)]
        actions = [_tokens(row) for row in features.action_tokens.reshape(n * NUM_CANDIDATES, -1)]
    else:
        contexts, actions = [_dense(row) for row in features.context], [_dense(row) for row in features.actions]
    return [
        (f"shared |x {context}", [f"|a {line}" for line in actions[row * NUM_CANDIDATES : (row + 1) * NUM_CANDIDATES]])
        for row, context in enumerate(contexts)
    ]


def _tokens(row: Any) -> str:
    return " ".join(f"t{token}" for token in row.tolist())


def _dense(row: Any) -> str:
    return " ".join(f"{index}:{value:.4f}" for index, value in enumerate(row.tolist()))
