"""Following the model topic on a real broker: what passes serves, what does not never does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.codec import encode
from schemas.errors import UserError
from schemas.records import DeadLetter
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project, Task, TaskTable
from schemas.topics import topic
from streams.snapshots import SnapshotFollower
from streams.trusted_version import TrustedVersion
from tests.kafka.decider_process import Shop, decider, project, route
from tests.kafka.snapshot_topic import REGISTRY, ModelTopic, favourite_of, weights_of
from tests.kafka.workers import bad_records, read_all, set_up, until


@dataclass
class World:
    """A namespace with topics, its project, the learner's side, and where a worker keeps its state."""

    settings: CommonSettings
    project: Project
    topic: ModelTopic

    @property
    def task(self) -> Task:
        return self.project.task("route")


@pytest.fixture
def world(broker: str, namespace: str, tmp_path: Path) -> World:
    wanted = project(namespace)
    set_up(broker, wanted)
    bare = load_settings(CommonSettings, bootstrap=broker, namespace=namespace, state_dir=tmp_path / "state")
    model = ModelTopic(bare, tmp_path, wanted.task("route"))
    return World(bare.model_copy(update={"public_key": model.public_key}), wanted, model)


@contextmanager
def following(world: World, table: TaskTable | None = None) -> Iterator[tuple[SnapshotFollower, list[str]]]:
    """A follower that has taken in what was there, and the reasons of its refusals."""
    refusals: list[str] = []
    known = TaskTable(world.project.tasks) if table is None else table
    follower = SnapshotFollower(world.settings, REGISTRY, known, on_refused=refusals.append)
    with follower:
        assert follower.wait_ready(20)
        yield follower, refusals


def _serves(follower: SnapshotFollower, version: int) -> None:
    until(lambda: follower.policy is not None and follower.policy.version == version, 15)


def test_a_published_snapshot_serves_within_a_second_or_so(world: World) -> None:
    with following(world) as (follower, refusals):
        assert follower.policy is None
        for version, favourite in ((1, 2), (2, 0), (5, 1)):
            world.topic.publish(version, favourite)
            _serves(follower, version)
            assert follower.policy is not None
            assert favourite_of(follower.policy, world.task) == favourite
            assert follower.policy.cut_ms == 1000 * version
    assert refusals == []


def test_a_start_takes_the_newest_manifest_and_not_all_of_them(world: World) -> None:
    for version in range(1, 13):
        world.topic.publish(version, version % 3)
    taken: list[int] = []
    follower = SnapshotFollower(
        world.settings, REGISTRY, TaskTable(world.project.tasks), on_swap=lambda policy: taken.append(policy.version)
    )
    with follower:
        assert follower.wait_ready(20)
        assert follower.policy is not None
    assert taken == [12]


def test_a_snapshot_of_many_chunks_is_put_together(world: World) -> None:
    world.topic.publish(1, 1, padding_bytes=3_500_000)
    with following(world) as (follower, _):
        assert follower.policy is not None
        assert favourite_of(follower.policy, world.task) == 1


def _flipped(payload: bytes) -> bytes:
    return payload[:-1] + bytes([payload[-1] ^ 1])


def _wrong_shape(task: Task) -> dict[str, Any]:
    return {**weights_of(task, 0), "wide": np.zeros((1, 2))}


REFUSED = "headrace_decide_snapshots_refused_total"
SPOILT: dict[str, tuple[str, Callable[[World], Any]]] = {
    "unsigned": (
        "no-signature",
        lambda world: world.topic.publish(2, spoil_signed=lambda m: replace(m, signature=b"")),
    ),
    "signed by another": (
        "bad-signature",
        lambda world: world.topic.publish(2, spoil_signed=lambda m: replace(m, signature=b"\1" * 64)),
    ),
    "altered after signing": (
        "bad-signature",
        lambda world: world.topic.publish(2, spoil_signed=lambda m: replace(m, cut_ms=m.cut_ms + 1)),
    ),
    "version of before": ("old-version", lambda world: world.topic.publish(0)),
    "same version, other content": ("old-version", lambda world: world.topic.publish(1, 2)),
    "altered chunk": ("wrong-sha256", lambda world: world.topic.publish(2, spoil_chunks=lambda c: [_flipped(c[0])])),
    "truncated chunk": ("wrong-size", lambda world: world.topic.publish(2, spoil_chunks=lambda c: [c[0][:-1]])),
    "too many chunks": (
        "too-large",
        lambda world: world.topic.publish(2, spoil_manifest=lambda m: replace(m, chunk_offsets=(0, 1, 2))),
    ),
    "size beyond the cap": (
        "too-large",
        lambda world: world.topic.publish(2, spoil_manifest=lambda m: replace(m, size_bytes=1 << 40)),
    ),
    "not safetensors": ("bad-weights", lambda world: world.topic.publish(2, spoil_payload=lambda p: b"\xff" * len(p))),
    "wrong shape": ("bad-weights", lambda world: _publish_without_probes(world, _wrong_shape(world.task))),
    "weights missing": (
        "missing-weights",
        lambda world: world.topic.publish(
            2, spoil_payload=lambda p: p.replace(world.task.fingerprint.hex().encode(), b"1" * 32)
        ),
    ),
    "other scores than the probes": (
        "probes",
        lambda world: world.topic.publish(2, spoil_payload=lambda p: _other_favourite(world)),
    ),
    "no manifest at all": ("unreadable-manifest", lambda world: world.topic.send(b"\0\0\0\0\0nonsense")),
}


