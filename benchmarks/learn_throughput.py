"""Transitions per second into weights, by expert: one thread, rows in memory, CPU time.

Three tasks: dense (32 + 32 features, the full product of 1,089 columns), catalogue (77 routes and text, as in the demo)
and tokens (five hashed fields per side). The parts come from a second run under the profiler. The wide head solves at
every step of its first 2,000 rows and once per 2,048 later, so long runs are faster than short ones.

    python -m benchmarks.learn_throughput --rows 32768
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.banking77_offline import FOLDER, decision_columns, messages, support_task, transition_block
from benchmarks.synthetic import World, task_of
from learner import environment
from learner.update import TaskLearner
from schemas.blocks import TransitionBlock
from schemas.decision_columns import FeatureColumns
from schemas.records import DecisionRequest
from schemas.task import Task
from streams.features import Encoder

BLOCK = 512
PARTS = {
    "wide: sums": ("wide.py", ("learn",)),
    "wide: solves": ("wide.py", ("solve_if_due",)),
    "wide: progressive": ("wide.py", ("predict", "predict_twin")),
    "deep": ("deep.py", ("learn", "predict")),
    "cross": ("cross.py", ("learn", "freeze", "progressive")),
    "columns": ("chosen.py", ("chosen_of", "concat", "rows")),
    "stack and drift": ("stack.py", ("learn", "combined")),
}


def rows_of(name: str, num_rows: int) -> tuple[Task, TransitionBlock]:
    """A task and rows with random choices."""
    rng = np.random.default_rng(1)
    if name == "catalogue":
        task = support_task()
        texts = messages(FOLDER / "train.csv")[0]
        asked = [DecisionRequest(str(i), task.name, "s", {"text": texts[i % len(texts)]}) for i in range(num_rows)]
        features = Encoder(task).encode(asked).columns
        chosen, rewards = rng.integers(0, len(task.actions), num_rows), rng.random(num_rows) < 0.1
    else:
        world_name = {"dense": "bilinear", "tokens": "tokens"}[name]
        task, world = task_of(world_name), World(world_name, 1, num_rows)
        batches = [world.batch(start) for start in range(0, num_rows, 256)]
        features = FeatureColumns.concat([batch.features for batch in batches])
        chosen = rng.integers(0, 10, num_rows)
        means = np.concatenate([batch.means for batch in batches])
        rewards = rng.random(num_rows) < means[np.arange(num_rows), chosen]
    columns = decision_columns(features, chosen, np.zeros(int(features.num_candidates.sum()), np.int32))
    return task, transition_block(task, columns, rewards.astype(float), 0)


def learn_all(learner: TaskLearner, rows: TransitionBlock) -> None:
    for start in range(0, len(rows), BLOCK):
        learner.learn(rows.rows(start, start + BLOCK))


def measured(name: str, num_rows: int, device: str) -> dict[str, Any]:
    """Rates of one task."""
    task, rows = rows_of(name, num_rows)
    learn_all(TaskLearner(task, device), rows.rows(0, 1024))  # compiles
    learner = TaskLearner(task, device)
    began = time.process_time()
    learn_all(learner, rows)
    whole = time.process_time() - began
    began = time.process_time()
    weights = learner.weights()
    snapshot = time.process_time() - began
    profile = cProfile.Profile(time.process_time)
    profile.runcall(learn_all, TaskLearner(task, device), rows)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # typeshed leaves it out
    parts = {
        part: round(1e6 * sum(_cumulative(stats, file, function) for function in functions) / num_rows, 2)
        for part, (file, functions) in PARTS.items()
    }
    return {
        "task": name,
        "rows": num_rows,
        "transitions_per_s": round(num_rows / whole),
        "cpu_us_per_transition": round(1e6 * whole / num_rows, 2),
        "of_which_us": parts,
        "snapshot_ms": round(1e3 * snapshot, 1),
        "snapshot_bytes": sum(array.nbytes for array in weights.values()),
    }


def _cumulative(stats: dict[Any, Any], file: str, function: str) -> float:
    return float(
        sum(
            entry[3]
            for (path, _, name), entry in stats.items()
            if name == function and Path(path).name == file and Path(path).parent.name == "learner"
        )
    )


def main() -> None:
    environment.pin(1)  # as a learner runs: it starts itself again if it does not run so yet
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["dense", "catalogue", "tokens"])
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/learn_throughput.json")
    options = parser.parse_args()
    result = {"runs": [measured(name, options.rows, options.device) for name in options.tasks]}
    for run in result["runs"]:
        print(run, flush=True)
    if options.keep:
        record.keep("learn_throughput", result)


if __name__ == "__main__":
    main()
