"""The learner, all experts included, killed at every named point and at random times: the same state, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from learner import checkpoint
from learner.checkpoint import Checkpoint
from learner.settings import LearnerSettings
from schemas import codec
from schemas.decision_columns import TEXT_TOKEN, FeatureColumns
from schemas.fault_points import POINTS
from schemas.records import SnapshotManifest
from schemas.task import Project, parse
from tests.kafka.killed_learner import Helper
from tests.kafka.learner_process import REGISTRY, Log, Snapshots, settings_of

PARTITIONS = 2
ROWS = 24
"""Per tick and partition."""
TICKS = 5
"""Written before each run: several cuts, and half a step of the deep expert."""
ROUNDS = 3
"""Times each point kills, at a random count."""
RANDOM_KILLS = 6
LEARNER_POINTS = [name for name in POINTS if name.split(".")[0] in ("checkpoint", "learner", "publish")]
TOML = """
[namespace]
name = "{namespace}"
partitions = {partitions}
publish = "100ms"
[[tasks]]
name = "made-up"
actions = ["a", "b", "c"]
[tasks.context]
x = {{ kind = "number" }}
said = {{ kind = "text" }}
[tasks.learner]
cross_bits = 12
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""


class Words(Log):
    """Rows with a number and a few words each: every expert has something to learn."""

    def features(self, marks: np.ndarray[Any, Any]) -> FeatureColumns:
        counts = (1 + marks % 4).astype(np.int32)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        tokens = (np.repeat(marks, counts) * 31 + (np.arange(int(counts.sum())) - firsts) * 7) % 997 | TEXT_TOKEN
        return replace(
            super().features(marks),
            context_token_counts=counts,
            context_tokens=tokens.astype(np.int32),
            context_token_values=np.ones(len(tokens), np.float32),
        )

    def write(self, now_ms: int) -> int:
        """`TICKS` of them from log time `now_ms` on; the log time after them."""
        for _ in range(TICKS):
            for partition in range(PARTITIONS):
                self.rows(partition, [now_ms] * ROWS)
            now_ms += 150
            for partition in range(PARTITIONS):
                self.progress(partition, now_ms)
        self.producer.flush(10)
        return now_ms


def project(namespace: str) -> Project:
    return parse(TOML.format(namespace=namespace, partitions=PARTITIONS))


@pytest.fixture
def log(broker: str, namespace: str, create_topics: Callable[..., None]) -> Words:
    create_topics(PARTITIONS)
    return Words(broker, project(namespace))


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    made = Helper(tmp_path / "learners.log")
    yield made
    made.close()


def whole(helper: Helper, settings: LearnerSettings, snapshots: Snapshots, num_rows: int) -> Checkpoint:
    """The state after the whole log: a learner that reads it to its end and then ends by itself."""
    pid = helper.start(settings)
    snapshots.wait_for(
        lambda m: m.channel == settings.channel and sum(m.rows_learnt.values()) == num_rows, timeout_s=120
    )
    os.kill(pid, signal.SIGTERM)
    assert helper.ended(pid, 20) == 0
    found = checkpoint.newest(settings.checkpoints)
    assert found is not None
    return found


def draft_of(state: Checkpoint) -> SnapshotManifest:
    """The newest cut's manifest, without what names the channel and the day's anchor."""
    draft = codec.decode(b64decode(state.document["draft"]), REGISTRY, expect=SnapshotManifest)
    assert isinstance(draft, SnapshotManifest)
    return replace(draft, channel="", environment=draft.environment | {"anchor": ""})


def assert_equal(killed: Checkpoint, lived: Checkpoint) -> None:
    """Weights, optimiser, second-order sums, replay ring, offsets, hash chain: everything, bit for bit."""
    assert sorted(killed.arrays) == sorted(lived.arrays)
    parts = Counter(name.split("/")[2].split(".")[0] for name in lived.arrays if name.startswith("task/"))
    assert {"wide", "deep", "cross", "stack", "drift", "pending"} <= set(parts), parts
    assert any("ring_" in name for name in lived.arrays), "the replay ring is part of it"
    for name, array in lived.arrays.items():
        assert killed.arrays[name].dtype == array.dtype, name
        assert killed.arrays[name].tobytes() == array.tobytes(), name
    for name in ("positions", "learner", "topic_id", "environment"):
        assert killed.document[name] == lived.document[name], name
    assert draft_of(killed) == draft_of(lived)


@pytest.mark.timeout(900)
def test_killed_at_every_named_point_and_at_random_times_the_state_is_that_of_a_learner_that_lived(
    log: Words, helper: Helper, tmp_path: Path
) -> None:
    rng = Random(7)
    snapshots = Snapshots(log.bootstrap, log.namespace)
    common = {"checkpoint_cuts": 2}
    settings = settings_of(
        log.bootstrap, log.namespace, tmp_path, channel="killed", checkpoint_dir=tmp_path / "killed", **common
    )
    runs = [name for name in LEARNER_POINTS for _ in range(ROUNDS)] + ["*"] * RANDOM_KILLS + [""] * RANDOM_KILLS
    rng.shuffle(runs)
    now_ms, died_at = int(time.time() * 1000), Counter[str]()
    for run in runs:
        now_ms = log.write(now_ms)
        few = run.startswith("publish.") or run in ("checkpoint.before-prune", "checkpoint.after-write")
        faults = f"{run}={rng.randint(1, 25 if run == '*' else 1 if few else 2)}" if run else ""
        pid = helper.start(settings, faults)
        code = helper.ended(pid, 10.0 if run else rng.uniform(0.2, 1.5))
        assert code == -signal.SIGKILL, (tmp_path / "learners.log").read_text()[-3000:]
        died_at[run or "random time"] += 1
    said = (tmp_path / "learners.log").read_text()
    reached = Counter(re.findall(r"fault point (\S+): SIGKILL", said))
    for partition in range(PARTITIONS):
        log.progress(partition, now_ms + 2000)
    num_rows = len(runs) * TICKS * ROWS * PARTITIONS
    killed = whole(helper, settings, snapshots, num_rows)
    lived = whole(
        helper,
        settings_of(
            log.bootstrap, log.namespace, tmp_path, channel="lived", checkpoint_dir=tmp_path / "lived", **common
        ),
        snapshots,
        num_rows,
    )
    assert_equal(killed, lived)
    assert sum(died_at.values()) == len(runs) >= 50
    assert set(reached) == set(LEARNER_POINTS), "each point killed at least once"
    assert reached.total() >= len(runs) - 2 * RANDOM_KILLS, f"{reached} of {died_at}"
    while snapshots.poll(0.5) is not None:
        pass
    published = [(m.version, m.sha256) for m in snapshots.manifests if m.channel == "killed"]
    assert len({version for version, _ in published}) == len(set(published)), "one version, one hash"
    by_version = dict(published)
    both = [m for m in snapshots.manifests if m.channel == "lived" and m.version in by_version]
    assert both
    assert all(by_version[m.version] == m.sha256 for m in both)
    said = (tmp_path / "learners.log").read_text()
    assert "equivocation" not in said
    assert "bit identity is broken" not in said
    snapshots.close()