def _publish_without_probes(world: World, weights: dict[str, Any]) -> None:
    good = weights_of(world.task, 0)
    from schemas import weights as tensors

    arrays = {f"{world.task.fingerprint.hex()}/{name}": array for name, array in weights.items()}
    world.topic.publish(2, weights=good, spoil_payload=lambda _: tensors.pack(arrays, {}))


def _other_favourite(world: World) -> bytes:
    from schemas import weights as tensors

    weights = weights_of(world.task, 2)
    return tensors.pack({f"{world.task.fingerprint.hex()}/{name}": array for name, array in weights.items()}, {})


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_snapshot_is_refused_for_its_reason_and_the_last_good_one_goes_on(world: World, spoilt: str) -> None:
    reason, publish = SPOILT[spoilt]
    world.topic.publish(1, 1)
    with following(world) as (follower, refusals):
        publish(world)
        until(lambda: refusals != [], 15)
        assert refusals == [reason]
        assert follower.policy is not None
        assert follower.policy.version == 1
        assert favourite_of(follower.policy, world.task) == 1
        world.topic.publish(3, 0)
        _serves(follower, 3)


def test_a_chunk_that_is_gone_is_a_reason(world: World) -> None:
    with following(world) as (_, refusals):
        world.topic.publish(1, spoil_manifest=lambda m: replace(m, chunk_offsets=(10_000,)))
        until(lambda: refusals == ["missing-chunk"], 15)


def test_the_trusted_version_survives_a_restart_and_nothing_below_it_loads(world: World) -> None:
    world.topic.publish(7, 1)
    with following(world) as (follower, _):
        _serves(follower, 7)
    stored = json.loads((world.settings.state_dir / f"{world.settings.namespace}.trusted-snapshot.json").read_text())
    assert stored["version"] == 7
    with following(world) as (follower, refusals):
        _serves(follower, 7)
        assert refusals == []
    TrustedVersion(world.settings.state_dir, world.settings.namespace).raise_to(8, b"8" * 32)
    with following(world) as (follower, refusals):
        assert refusals == ["old-version"]
        assert follower.policy is None
        assert follower.refused


def test_a_start_behind_a_spoilt_newest_takes_the_one_before(world: World) -> None:
    world.topic.publish(1, 1)
    world.topic.publish(2, 2, spoil_chunks=lambda chunks: [_flipped(chunks[0])])
    with following(world) as (follower, refusals):
        assert refusals == ["wrong-sha256"]
        _serves(follower, 1)


@pytest.mark.parametrize("bad", ["no manifest", "unsigned"])
def test_a_start_behind_any_number_of_bad_messages_takes_the_last_good_snapshot(world: World, bad: str) -> None:
    world.topic.publish(1, 1)
    for version in range(2, 45):  # more than are read at first
        if bad == "unsigned":
            world.topic.publish(version, spoil_signed=lambda manifest: replace(manifest, signature=b""))
        else:
            world.topic.send(b"rubbish")
    with following(world) as (follower, refusals):
        _serves(follower, 1)
        assert set(refusals) <= {"no-signature", "unreadable-manifest"}
        world.topic.publish(45, 2)
        _serves(follower, 45)


def test_a_task_that_becomes_known_later_is_served_by_the_same_snapshot(world: World) -> None:
    world.topic.publish(1, 1)
    table = TaskTable()
    with following(world, table) as (follower, refusals):
        assert follower.policy is not None
        assert not follower.policy.serves(world.task)
        table.add(world.task)
        until(lambda: follower.policy is not None and follower.policy.serves(world.task), 10)
        assert refusals == []


