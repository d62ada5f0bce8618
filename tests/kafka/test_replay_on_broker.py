"""`headrace replay`: published versions rebuilt from checkpoints and from nothing, bit for bit, on a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from deploy import processes
from deploy.replay import replay
from learner import checkpoint
from learner.loop import Loop
from learner.settings import LearnerSettings
from schemas.errors import UserError
from schemas.topics import topic
from tests.kafka.learner_process import ActionMeans, Log, Snapshots, project, running, settings_of

PARTITIONS = 2
RANDOM_VERSIONS = 20


@pytest.fixture
def log(broker: str, namespace: str, create_topics: Callable[..., None]) -> Log:
    create_topics(PARTITIONS)
    return Log(broker, project(namespace, PARTITIONS))


def published(log: Log, settings: LearnerSettings, num_versions: int, restarts: int = 0) -> list[int]:
    """Versions of a learner that ran until it had published so many, stopped and started now and then."""
    snapshots = Snapshots(log.bootstrap, log.namespace)
    give_up = time.monotonic() + 120

    def learn(until: int) -> Loop:
        with running(settings) as loop:
            while len({m.version for m in snapshots.manifests}) < until:
                assert time.monotonic() < give_up, "no progress"
                log.tick(7)
                snapshots.poll(0.1)
                time.sleep(0.1)
        return loop

    for step in range(1, restarts + 2):
        learn(num_versions * step // (restarts + 1))
    while snapshots.poll(1.0) is not None:
        pass
    snapshots.close()
    return sorted({m.version for m in snapshots.manifests})


@pytest.mark.timeout(240)
def test_20_random_versions_are_rebuilt_bit_for_bit(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_cuts=5)
    versions = published(log, settings, 26, restarts=2)
    files = checkpoint.files(settings.checkpoints)
    assert len(files) == settings.checkpoints_kept
    rng = Random(20)
    starts = set()
    for version in rng.sample(versions, RANDOM_VERSIONS):
        done = replay(settings, version, from_earliest=rng.random() < 0.3, make=ActionMeans)
        assert done.is_equal, done.as_json()
        assert done.changed == []
        assert done.start_version < version
        starts.add(done.start)
    assert "nothing, at the log's beginning" in starts
    assert any("checkpoint" in start or "anchor" in start for start in starts)


def test_a_learner_that_learns_something_else_is_found_out(log: Log, tmp_path: Path) -> None:
    class Differs(ActionMeans):
        def learn(self, rows: object) -> None:
            super().learn(rows)  # type: ignore[arg-type]  # handed through
            self._sums[2] += 1e-3

    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    version = published(log, settings, 3)[-1]
    done = replay(settings, version, make=Differs)
    assert not done.is_equal
    assert done.published_sha256 != done.rebuilt_sha256


def fork(log: Log) -> None:
    """The next rows of partition 0 leave out the row before them."""
    send = log._send

    def other_history(name: str, partition: int, record: Any, key: bytes | None = None) -> None:
        send(name, partition, replace(record, prev=record.prev - 1), key)

    log._send = other_history  # type: ignore[method-assign]  # for one block
    log.rows(0, [int(time.time() * 1000)])
    log._send = send  # type: ignore[method-assign]


def test_at_a_fork_learner_restarted_learner_and_replay_end_with_the_same_version(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    published(log, settings, 3)
    fork(log)
    cuts = []
    for _ in range(2):
        with running(settings) as loop:
            give_up = time.monotonic() + 60
            while not hasattr(loop, "_uploads") or loop._merge.stopped != [0]:
                assert time.monotonic() < give_up, "the fork was not met"
                time.sleep(0.05)
            for _ in range(10):
                log.tick(7)
                time.sleep(0.1)
            assert loop._ready() == "a fork stopped partitions [0]"
            cuts.append((loop._learner.cut.version, loop._merge.positions()[0]))
    assert cuts[0] == cuts[1]
    snapshots = Snapshots(log.bootstrap, log.namespace)
    while snapshots.poll(1.0) is not None:
        pass
    snapshots.close()
    newest = max(manifest.version for manifest in snapshots.manifests)
    assert newest == cuts[0][0], "the last cut before the fork is published"
    for from_earliest in (False, True):
        assert replay(settings, newest, from_earliest, make=ActionMeans).is_equal


def test_where_the_prefix_is_gone_the_earliest_reachable_version_is_named_and_can_be_rebuilt(
    log: Log, tmp_path: Path
) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_cuts=4, anchors_kept=0)
    versions = published(log, settings, 14)
    starts = [checkpoint.document_of(path) for path in checkpoint.files(settings.checkpoints)]
    assert starts[0] is not None
    positions, reached = starts[0]["positions"], starts[0]["learner"]["cut"]["number"]
    admin = AdminClient({"bootstrap.servers": log.bootstrap})
    name = topic(log.namespace, "transitions")
    gone = [TopicPartition(name, each["partition"], each["offset"]) for each in positions]
    for future in admin.delete_records(gone).values():
        future.result(10)
    with pytest.raises(UserError, match="out of reach") as caught:
        replay(settings, versions[0], make=ActionMeans)
    assert f"the earliest version that can be rebuilt is {reached + 1}" in caught.value.message
    within = next(version for version in versions if version > reached)
    assert replay(settings, within, make=ActionMeans).is_equal
    damaged = checkpoint.files(settings.checkpoints)[-1]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert replay(settings, versions[-1], make=ActionMeans).is_equal, "another start serves as well"
    for path in checkpoint.files(settings.checkpoints):
        path.unlink()
    with pytest.raises(UserError, match="every version of its history") as caught:
        replay(settings, versions[-1], make=ActionMeans)
    assert "HEADRACE_ANCHORS_KEPT" in caught.value.remedy


def test_a_version_that_was_never_published_is_one_sentence(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    with pytest.raises(UserError, match=r"never published .*none is"):
        replay(settings, 1, make=ActionMeans)
    versions = published(
        log, settings, 2
    )  # a learner that is behind publishes only its newest cut: not always from 1 on
    with pytest.raises(UserError, match=f"published are {versions[0]} to {versions[-1]}"):
        replay(settings, versions[-1] + 100, make=ActionMeans)


@pytest.mark.timeout(240)
def test_the_command_rebuilds_what_the_real_learner_published(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    environment = {
        **os.environ,
        "HEADRACE_BOOTSTRAP": settings.bootstrap,
        "HEADRACE_NAMESPACE": settings.namespace,
        "HEADRACE_STATE_DIR": str(settings.state_dir),
        "HEADRACE_SIGNING_KEY": str(settings.signing_key),
        "HEADRACE_PUBLIC_KEY": str(tmp_path / "keys" / "headrace.public.pem"),
        "HEADRACE_DEVICE": "cpu",
    }
    snapshots = Snapshots(log.bootstrap, log.namespace)
    with (tmp_path / "learn.log").open("wb") as said:
        learner = processes.spawn([sys.executable, "-m", "deploy", "learn"], said, environment=environment)
    try:
        give_up = time.monotonic() + 120
        while len(snapshots.manifests) < 5:
            assert time.monotonic() < give_up, (tmp_path / "learn.log").read_text()
            log.tick(40)
            snapshots.poll(0.2)
        version, out = snapshots.manifests[-1].version, tmp_path / "rebuilt.safetensors"
        command = [sys.executable, "-m", "deploy", "replay", "--to", str(version), "--json", "--out", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    finally:
        learner.kill()
        learner.wait(10)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["equal"]
    assert told["rebuilt_sha256"] == snapshots.manifests[-1].sha256.hex()
    assert out.stat().st_size == snapshots.manifests[-1].size_bytes
    snapshots.close()
