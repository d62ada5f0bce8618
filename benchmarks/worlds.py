"""Regret in synthetic worlds: the learner and exploration as they serve, one configuration, feedback 256 late.

Regret ratio = (oracle - got) / (oracle - uniform) over expected rewards: 0 is the oracle, 1 is uniform choice.

With --vw, Vowpal Wabbit decides in the same worlds (`benchmarks.vowpal`).

    python -m benchmarks.worlds --worlds bilinear tokens --decisions 100000 --seeds 1 [--vw]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks import record, vowpal
from benchmarks.banking77_offline import decision_columns, transition_block
from benchmarks.synthetic import BATCH, NAMES, World, task_of
from learner import environment
from learner.policy import explore, network
from learner.update import TaskLearner
from schemas.arrays import F64


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
    return {
        "world": name,
        "seed": seed,
        **_ratios(*map(np.concatenate, (got, oracle, uniform))),
        "stack": [round(float(w), 2) for w in learner.weights()["stack"]],
        "resets": learner.num_resets,
        "cpu_s": round(time.process_time() - began, 1),
    }


def regret_of_vw(name: str, seed: int, num_decisions: int, setting: str) -> dict[str, Any]:
    """The same of Vowpal Wabbit in the same world, with the same luck."""
    began = time.process_time()
    return {
        "world": name,
        "seed": seed,
        "vw": setting,
        **_ratios(*vowpal.decide(setting, World(name, seed, num_decisions), seed, num_decisions)),
        "cpu_s": round(time.process_time() - began, 1),
    }


def _ratios(got: F64, best: F64, uniform: F64) -> dict[str, float]:
    """Regret ratio of the first tenth, of all decisions and of the last tenth."""
    tenth = len(got) // 10
    spans = {"first_tenth": slice(tenth), "all": slice(None), "last_tenth": slice(-tenth, None)}
    return {
        name: round(float((best[span] - got[span]).sum() / (best[span] - uniform[span]).sum()), 3)
        for name, span in spans.items()
    }


def main() -> None:
    environment.pin(1)  # as a learner runs: it starts itself again if it does not run so yet
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--learner", default="", help="TOML lines of [tasks.learner]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vw", action="store_true", help="Vowpal Wabbit beside it, in two settings")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/worlds.json")
    options = parser.parse_args()
    if options.vw and not vowpal.is_installed():
        parser.error("--vw: Vowpal Wabbit is not installed; pip install vowpalwabbit, or run without it")
    runs = []
    for name in options.worlds:
        for seed in options.seeds:
            runs.append(regret(name, seed, options.decisions, options.learner, options.device))
            print(runs[-1], flush=True)
            for setting in vowpal.SETTINGS if options.vw else ():
                runs.append(regret_of_vw(name, seed, options.decisions, setting))
                print(runs[-1], flush=True)
    result = {"decisions": options.decisions, "runs": runs}
    if options.keep:
        record.keep("worlds", result)


if __name__ == "__main__":
    main()
