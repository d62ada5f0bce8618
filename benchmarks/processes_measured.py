"""Run a joining process to its end and read its CPU: what both sides of the join benchmark are measured with."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Consumer, TopicPartition

GIVE_UP_S = 240.0
STEADY_FROM, STEADY_TO = 0.2, 0.65
"""Of the expected rows. Up to here a program has as much still to read as it writes, also where it is a window and some
prefetched messages ahead, and where these rows are counted a moment after they were written."""
SAMPLES_MIN = 10


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one process."""

    rows: int
    cpu_s: float
    """User and system time of the process and its children, start included."""
    wall_s: float
    """Wall time from its start to its last output."""
    memory_mib: float
    steady_us: float
    """CPU per row between `STEADY_FROM` and `STEADY_TO` of the output: without start, first window and end."""
    log_s: float = 0.0
    """How far the append times of what was joined lie apart."""


def run_until(
    command: Sequence[str],
    environment: Mapping[str, str],
    bootstrap: str,
    topic: str,
    expected: int,
    rows_of: Callable[[bytes], int],
    log: Path,
) -> Run:
    """Start `command`, count rows on `topic` until `expected` are there, end it by SIGTERM.

    Raises SystemExit with the end of its log when it ends early or does not finish in time.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "count", "fetch.queue.backoff.ms": 5})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    with log.open("wb") as output:
        child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT)
        process = psutil.Process(child.pid)
        started = last = time.monotonic()
        rows, deadline = 0, started + GIVE_UP_S
        samples = [(0, 0.0)]
        try:
            while rows < expected:
                if child.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command}: {rows} of {expected} rows\n{log.read_text()[-2000:]}")
                new = sum(rows_of(m.value()) for m in consumer.consume(2_000, 0.05) if not m.error())
                if new:
                    last = time.monotonic()
                    rows += new
                    samples.append((rows, _cpu_s(process)))
            cpu_s, memory = _cpu_s(process), process.memory_info().rss
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            consumer.close()
    return Run(rows, cpu_s, last - started, memory / 2**20, _steady_us(samples, expected))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _steady_us(samples: Sequence[tuple[int, float]], expected: int) -> float:
    """`samples`: (rows, CPU in s) so far, rising. NaN where there are too few to tell."""
    steady = [sample for sample in samples if STEADY_FROM * expected <= sample[0] <= STEADY_TO * expected]
    if len(steady) < SAMPLES_MIN:
        return math.nan
    (first_row, first_s), (last_row, last_s) = steady[0], steady[-1]
    return (last_s - first_s) / (last_row - first_row) * 1e6
