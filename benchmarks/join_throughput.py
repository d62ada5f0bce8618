"""Journal → transitions on a real broker, beside a hand-written dict join over the same events in the same run.

CPU is user + system of the process, broker excluded, and told in two ways. *Steady*: in the middle of the output, as
many decisions being read as are written. *Difference*: of two sizes, so that the start of a process (imports, compiled
kernels) drops out: the cost of one more decision, with the memory that a longer log needs.
Run: python -m benchmarks.join_throughput [--runs 3] [--small 200000] [--large 2200000]
"""

from __future__ import annotations

import argparse
import math
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.join_events import OUTCOME_SHARE, ROWS, Slab, project, slabs, subject_of
from benchmarks.processes_measured import Run, run_until
from benchmarks.record import keep
from deploy import applying, broker, topics
from schemas.blocks import TransitionBlock
from schemas.bounds import LIMITS
from schemas.codec import NUM_HEADER, decode, encode, schema_id_of
from schemas.column_reader import measure
from schemas.keys import partition_of
from schemas.limits import view_of
from schemas.records import Outcome
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.topics import topic
from schemas.varints import TRAILING_BYTES

PARTITIONS = 4
WINDOW_MS = 200
"""A small part of what the append times of the journal span, `log_windows` of the result: with a window as long as the
log, all would be read before the first is written. Outcomes come `LAG_BLOCKS` later, some 20 ms."""
LOG_WINDOWS_MIN = 6
"""With fewer, the middle of the output is not what `STEADY_TO` says."""
INGEST_WINDOW_MS = 20_000
"""Longer than it takes ingest to catch up, so that its outcomes count."""
LAG_BLOCKS = 16
"""An outcome follows its decision by so many blocks."""

REGISTRY = FileRegistry()


_READER = REGISTRY.reader_of("TransitionBlock")
assert _READER.layout is not None
_HEAD = _READER.layout.table[: _READER.layout.names.index("num_rows") + 1]


def rows_of_message(payload: bytes) -> int:
    """Transitions in one message of the transitions topic. Reads its head only: who counts must not slow who joins."""
    view = view_of(payload)
    if schema_id_of(view) != _READER.id:
        return 0
    code, _, _, table, _ = measure(view, NUM_HEADER, _HEAD, LIMITS.num_items_max)
    assert code == TRAILING_BYTES, "the columns follow"
    return int(table[-1, 0])


