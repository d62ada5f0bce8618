"""One lineage per namespace: two learners at once, another environment, a damaged checkpoint. On a real broker."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from learner import checkpoint
from learner.loop import Loop
from schemas.errors import UserError
from schemas.records import SnapshotManifest
from tests.kafka.learner_process import ActionMeans, Log, Snapshots, project, running, settings_of

PARTITIONS = 2
ALARM_S = 5.0


@pytest.fixture
def log(broker: str, namespace: str, create_topics: Callable[..., None]) -> Log:
    create_topics(PARTITIONS)
    return Log(broker, project(namespace, PARTITIONS))


class Differs(ActionMeans):
    """Learns something else from the same rows."""

    def learn(self, rows: object) -> None:
        super().learn(rows)  # type: ignore[arg-type]  # handed through
        self._sums[2] += 1e-3


def rest(snapshots: Snapshots) -> None:
    """Everything that is still to come."""
    while snapshots.poll(1.0) is not None:
        pass


def hashes(manifests: list[SnapshotManifest]) -> dict[int, set[bytes]]:
    found: dict[int, set[bytes]] = defaultdict(set)
    for manifest in manifests:
        found[manifest.version].add(manifest.sha256)
    return found


def test_two_learners_at_once_publish_the_same_bytes_and_do_no_harm(log: Log, tmp_path: Path) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    one = settings_of(log.bootstrap, log.namespace, tmp_path)
    two = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_dir=tmp_path / "by mistake")
    with running(one) as first, running(two) as second:
        for _ in range(40):
            log.tick(4)
            time.sleep(0.1)
        snapshots.wait_for(lambda m: sum(m.rows_learnt.values()) >= 150)
        rest(snapshots)
        for loop in (first, second):
            assert loop.metrics.value("headrace_learner_equivocations") == 0
        published = [loop.metrics.value("headrace_learner_snapshots_published") for loop in (first, second)]
        assert min(published) >= 1, "both were at work"
    assert all(len(each) == 1 for each in hashes(snapshots.manifests).values())
    assert len({manifest.environment["genesis"] for manifest in snapshots.manifests}) == 1
    snapshots.close()


def test_equivocation_raises_the_alarm_in_both_learners_within_five_seconds(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = settings_of(log.bootstrap, log.namespace, tmp_path)
    two = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_dir=tmp_path / "wrong")
    done = threading.Event()
    snapshots = Snapshots(log.bootstrap, log.namespace)

    def write() -> None:
        while not done.is_set():
            log.tick(4)
            done.wait(0.1)

    with caplog.at_level(logging.ERROR), running(one) as first, running(two, Differs) as second:
        until_ready(first, second)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            snapshots.wait_for(lambda m: True)
            began = time.monotonic()
            counts = [0.0, 0.0]
            while min(counts) < 1 and time.monotonic() < began + 30:
                counts = [loop.metrics.value("headrace_learner_equivocations") for loop in (first, second)]
                time.sleep(0.02)
            took_s = time.monotonic() - began
        finally:
            done.set()
            writer.join()
    assert max(counts) >= 1
    assert took_s < ALARM_S, f"alarms {counts} after {took_s:.1f} s"
    assert "sha256" in caplog.text
    snapshots.close()


def until_ready(*loops: Loop) -> None:
    """Both follow the log: what comes now they both see live."""
    give_up = time.monotonic() + 60
    while not all(hasattr(loop, "_uploads") for loop in loops):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    time.sleep(1.0)


def learn_some(log: Log, snapshots: Snapshots, rows: int) -> SnapshotManifest:
    """More rows, until a snapshot holds so many in all."""
    for _ in range(6):
        log.tick(4)
        time.sleep(0.1)
    closed_ms = log.tick(4)
    for partition in range(PARTITIONS):
        log.progress(partition, closed_ms + 2000)
    return snapshots.wait_for(lambda m: sum(m.rows_learnt.values()) >= rows)


def test_another_environment_goes_on_only_when_a_lineage_break_is_allowed(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    with running(settings_of(log.bootstrap, log.namespace, tmp_path)):
        before = learn_some(log, snapshots, 56)
    with pytest.raises(UserError, match=r"threads: '1' → '2'") as caught:
        Loop(settings_of(log.bootstrap, log.namespace, tmp_path, threads=2), threading.Event()).run(ActionMeans)
    assert "--allow-lineage-break" in caught.value.remedy
    assert f"version {before.version}" in caught.value.message
    allowed = settings_of(log.bootstrap, log.namespace, tmp_path, threads=2, allow_lineage_break=True)
    with running(allowed) as loop:
        after = learn_some(log, snapshots, 112)
        assert loop.metrics.value("headrace_learner_equivocations") == 0
    assert after.version > before.version
    assert after.environment["genesis"] != before.environment["genesis"]
    assert "threads: '1' → '2'" in after.environment["lineage_break"]
    assert before.environment["genesis"] in after.environment["lineage_break"]
    assert "lineage_break" not in before.environment
    with running(settings_of(log.bootstrap, log.namespace, tmp_path, threads=2)):
        later = learn_some(log, snapshots, 168)
    assert later.environment["lineage_break"] == after.environment["lineage_break"]
    assert later.environment["genesis"] == after.environment["genesis"]
    assert all(len(each) == 1 for each in hashes(snapshots.manifests).values())
    snapshots.close()


def test_without_checkpoints_another_environment_is_another_lineage_too(log: Log, tmp_path: Path) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    with running(settings):
        before = learn_some(log, snapshots, 56)
    for path in (*checkpoint.files(settings.checkpoints), *settings.checkpoints.glob("anchor-*")):
        path.unlink()
    with pytest.raises(UserError, match="threads"):
        Loop(settings_of(log.bootstrap, log.namespace, tmp_path, threads=2), threading.Event()).run(ActionMeans)
    allowed = settings_of(log.bootstrap, log.namespace, tmp_path, threads=2, allow_lineage_break=True)
    with running(allowed) as loop:
        after = learn_some(log, snapshots, 112)
        assert loop.metrics.value("headrace_learner_equivocations") == 0
    assert after.version > before.version
    assert "lineage_break" in after.environment
    snapshots.close()


def test_a_damaged_newest_checkpoint_costs_recomputation_and_is_named(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    settings = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_cuts=2)
    with running(settings):
        learn_some(log, snapshots, 56)
    newest = checkpoint.files(settings.checkpoints)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING), running(settings) as loop:
        after = learn_some(log, snapshots, 112)
        assert loop.metrics.value("headrace_learner_equivocations") == 0
    assert newest.name in caplog.text
    assert "passed over for the one before" in caplog.text
    found = hashes(snapshots.manifests)
    assert all(len(each) == 1 for each in found.values())
    fresh = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_dir=tmp_path / "fresh", channel="fresh")
    with running(fresh):
        snapshots.wait_for(lambda m: m.channel == "fresh" and m.version >= after.version)
    again = [m for m in snapshots.manifests if m.channel == "fresh" and m.version == after.version]
    assert {m.sha256 for m in again} <= {after.sha256}
    snapshots.close()
