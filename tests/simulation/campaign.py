"""Many seeds on all cores: which kind of run a seed is, and what became of each.

A seed always is the same run, so a failing one is told by its number and run again by `python -m tests.simulation N`.
The processes begin when a `Campaign` is made and go on while its maker does something else.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.campaign_process import LOGS, begin
from tests.simulation.chain_run import ChainRun
from tests.simulation.join_run import JoinRun

CHUNK = 100
WHOLE_EVERY = 64
"""One seed in so many is a whole namespace in its real bytes (`chain_run`), about thirteen times the work of the
others: joins with their journals given, and three times in ten the learner's side behind them (`join_run`)."""
TELL_S = 20.0


class CampaignDied(Exception):
    """A process of the campaign ended before its seeds did."""


@dataclass(frozen=True)
class Chunk:
    """What came of some seeds in a row."""

    num_seeds: int
    failures: list[tuple[int, str]]
    cpu_s: float


@dataclass(frozen=True)
class Found(Chunk):
    """What came of all of them."""

    wall_s: float
    """From the first process' start to the last seed's end, whatever else the machine did."""

    def __str__(self) -> str:
        rate, each_ms = self.num_seeds / max(self.wall_s, 0.001), 1000 * self.cpu_s / max(self.num_seeds, 1)
        return (
            f"{self.num_seeds} seeds, {len(self.failures)} wrong; {self.wall_s:.0f} s, {rate:.0f} a second; "
            f"{self.cpu_s:.0f} s of CPU, {each_ms:.1f} ms each: {self.cpu_s / 2:.0f} s of two cores"
        )


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


class Campaign:
    """Seeds [first, first + num_seeds), running from now on. Whoever makes one waits for it or stops it; the processes
    also end with the one that made it, however it ends."""

    def __init__(self, first: int, num_seeds: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-simulation-", ignore_cleanup_errors=True)
        self._end, self._lifeline = spawn.Pipe(duplex=False)
        self._started_s = self._ended_s = time.monotonic()
        self._processes = ProcessPoolExecutor(
            max(2, os.cpu_count() or 2), spawn, begin, (self._end, spawn.Lock(), self._folder.name)
        )
        self._chunks = [
            self._processes.submit(run_chunk, start, min(first + num_seeds, start + CHUNK))
            for start in range(first, first + num_seeds, CHUNK)
        ]
        for chunk in self._chunks:
            chunk.add_done_callback(self._note)

    def _note(self, _: Future[Chunk]) -> None:
        self._ended_s = time.monotonic()

    def wait(self, tell: Callable[[str], None]) -> Found:
        """What became of all seeds; `tell` gets a line of progress now and then. Raises CampaignDied."""
        left = set(self._chunks)
        try:
            while left:
                done, left = wait(left, TELL_S, FIRST_EXCEPTION)
                for chunk in done:
                    chunk.result()
                if left:
                    tell(f"simulation: {self._so_far()}")
            return self._so_far()
        except BrokenProcessPool as error:
            said = "".join(log.read_text(errors="replace") for log in Path(self._folder.name).glob(LOGS))[-10_000:]
            raise CampaignDied(f"{error} Seeds run before: {self._so_far()}. Its output:\n{said}") from error
        finally:
            self.stop()

    def _so_far(self) -> Found:
        chunks = [
            chunk.result() for chunk in self._chunks if chunk.done() and not (chunk.cancelled() or chunk.exception())
        ]
        return Found(
            sum(chunk.num_seeds for chunk in chunks),
            sorted(failure for chunk in chunks for failure in chunk.failures),
            sum(chunk.cpu_s for chunk in chunks),
            self._ended_s - self._started_s,
        )

    def stop(self) -> None:
        """No process is left when it returns."""
        self._lifeline.close()
        self._processes.shutdown(cancel_futures=True)
        self._end.close()
        self._folder.cleanup()


def replay_command(seed: int) -> str:
    """What to type to see one seed again."""
    return f"python -m tests.simulation {seed}"
