"""One pass over BANKING77 with bandit feedback, without Kafka: what the learner can reach at the demo's delay.

10,003 customer messages in an order given by a seed; one of 77 routes per message; reward 1 if it is the label. A
decision is made with a snapshot at most `--refresh` decisions old, and a reward is learnt `--delay` decisions after
its decision. Encoding, exploration, draws and learner are the real ones.

    python -m benchmarks.banking77_offline [train.csv] --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from learner import environment
from learner.policy import explore, network
from learner.update import TaskLearner
from schemas.blocks import TransitionBlock
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.keys import draw
from schemas.records import DecisionRequest
from schemas.task import Task
from schemas.task_canonical import parse_file
from streams.features import Encoder

FOLDER = Path("examples/support")
DRAW_KEY = b"benchmark"
VW_BEST = 0.213
"""Average reward of Vowpal Wabbit's best of 80 settings over one pass, learning without delay (shared measurement)."""


def messages(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file with the columns text and category."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def support_task(**learner: Any) -> Task:
    """The example's task, with other learner options if given."""
    text = (FOLDER / "headrace.toml").read_text(encoding="utf-8")
    if learner:
        lines = ["[tasks.learner]", *(f"{name} = {str(value).lower()}" for name, value in learner.items()), "", ""]
        text = text.replace("[tasks.reward]", "\n".join(lines) + "[tasks.reward]", 1)
    return parse_file(text, "headrace.toml").task("support")


def transition_block(task: Task, columns: DecisionColumns, rewards: np.ndarray, first: int) -> TransitionBlock:
    """Closed decisions as the join would write them; positions count from `first`."""
    n = len(columns)
    return TransitionBlock(
        partition=0,
        task=task.name,
        fingerprint=task.fingerprint,
        kind=0,
        prev=first - 1,
        positions=np.arange(first, first + n, dtype=np.int64),
        closed_at_ms=np.zeros(n, np.int64),
        buckets=np.zeros(n, np.uint8),
        flags=np.zeros(n, np.uint8),
        rewards=rewards.astype(np.float32)[:, None],
        num_outcomes=np.ones(n, np.int32),
        snapshot_versions=np.zeros(n, np.int64),
        decision_keys=np.zeros((n, 2), np.uint64),
        columns=columns,
    )


def decision_columns(features: FeatureColumns, chosen: np.ndarray, propensities: np.ndarray) -> DecisionColumns:
    """What a worker logs of a choice."""
    n = len(features)
    return DecisionColumns(
        features=features,
        catalogue=b"",
        chosen=chosen.astype(np.int32)[:, None],
        propensities=propensities,
        reasons=np.zeros(n, np.uint8),
        values=np.zeros((0, 1)),
        bounds=np.zeros((0, 2)),
        terminal=np.zeros(0, np.uint8),
        steps=np.zeros(0, np.int32),
        episode_keys=np.zeros(0, np.uint64),
    )


def one_pass(task: Task, features: FeatureColumns, labels: np.ndarray, seed: int, delay: int, refresh: int) -> Any:
    """Rewards (n,) of one pass, and the learner."""
    n, key = len(labels), f"{seed}".encode()
    learner = TaskLearner(task)
    rewards = np.zeros(n)
    decided: list[DecisionColumns] = []
    learnt = 0
    for start in range(0, n, refresh):
        until = max(0, (start - delay) // refresh)
        while learnt < until:
            first = learnt * refresh
            learner.learn(transition_block(task, decided[learnt], rewards[first : first + len(decided[learnt])], first))
            learnt += 1
        weights = network.prepare(learner.weights(), task)
        rows = features.rows(start, min(n, start + refresh))
        scores = network.scores(weights, task, rows)
        integers = explore.integers(scores, rows.num_candidates, np.ones(len(scores), bool), weights, task)
        draws = np.array([draw(DRAW_KEY + key, 0, 0, task.name, str(start + i)) for i in range(len(rows))], np.int32)
        chosen = explore.choose(integers, rows.num_candidates, draws)
        rewards[start : start + len(rows)] = chosen == labels[start : start + len(rows)]
        decided.append(decision_columns(rows, chosen, integers))
    return rewards, learner


def main() -> None:
    environment.pin(1)  # as a learner runs: it starts itself again if it does not run so yet
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=FOLDER / "train.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--delay", type=int, default=250, help="decisions before a reward is learnt")
    parser.add_argument("--refresh", type=int, default=50, help="decisions between snapshots")
    parser.add_argument("--cross-bits", type=int)
    parser.add_argument("--no-deep", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/banking77_offline.json")
    options = parser.parse_args()
    learner_options: dict[str, Any] = {"deep": False} if options.no_deep else {}
    if options.cross_bits:
        learner_options["cross_bits"] = options.cross_bits
    task = support_task(**learner_options)
    texts, names = messages(options.path)
    places = {name: place for place, name in enumerate(task.actions)}
    all_labels = np.array([places[name] for name in names])
    runs = []
    for seed in options.seeds:
        order = np.random.default_rng(seed).permutation(len(texts))
        requests = [DecisionRequest(str(i), task.name, "s", {"text": texts[i]}) for i in order]
        features = Encoder(task).encode(requests).columns
        began = time.perf_counter()
        rewards, learner = one_pass(task, features, all_labels[order], seed, options.delay, options.refresh)
        runs.append(
            {
                "seed": seed,
                "average": round(float(rewards.mean()), 4),
                "first_1000": round(float(rewards[:1000].mean()), 4),
                "last_1000": round(float(rewards[-1000:].mean()), 4),
                "stack": [round(float(w), 2) for w in learner.weights()["stack"]],
                "resets": learner.num_resets,
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        print(runs[-1], flush=True)
    summary = {"delay": options.delay, "refresh": options.refresh, "uniform": round(1 / len(task.actions), 4)}
    means = {name: round(float(np.mean([run[name] for run in runs])), 4) for name in ("average", "last_1000")}
    result = {**summary, "vw_best_average_without_delay": VW_BEST, "mean": means, "runs": runs}
    if options.keep:
        record.keep("banking77_offline", result)
    else:
        print(result)


if __name__ == "__main__":
    main()