def test_an_upload_again_of_what_serves_is_passed_over(world: World) -> None:
    world.topic.publish(4, 1)
    with following(world) as (follower, refusals):
        serving = follower.policy
        world.topic.publish(4, 1)
        time.sleep(1.0)
        assert follower.policy is serving
        assert refusals == []


def test_without_a_public_key_a_follower_is_not_made(world: World) -> None:
    bare = world.settings.model_copy(update={"public_key": None})
    with pytest.raises(UserError, match="no public key"):
        SnapshotFollower(bare, REGISTRY, TaskTable())
    assert SnapshotFollower(bare, REGISTRY, TaskTable(), insecure_dev=True).policy is None


def test_loading_a_large_snapshot_does_not_hold_up_the_thread_that_decides(world: World) -> None:
    """A stall here would be one of 40 ms or more; other programs of this machine cause some of a few ms."""
    with following(world) as (follower, _):
        gaps: list[float] = []
        stop = threading.Event()

        def beat() -> None:
            last = time.perf_counter()
            while not stop.is_set():
                time.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        beating = threading.Thread(target=beat)
        beating.start()
        world.topic.publish(1, 1, padding_bytes=24 << 20)
        _serves(follower, 1)
        stop.set()
        beating.join()
    assert float(np.percentile(gaps, 95)) < 0.04


def test_a_decider_moves_to_the_snapshot_and_back_to_nothing_never(world: World, tmp_path: Path) -> None:
    with decider(world.settings, tmp_path, public_key=world.topic.public_key, insecure_dev="false") as process:
        shop = Shop(world.settings)
        shop.send(route(0))
        shop.collect(1)
        assert shop.decided()["r-0"][0]["reason"] == "no-snapshot"
        world.topic.publish(9, 2)
        until(lambda: process.metric("headrace_decide_snapshot_version") == 9, 20, process.said)
        world.topic.publish(10, 1, spoil_signed=lambda m: replace(m, signature=b"\2" * 64))
        until(lambda: process.metric("headrace_decide_snapshots_refused_total") == 1, 20, process.said)
        for number in range(1, 41):
            shop.send(route(number))
        shop.collect(41)
        shop.close()
        assert process.stop()[0] == 0
    answers = [shop.decided()[f"r-{number}"][0] for number in range(1, 41)]
    assert {(answer["reason"], answer["snapshot_version"]) for answer in answers} == {("policy", 9)}
    assert sum(answer["actions"] == ["other"] for answer in answers) > 30


@pytest.mark.timeout(120)
def test_bad_messages_of_the_model_topic_are_dead_letters_once_and_good_snapshots_serve(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    options = {"public_key": world.topic.public_key, "insecure_dev": "false"}
    good = encode(world.topic.publish(1, 1), REGISTRY)
    malformed = [*bad_records(good)[:-1], (good[:6] + b"\x01" + good[7:], "negative-length")]  # behind the version
    spoilt = ["unsigned", "altered after signing", "same version, other content", "altered chunk", "not safetensors"]
    expected = sorted([reason for _, reason in malformed] + [SPOILT[each][0] for each in spoilt])

    def letters() -> list[DeadLetter]:
        return [each[3] for each in read_all(world.settings, "dead-letters")]

    with (
        decider(world.settings, tmp_path, **options) as one,
        decider(world.settings, tmp_path / "other", **options) as two,
    ):
        both = (one, two)
        for each in spoilt:
            SPOILT[each][1](world)
        # Before more comes: of manifests that come together only the last few are looked at, whatever they are.
        until(lambda: all(each.metric(REFUSED) == len(spoilt) for each in both), 30, two.said)
        for version, (payload, _) in enumerate(malformed, start=10):
            world.topic.send(payload)
            world.topic.publish(version, version % 3)
        until(lambda: all(each.metric("headrace_decide_snapshot_version") == version for each in both), 30, one.said)
        until(lambda: all(each.metric(REFUSED) == len(expected) for each in both), 20, two.said)
        until(lambda: len(letters()) >= len(expected), 20, one.said)
        time.sleep(2.5)  # the other, which refused the same, would have told by now
        assert sorted(letter.reason for letter in letters()) == expected
        assert {(letter.topic, letter.partition) for letter in letters()} == {
            (topic(world.settings.namespace, "snapshots"), 0)
        }
        assert len({letter.offset for letter in letters()}) == len(expected)
        assert [each.process.poll() for each in both] == [None, None]
    for payload, _ in malformed:
        world.topic.send(payload)
    with decider(world.settings, tmp_path, **options) as late:
        until(lambda: late.metric("headrace_decide_snapshot_version") == version, 20, late.said)
        until(lambda: len(letters()) >= len(expected) + len(malformed), 20, late.said)