def check_outcomes(bootstrap: str, transitions: str, num_rows: int) -> None:
    """Raise SystemExit unless nearly all outcomes counted: a window that a stalled broker outlasts is less work."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "check", "fetch.queue.backoff.ms": 5})
    consumer.assign([TopicPartition(transitions, partition, 0) for partition in range(PARTITIONS)])
    seen = used = 0
    while seen < num_rows:
        for message in consumer.consume(500, 10.0):
            block = decode(message.value(), REGISTRY, strings=False)
            if isinstance(block, TransitionBlock):
                seen, used = seen + len(block), used + int(np.count_nonzero(block.num_outcomes))
    consumer.close()
    if used < 0.95 * OUTCOME_SHARE * num_rows:
        sys.exit(f"{used} of {num_rows} decisions have outcomes, expected {OUTCOME_SHARE:.0%}: run it again")


def subjects_by_partition() -> list[list[str]]:
    """Fifty subjects for each partition."""
    found: list[list[str]] = [[] for _ in range(PARTITIONS)]
    number = 0
    while any(len(pool) < 50 for pool in found):
        name = f"subject-{number}"
        found[partition_of(name, PARTITIONS)].append(name)
        number += 1
    return found


class Writer:
    """Writes the events in log order, at most as fast as the broker takes them."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 5, "enable.idempotence": True}
        )
        self._since = time.monotonic()
        self.took_s = 0.0

    def write(self, topic_name: str, value: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce(topic_name, value, partition=partition)
                break
            except BufferError:
                self._producer.poll(0.05)
        self._producer.poll(0)

    def flush(self) -> None:
        """Everything is in the log."""
        self._producer.flush(60)
        self.took_s = time.monotonic() - self._since


def with_lag(events: list[Slab]) -> Iterable[tuple[Slab | None, Slab | None]]:
    """(decisions now, outcomes now): outcomes come `LAG_BLOCKS` later."""
    for number in range(len(events) + LAG_BLOCKS):
        now = events[number] if number < len(events) else None
        then = events[number - LAG_BLOCKS] if number >= LAG_BLOCKS else None
        yield now, then


def prepare(settings: CommonSettings, window_ms: int) -> Any:
    """Topics and the task."""
    declared = project(settings.namespace, PARTITIONS, f"{window_ms}ms")
    topics.apply(settings, declared)
    applying.apply(settings, declared)
    return declared.tasks[0]


def headrace_run(bootstrap: str, folder: Path, num: int, seed: int, ingest: bool) -> Run:
    """One process `worker join` (with ingest: outcomes come as single Avro messages from the users' topic)."""
    settings = CommonSettings(bootstrap=bootstrap, namespace=f"bench{time.time_ns()}", state_dir=folder)
    task = prepare(settings, INGEST_WINDOW_MS if ingest else WINDOW_MS)
    subjects = subjects_by_partition()
    events = slabs(num, PARTITIONS, seed, subjects, task.fingerprint, task.catalogue)
    journal, outcomes = topic(settings.namespace, "journal"), topic(settings.namespace, "outcomes")
    encoded = [(s.partition, encode(s.decisions, REGISTRY), encode(s.outcomes, REGISTRY)) for s in events]
    singles = [_single_outcomes(s, subjects) for s in events] if ingest else []
    writer = Writer(bootstrap)
    for number in range(len(events) + LAG_BLOCKS):
        if number < len(events):
            writer.write(journal, encoded[number][1], encoded[number][0])
        if number >= LAG_BLOCKS and not ingest:
            writer.write(journal, encoded[number - LAG_BLOCKS][2], encoded[number - LAG_BLOCKS][0])
    for slab, values in zip(events, singles, strict=False):
        for value in values:
            writer.write(outcomes, value, slab.partition)
    writer.flush()
    roles = ["ingest", "join"] if ingest else ["join"]
    environment = {
        "HEADRACE_BOOTSTRAP": bootstrap,
        "HEADRACE_NAMESPACE": settings.namespace,
        "HEADRACE_STATE_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = run_until(
        [sys.executable, "-m", "deploy", "worker", *roles],
        environment,
        bootstrap,
        topic(settings.namespace, "transitions"),
        len(events) * ROWS,
        rows_of_message,
        folder / f"{settings.namespace}.log",
    )
    if not ingest:
        check_outcomes(bootstrap, topic(settings.namespace, "transitions"), run.rows)
    return replace(run, log_s=writer.took_s)


def _single_outcomes(slab: Slab, subjects: list[list[str]]) -> list[bytes]:
    return [
        encode(
            Outcome(
                outcome_id=f"o-{slab.decision_names[row]}",
                subject=subject_of(slab.partition, int(row), subjects),
                type="click",
                decision_id=slab.decision_names[row],
                value=1.0,
            ),
            REGISTRY,
        )
        for row in slab.outcome_rows
    ]


def dict_run(bootstrap: str, folder: Path, num: int, seed: int) -> Run:
    """The hand-written join over the same events, one message each."""
    name = f"dict{time.time_ns()}"
    decisions, outcomes, transitions = f"{name}.decisions", f"{name}.outcomes", f"{name}.transitions"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    config = {"message.timestamp.type": "LogAppendTime"}
    made = admin.create_topics([NewTopic(t, PARTITIONS, 1, config=config) for t in (decisions, outcomes, transitions)])
    for future in made.values():
        future.result(20)
    events = slabs(num, PARTITIONS, seed, subjects_by_partition(), b"\0" * 16, b"\0" * 16)
    one = struct.pack("<f", 1.0)
    shaped = []
    for slab in events:
        context = slab.decisions.columns.features.context
        propensities = slab.decisions.columns.propensities.reshape(ROWS, -1)
        keys = slab.decisions.decision_keys
        shaped.append(
            (
                slab.partition,
                [
                    keys[i].tobytes() + context[i].tobytes() + propensities[i].tobytes() + b"\0" * 66
                    for i in range(ROWS)
                ],
                [
                    keys[r].tobytes() + slab.outcomes.outcome_keys[j].tobytes() + one
                    for j, r in enumerate(slab.outcome_rows)
                ],
            )
        )
    writer = Writer(bootstrap)
    for number in range(len(shaped) + LAG_BLOCKS):
        if number < len(shaped):
            for value in shaped[number][1]:
                writer.write(decisions, value, shaped[number][0])
        if number >= LAG_BLOCKS:
            for value in shaped[number - LAG_BLOCKS][2]:
                writer.write(outcomes, value, shaped[number - LAG_BLOCKS][0])
    writer.flush()
    time.sleep(WINDOW_MS / 1e3 + 0.2)
    for partition in range(PARTITIONS):  # the last windows close by a sentinel: this join has no ticks
        writer.write(decisions, b"\xff" * 250, partition)
        writer.write(outcomes, b"\xff" * 36, partition)
    writer.flush()
    run = run_until(
        [sys.executable, "-m", "benchmarks.dict_join", bootstrap, decisions, outcomes, transitions, str(WINDOW_MS)],
        {},
        bootstrap,
        transitions,
        len(events) * ROWS,
        lambda _: 1,
        folder / f"{name}.log",
    )
    return replace(run, log_s=writer.took_s)


def difference(small: Run, large: Run) -> dict[str, float]:
    """Cost of one more decision."""
    rows = large.rows - small.rows
    wall_s = large.wall_s - small.wall_s
    return {
        "cpu_us_per_decision": round((large.cpu_s - small.cpu_s) / rows * 1e6, 3),
        "decisions_per_s": round(rows / wall_s) if wall_s > 0 else 0,
        "memory_mib": round(large.memory_mib),
    }


def with_steady(small: Run, large: Run) -> dict[str, float]:
    """The same, and the cost of a decision in the middle of the large run. SystemExit where it has no middle."""
    if large.log_s * 1e3 < LOG_WINDOWS_MIN * WINDOW_MS or math.isnan(large.steady_us):
        sys.exit(f"the log spans {large.log_s:.1f} s, too short for a window of {WINDOW_MS} ms: raise --large")
    steady = {
        "steady_cpu_us_per_decision": round(large.steady_us, 3),
        "log_windows": round(large.log_s * 1e3 / WINDOW_MS, 1),
    }
    return {**difference(small, large), **steady}


def spread(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """min, median, max of each figure."""
    return {key: [f([row[key] for row in rows]) for f in (min, statistics.median, max)] for key in rows[0]}


def main() -> None:
    """Run everything in turn and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", type=int, default=200_000)
    parser.add_argument("--large", type=int, default=2_200_000)
    parser.add_argument(
        "--large-ingest", type=int, default=700_000, help="of the runs with ingest: see INGEST_WINDOW_MS"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = broker.start(folder / "broker", port=0, tied=True)
        try:
            rows: dict[str, list[dict[str, float]]] = {"headrace": [], "dict": [], "headrace_from_users_topics": []}
            for ingest in (False, True):  # compiles and caches the kernels: once per installation, not per start
                headrace_run(running.bootstrap, folder, options.small, 99, ingest)
            for seed in range(options.runs):
                sizes = (options.small, options.large)
                here = running.bootstrap
                rows["headrace"].append(with_steady(*(headrace_run(here, folder, n, seed, False) for n in sizes)))
                rows["dict"].append(with_steady(*(dict_run(here, folder, n, seed) for n in sizes)))
                rows["headrace_from_users_topics"].append(
                    difference(
                        *(headrace_run(here, folder, n, seed, True) for n in (options.small, options.large_ingest))
                    )
                )
                print({key: value[-1] for key, value in rows.items()}, flush=True)
        finally:
            broker.stop(folder / "broker")
    result: dict[str, Any] = {key: spread(value) for key, value in rows.items()}
    for of in ("cpu_us_per_decision", "steady_cpu_us_per_decision"):
        ours, theirs = (result[key][of][1] for key in ("headrace", "dict"))
        result[f"dict_over_headrace_{of}"] = round(theirs / ours, 2)
    whole = result["headrace_from_users_topics"]["cpu_us_per_decision"][1]
    result["cpu_us_per_event_from_users_topics"] = round(whole / (1 + OUTCOME_SHARE), 2)
    result["journal_records_per_s"] = round(result["headrace"]["decisions_per_s"][1] * (1 + OUTCOME_SHARE))
    result["events"] = {
        "outcome_share": OUTCOME_SHARE,
        "rows_per_block": ROWS,
        "sizes": [options.small, options.large, options.large_ingest],
    }
    keep("join_throughput", result)


if __name__ == "__main__":
    main()
