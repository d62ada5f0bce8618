"""Many seeds on all cores: which kind of run a seed is, and what became of each.

A seed always is the same run, so a failing one is told by its number and run again by `python -m tests.simulation N`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tests.simulation.chain_run import ChainRun
from tests.simulation.join_run import JoinRun

CHUNK = 200
WHOLE_EVERY = 64
"""One seed in so many is a whole namespace in its real bytes (`chain_run`), about thirteen times the work of the
others: joins with their journals given, and three times in ten the learner's side behind them (`join_run`)."""


@dataclass(frozen=True)
class Chunk:
    """What came of some seeds in a row."""

    num_seeds: int
    failures: list[tuple[int, str]]
    cpu_s: float


def run_seed(seed: int) -> None:
    """One whole simulation. Raises `truth.Wrong` for a broken invariant, whatever a core raises otherwise."""
    if seed % WHOLE_EVERY == WHOLE_EVERY - 1:
        ChainRun(seed).run()
    else:
        JoinRun(seed).run()


def run_chunk(first: int, stop: int) -> Chunk:
    """Seeds [first, stop); one that fails does not keep the others from running."""
    started_s, failures = time.process_time(), []
    for seed in range(first, stop):
        try:
            run_seed(seed)
        except Exception as error:
            failures.append((seed, f"{type(error).__name__}: {error}"[:300]))
    return Chunk(stop - first, failures, time.process_time() - started_s)


def run_campaign(first: int, num_seeds: int, tell: Callable[[str], None], num_processes: int | None = None) -> Chunk:
    """Run seeds [first, first + num_seeds) on all cores; `tell` gets a line of progress now and then."""
    processes = num_processes or max(2, os.cpu_count() or 2)
    run_chunk(first, first + 1)  # compiles what is not in the cache yet, once for all processes
    started_s = told_s = time.monotonic()
    done, failures, cpu_s = 0, [], 0.0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for chunk in pool.imap_unordered(_run_range, _ranges(first, first + num_seeds)):
            done, cpu_s = done + chunk.num_seeds, cpu_s + chunk.cpu_s
            failures += chunk.failures
            now_s = time.monotonic()
            if now_s - told_s > 20 or done == num_seeds:
                told_s = now_s
                rate = done / (now_s - started_s)
                tell(f"simulation: {done} of {num_seeds} seeds, {rate:.0f} a second, {len(failures)} wrong")
    return Chunk(done, sorted(failures), cpu_s)


def _ranges(first: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((start, min(stop, start + CHUNK)) for start in range(first, stop, CHUNK))


def _run_range(seeds: tuple[int, int]) -> Chunk:
    return partial(run_chunk, *seeds)()


def replay_command(seed: int) -> str:
    """What to type to see one seed again."""
    return f"python -m tests.simulation {seed}"
