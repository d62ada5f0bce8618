"""Regret in synthetic worlds: the learner and exploration as they serve, one configuration, feedback 256 late.

Regret ratio = (oracle - got) / (oracle - uniform) over expected rewards: 0 is the oracle, 1 is uniform choice.

    python -m benchmarks.worlds --worlds bilinear tokens --decisions 100000 --seeds 1
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.banking77_offline import decision_columns, transition_block
from benchmarks.synthetic import BATCH, NAMES, World, task_of
from learner.policy import explore, network
from learner.update import TaskLearner

REFERENCE = {
    "bilinear": (0.076, 0.085),
    "network": (0.156, 0.228),
    "tokens": (0.254, 0.313),
    "replaced": (0.168, 0.170),
    "rare": (0.342, 0.452),
    "cosine": (0.290, 0.485),
}
"""Range over three seeds of the prototype at 100,000 decisions (its own simulator, the same construction)."""
VW_DEFAULT = {
    "bilinear": (0.148, 0.184),
    "network": (0.264, 0.358),
    "tokens": (0.330, 0.396),
    "replaced": (0.335, 0.386),
    "rare": (0.553, 0.665),
    "cosine": (0.811, 0.899),
}
"""The same of Vowpal Wabbit's squarecb with default settings, learning without delay."""


def regret(name: str, seed: int, num_decisions: int, learner_options: str, device: str) -> dict[str, Any]:
    """One run."""
    task, world = task_of(name, learner_options), World(name, seed, num_decisions)
    learner, rng = TaskLearner(task, device), np.random.default_rng([seed, 3])
    got, oracle, uniform = [], [], []
    began = time.process_time()
    for start in range(0, num_decisions, BATCH):
        batch = world.batch(start)
        features, n = batch.features, len(batch.means)
        weights = network.prepare(learner.weights(), task)
        scores = network.scores(weights, task, features)
        integers = explore.integers(scores, features.num_candidates, np.ones(len(scores), bool), weights, task)
        chosen = explore.choose(integers, features.num_candidates, rng.integers(0, 1 << 24, n).astype(np.int32))
        row = np.arange(n)
        means = batch.means[row, chosen]
        got.append(means)
        oracle.append(batch.means.max(1))
        uniform.append(batch.means.mean(1))
        rewards = (batch.luck[row, chosen] < means).astype(float)
        learner.learn(transition_block(task, decision_columns(features, chosen, integers), rewards, start))
    lost = np.concatenate(oracle) - np.concatenate(got)
    loss = np.concatenate(oracle) - np.concatenate(uniform)
    tenth = len(lost) // 10
    return {
        "world": name,
        "seed": seed,
        "first_tenth": round(float(lost[:tenth].sum() / loss[:tenth].sum()), 3),
        "all": round(float(lost.sum() / loss.sum()), 3),
        "last_tenth": round(float(lost[-tenth:].sum() / loss[-tenth:].sum()), 3),
        "stack": [round(float(w), 2) for w in learner.weights()["stack"]],
        "resets": learner.num_resets,
        "cpu_s": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--learner", default="", help="TOML lines of [tasks.learner]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/worlds.json")
    options = parser.parse_args()
    runs = []
    for name in options.worlds:
        for seed in options.seeds:
            runs.append(regret(name, seed, options.decisions, options.learner, options.device))
            print(runs[-1], flush=True)
    result = {"decisions": options.decisions, "prototype": REFERENCE, "vw_default": VW_DEFAULT, "runs": runs}
    if options.keep:
        record.keep("worlds", result)


if __name__ == "__main__":
    main()
