"""A learner that dies in the middle of an upload, and the largest snapshots: whole or not at all, on a real broker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import reading
from schemas.settings import CommonSettings, load_settings
from schemas.task import Task, TaskTable
from schemas.topics import topic
from streams.policy import Policy
from streams.snapshots import SnapshotFollower
from tests.kafka.decider_process import project
from tests.kafka.snapshot_publisher import publish, snapshot_of, spawn
from tests.kafka.snapshot_topic import REGISTRY, ModelTopic, favourite_of
from tests.kafka.workers import set_up, until

CHUNKS = 8
PADDING = CHUNKS * 900 * 1024 - 100_000
"""Makes eight chunks, the last of them shorter."""


@dataclass
class World:
    settings: CommonSettings
    model: ModelTopic
    task: Task
    table: TaskTable

    def count(self, name: str) -> int:
        """Messages that stand in a topic."""
        return len(list(reading.read_all(self.settings, topic(self.settings.namespace, name))))


@pytest.fixture
def world(broker: str, namespace: str, tmp_path: Path) -> World:
    wanted = project(namespace)
    set_up(broker, wanted)
    bare = load_settings(CommonSettings, bootstrap=broker, namespace=namespace, state_dir=tmp_path / "state")
    model = ModelTopic(bare, tmp_path, wanted.task("route"))
    settings = bare.model_copy(update={"public_key": model.public_key})
    return World(settings, model, wanted.task("route"), TaskTable(wanted.tasks))


@contextmanager
def following(world: World) -> Iterator[tuple[SnapshotFollower, list[Policy], list[str]]]:
    """A follower, everything that has served, and the reasons of its refusals."""
    served: list[Policy] = []
    refusals: list[str] = []
    follower = SnapshotFollower(
        world.settings, REGISTRY, world.table, on_swap=served.append, on_refused=refusals.append
    )
    with follower:
        assert follower.wait_ready(20)
        yield follower, served, refusals


KILLS = (
    "publish.before-chunk=1",
    "publish.before-chunk=5",
    f"publish.before-chunk={CHUNKS}",
    *(f"publish.chunk-acked={k}" for k in range(1, CHUNKS + 1)),
    "publish.before-manifest=1",
)


@pytest.mark.timeout(240)
def test_a_learner_killed_between_any_two_chunks_leaves_nothing_that_serves(world: World) -> None:
    key = world.model.private_key_path
    with following(world) as (follower, served, refusals):
        world.model.publish(1, 1)
        until(lambda: follower.policy is not None, 15)
        left: set[int] = set()
        for number, fault in enumerate(KILLS):
            before = world.count("snapshot-chunks")
            process = spawn(world.settings, key, 10 + number, 2, PADDING, fault)
            _, said = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, said.decode()
            left.add(world.count("snapshot-chunks") - before)
            assert [policy.version for policy in served] == [1], fault
        assert world.count("snapshots") == 1
        assert {0, CHUNKS} < left, "some died before the first chunk, some after the last, some in between"
        assert refusals == []
        process = spawn(world.settings, key, 40, 2, PADDING, "publish.manifest-acked=1")
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        until(lambda: follower.policy is not None and follower.policy.version == 40, 15)
        assert follower.policy is not None
        assert favourite_of(follower.policy, world.task) == 2, "the manifest was acked: the commit point is passed"
        publish(world.settings, key, [snapshot_of(world.task, 41, 0, PADDING)])
        until(lambda: follower.policy is not None and follower.policy.version == 41, 15)
    assert [policy.version for policy in served] == [1, 40, 41]
    assert refusals == []


@pytest.mark.timeout(300)
def test_a_snapshot_of_128_mib_passes_a_broker_with_default_limits(world: World) -> None:
    """`deploy.broker` leaves every limit on messages at Kafka's default."""
    key = world.model.private_key_path
    with following(world) as (follower, served, refusals):
        world.model.publish(1, 1)
        until(lambda: follower.policy is not None, 15)
        snapshot = snapshot_of(world.task, 2, 2, 128 << 20)
        assert snapshot.draft.size_bytes > 128 << 20
        upload = threading.Thread(target=publish, args=(world.settings, key, [snapshot]))
        upload.start()
        until(lambda: refusals != [] or (follower.policy is not None and follower.policy.version == 2), 120)
        upload.join(10)
        assert follower.policy is not None
        assert favourite_of(follower.policy, world.task) == 2
    assert [policy.version for policy in served] == [1, 2]
    assert refusals == []
