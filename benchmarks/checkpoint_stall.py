"""How long the training thread stands still for checkpoints: 64 MiB of state, one checkpoint every 5 s.

The thread learns without pause for `--seconds`, once without checkpoints and once with the learner's own writer, and
counts steps. What a checkpoint costs it is (a) the copy of the state, timed on that thread, and (b) whatever the
writing thread takes away from it: the interpreter's lock and, on a machine with one core, the core. `stall_share` is
(a) over the run; `loss_share` is (a) and (b): the shortfall of steps against the run without. On two cores (b) must be
nothing; a machine that others use shows their noise in it.

    python -m benchmarks.checkpoint_stall --seconds 30
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.learn_throughput import BLOCK, rows_of
from learner import checkpoint
from learner.checkpoint import Checkpoint, CheckpointWriter
from learner.update import TaskLearner

MIB = 1 << 20


class Trainer:
    """A learner of one task, and ballast that keeps its state at the size asked for while its replay ring grows."""

    def __init__(self, state_bytes: int) -> None:
        self.task, self.rows = rows_of("dense", 8 * BLOCK)
        self.learner = TaskLearner(self.task)
        self.place = 0
        for _ in range(8):  # compiles, and past the solves of the first rows
            self.step()
        self.state_bytes = state_bytes
        self.ballast = np.random.default_rng(1).random(state_bytes // 8)

    def step(self) -> None:
        """Learn one block."""
        self.learner.learn(self.rows.rows(self.place, self.place + BLOCK))
        self.place = (self.place + BLOCK) % len(self.rows)

    def state(self) -> Checkpoint:
        """A copy of everything, as `learner.restore.to_checkpoint` makes it."""
        arrays = self.learner.state()
        left = self.state_bytes - sum(array.nbytes for array in arrays.values())
        assert left >= 0, f"the learner alone has {self.state_bytes - left} bytes: measure a larger state"
        return Checkpoint({**arrays, "ballast": self.ballast[: left // 8].copy()}, {"topic_id": "none"})


def run(trainer: Trainer, seconds: float, writer: CheckpointWriter | None, every_s: float) -> dict[str, float]:
    """Steps per second, and the time that copies took of the training thread."""
    steps, copies, num_copies = 0, 0.0, 0
    began = time.perf_counter()
    next_s = began + every_s / 2
    while (now := time.perf_counter()) < began + seconds:
        if writer is not None and now >= next_s and writer.is_due(1):
            next_s += every_s
            writer.write(trainer.state(), 0, 0)
            copies += time.perf_counter() - now
            num_copies += 1
        trainer.step()
        steps += 1
    took = time.perf_counter() - began
    return {"steps_per_s": steps / took, "copy_s": copies, "num_checkpoints": num_copies, "seconds": took}


def measured(state_bytes: int, seconds: float, every_s: float, rounds: int) -> dict[str, Any]:
    """Runs with and without in turn, so that a drift of the machine falls on both."""
    trainer = Trainer(state_bytes)
    writes: list[float] = []
    without, with_ = [], []
    with tempfile.TemporaryDirectory() as folder:
        lock = checkpoint.open_folder(Path(folder))
        assert lock >= 0
        writer = CheckpointWriter(Path(folder), 2, 0, period_s=0.0, period_cuts=1, observe=writes.append)
        for _ in range(rounds):
            without.append(run(trainer, seconds, None, every_s))
            with_.append(run(trainer, seconds, writer, every_s))
        writer.close()
    base = float(np.median([each["steps_per_s"] for each in without]))
    rate = float(np.median([each["steps_per_s"] for each in with_]))
    stalled = sum(each["copy_s"] for each in with_)
    num_checkpoints = int(sum(each["num_checkpoints"] for each in with_))
    return {
        "state_mib": round(sum(array.nbytes for array in trainer.state().arrays.values()) / MIB, 1),
        "every_s": every_s,
        "num_checkpoints": num_checkpoints,
        "stall_ms_per_checkpoint": round(1e3 * stalled / max(1, num_checkpoints), 1),
        "stall_share": round(stalled / sum(each["seconds"] for each in with_), 5),
        "loss_share": round(1 - rate / base, 5),
        "write_s_median": round(float(np.median(writes)), 3),
        "steps_per_s_without": round(base, 1),
        "steps_per_s_with": round(rate, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-mib", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/checkpoint_stall.json")
    options = parser.parse_args()
    result = measured(options.state_mib * MIB, options.seconds, options.every, options.rounds)
    print(result, flush=True)
    if options.keep:
        record.keep("checkpoint_stall", result)


if __name__ == "__main__":
    main()
