"""What the learner's tests on a real broker share: a small learner with a real policy, its process, and its log.

Run as a script it is a learner process whose settings come from the environment, to be killed at will.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from learner.loop import Loop
from learner.namespace import RowLearner
from learner.settings import LearnerSettings
from schemas import codec, signing_keys
from schemas.arrays import empty
from schemas.blocks import TransitionBlock
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.records import ChainPosition, Progress, Resume, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import load_settings
from schemas.task import Project, Task, parse
from schemas.topics import topic

REGISTRY = FileRegistry()
Arrays = Mapping[str, np.ndarray[Any, Any]]


class ActionMeans:
    """Mean reward per action: a policy that the real forward pass can score, and that any swapped row changes."""

    def __init__(self, task: Task) -> None:
        self._num_actions = len(task.actions)
        self._sums = np.zeros((3, self._num_actions))

    def learn(self, rows: TransitionBlock) -> None:
        """Counts, sums, and a sum that forgets: the order matters."""
        for action, reward in zip(rows.columns.chosen[:, 0].tolist(), rows.rewards[:, 0].tolist(), strict=True):
            self._sums[2] *= 0.999
            self._sums[:, action] += [1.0, reward, reward + 0.1]

    def weights(self) -> Arrays:
        """Arrays of `learner.policy.network` with the wide head alone."""
        counts, rewards, fading = self._sums
        wide = np.zeros((2, self._num_actions))
        wide[0] = rewards / np.maximum(counts, 1.0) + fading * 1e-6
        return {
            "stats": np.array([counts.sum(), rewards.sum() / max(counts.sum(), 1.0), 0.25, 1e-6, 0.0, 0.0]),
            "stack": np.ones(1),
            "action_rows": counts.astype(np.int64),
            "x_mean": np.zeros(1),
            "x_scale": np.ones(1),
            "a_mean": np.zeros(0),
            "a_scale": np.zeros(0),
            "wide": wide,
        }

    def state(self) -> Arrays:
        return {"sums": self._sums.copy()}

    def load_state(self, state: Arrays) -> None:
        self._sums = np.array(state["sums"])

    @property
    def num_rows(self) -> int:
        return int(self._sums[0].sum())

    @property
    def num_failed_solves(self) -> int:
        return 0


def project(namespace: str, partitions: int) -> Project:
    """One task with three actions and one number."""
    return parse(f"""
