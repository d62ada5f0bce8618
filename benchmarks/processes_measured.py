"""Run a joining process to its end and read its CPU: what both sides of the join benchmark are measured with."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one process."""

    rows: int
    cpu_s: float
    """User and system time of the process and its children, start included."""
    wall_s: float
    """Wall time from its start to its last output."""
    memory_mib: float


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
        try:
            while rows < expected:
                if child.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command}: {rows} of {expected} rows\n{log.read_text()[-2000:]}")
                new = sum(rows_of(m.value()) for m in consumer.consume(2_000, 0.05) if not m.error())
                if new:
                    last = time.monotonic()
                    rows += new
            times, memory = process.cpu_times(), process.memory_info().rss
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            consumer.close()
    cpu_s = times.user + times.system + times.children_user + times.children_system
    return Run(rows, cpu_s, last - started, memory / 2**20)