[namespace]
name = "{namespace}"
partitions = {partitions}
[[tasks]]
name = "made-up"
actions = ["a", "b", "c"]
[tasks.context]
x = {{ kind = "number" }}
[tasks.learner]
deep = false
cross = false
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
""")


@dataclass
class Log:
    """Writes what join workers would: transitions and progress of every partition."""

    bootstrap: str
    project: Project

    def __post_init__(self) -> None:
        self.namespace = self.project.namespace.name
        self.producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 0, "log_level": 2})
        self._hwm = [-1] * self.project.namespace.partitions
        for record in self.project.records():
            self._send("tasks", 0, record, record.fingerprint)
        self.producer.flush(10)

    def _send(self, name: str, partition: int, record: Any, key: bytes | None = None) -> None:
        payload = codec.encode(record, REGISTRY)
        self.producer.produce(topic(self.namespace, name), payload, key, partition=partition)
        self.producer.poll(0)

    def rows(self, partition: int, closed_at_ms: list[int]) -> None:
        """Rows of the one task that closed then."""
        task, n = self.project.tasks[0], len(closed_at_ms)
        prev = self._hwm[partition]
        positions = np.arange(prev + 1, prev + 1 + n, dtype=np.int64)
        marks = positions * 7919 + partition * 104_729
        columns = DecisionColumns(
            features=self.features(marks),
            catalogue=task.catalogue,
            chosen=(marks[:, None] % 3).astype(np.int32),
            propensities=np.tile(np.array([1 << 23, 1 << 22, 1 << 22], np.int32), n),
            reasons=np.zeros(n, np.uint8),
            values=empty(np.float64, 0, 1),
            bounds=empty(np.float64, 0, 2),
            terminal=empty(np.uint8),
            steps=empty(np.int32),
            episode_keys=empty(np.uint64),
        )
        block = TransitionBlock(
            partition=partition,
            task=task.name,
            fingerprint=task.fingerprint,
            kind=0,
            prev=prev,
            positions=positions,
            closed_at_ms=np.array(closed_at_ms, np.int64),
            buckets=np.zeros(n, np.uint8),
            flags=np.zeros(n, np.uint8),
            rewards=(marks[:, None] % 5 == 0).astype(np.float32),
            num_outcomes=np.ones(n, np.int32),
            snapshot_versions=np.zeros(n, np.int64),
            decision_keys=np.zeros((n, 2), np.uint64),
            columns=columns,
        )
        self._hwm[partition] = int(positions[-1])
        self._send("transitions", partition, block)

    def features(self, marks: np.ndarray[Any, Any]) -> FeatureColumns:
        """Encoded features of rows, one per mark."""
        return FeatureColumns(
            context=(marks[:, None] % 11).astype(np.float32),
            num_candidates=np.full(len(marks), 3, np.int32),
            actions=empty(np.float32, 0, 0),
            action_keys=empty(np.uint64),
            context_token_counts=empty(np.int32),
            context_tokens=empty(np.int32),
            context_token_values=empty(np.float32),
            action_token_counts=empty(np.int32),
            action_tokens=empty(np.int32),
            action_token_values=empty(np.float32),
        )

    def progress(self, partition: int, time_ms: int) -> None:
        """T reached `time_ms`, everything sent so far accepted."""
        hwm, task = self._hwm[partition], self.project.tasks[0]
        chains = (ChainPosition(task.fingerprint, 0, hwm),) if hwm >= 0 else ()
        self._send("transitions", partition, Progress(partition, time_ms, 0, 0, chains, Resume(0), {}, {}))

    def tick(self, rows_each: int) -> int:
        """Some rows that close now in every partition, then progress; returns T."""
        now_ms = int(time.time() * 1000)
        for partition in range(self.project.namespace.partitions):
            self.rows(partition, [now_ms] * rows_each)
        for partition in range(self.project.namespace.partitions):
            self.progress(partition, now_ms + 1)
        return now_ms


class Snapshots:
    """Reads manifests as they come."""

    def __init__(self, bootstrap: str, namespace: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "test",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
                "log_level": 2,  # the outage test stops the broker under it
            }
        )
        self._consumer.assign([TopicPartition(topic(namespace, "snapshots"), 0, 0)])
        self.manifests: list[SnapshotManifest] = []
        self.times_ms: list[int] = []

    def poll(self, timeout_s: float = 0.1) -> SnapshotManifest | None:
        """The next manifest, None when none came in time."""
        message = self._consumer.poll(timeout_s)
        if message is None or message.error() is not None:
            return None
        payload = message.value()
        assert payload is not None
        manifest = codec.decode(payload, REGISTRY, expect=SnapshotManifest)
        assert isinstance(manifest, SnapshotManifest)
        self.manifests.append(manifest)
        self.times_ms.append(message.timestamp()[1])
        return manifest

    def wait_for(self, condition: Any, timeout_s: float = 60.0) -> SnapshotManifest:
        """The first manifest from now on that meets `condition`."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            manifest = self.poll()
            if manifest is not None and condition(manifest):
                return manifest
        raise AssertionError(f"not published within {timeout_s} s; so far {[m.version for m in self.manifests]}")

    def close(self) -> None:
        self._consumer.close()


def settings_of(bootstrap: str, namespace: str, folder: Path, **values: Any) -> LearnerSettings:
    """Settings of a learner whose files lie in `folder`; keys are made there."""
    keys = folder / "keys"
    if not keys.exists():
        signing_keys.create_keys(keys)
    return load_settings(
        LearnerSettings,
        bootstrap=bootstrap,
        namespace=namespace,
        state_dir=folder,
        signing_key=keys / signing_keys.PRIVATE_KEY_FILE,
        device="cpu",
        **values,
    )


@contextmanager
def running(settings: LearnerSettings, make: Callable[[Task], RowLearner] = ActionMeans) -> Iterator[Loop]:
    """A learner in a thread of this process, stopped as by SIGTERM."""
    stop = threading.Event()
    loop = Loop(settings, stop)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            assert loop.run(make) == 0
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loop
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def spawn(settings: LearnerSettings) -> subprocess.Popen[bytes]:
    """A learner process with `ActionMeans`."""
    names = ("bootstrap", "namespace", "state_dir", "signing_key", "channel", "checkpoint_dir", "checkpoint_cuts")
    values = {f"HEADRACE_{name.upper()}": str(getattr(settings, name)) for name in names if getattr(settings, name)}
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        env={**os.environ, **values, "HEADRACE_DEVICE": "cpu", "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )


def main() -> int:
    """A learner process that SIGTERM ends."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return Loop(load_settings(LearnerSettings), stop).run(ActionMeans)


if __name__ == "__main__":
    sys.exit(main())
