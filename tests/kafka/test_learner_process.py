"""The learner's process on a real broker: what it publishes, and what a kill, an outage or a bad start leave behind."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from deploy import broker as local_broker
from deploy import topics
from learner import checkpoint
from learner.loop import Loop
from learner.policy import probes
from schemas import codec, signing_keys, weights
from schemas.errors import UserError
from schemas.records import SnapshotManifest
from schemas.settings import CommonSettings
from schemas.topics import topic
from tests.kafka.learner_process import ActionMeans, Log, Snapshots, project, running, settings_of, spawn
from tests.kafka.workers import REGISTRY, bad_records, read_all

PARTITIONS = 2


def payload_of(bootstrap: str, namespace: str, manifest: SnapshotManifest) -> bytes:
    """All chunks of a manifest, read at the offsets that it names."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False})
    name, pieces = topic(namespace, "snapshot-chunks"), []
    for index, offset in enumerate(manifest.chunk_offsets):
        consumer.assign([TopicPartition(name, 0, offset)])
        message = consumer.poll(10)
        assert message is not None
        assert message.offset() == offset
        assert message.key() == f"{manifest.sha256.hex()}/{index}".encode()
        pieces.append(message.value() or b"")
    consumer.close()
    return b"".join(pieces)


@pytest.fixture
def log(broker: str, namespace: str, create_topics: Callable[..., None]) -> Log:
    create_topics(PARTITIONS)
    return Log(broker, project(namespace, PARTITIONS))


def test_published_snapshot_is_signed_whole_and_scores_as_its_probes_say(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    snapshots = Snapshots(log.bootstrap, log.namespace)
    with running(settings):
        for _ in range(12):
            log.tick(5)
            time.sleep(0.1)
        manifest = snapshots.wait_for(lambda m: sum(m.rows_learnt.values()) >= 40)
    public_key = signing_keys.load_public_key(tmp_path / "keys" / signing_keys.PUBLIC_KEY_FILE)
    assert weights.verify(manifest, public_key)
    assert not weights.verify(replace(manifest, version=manifest.version + 1), public_key)
    payload = payload_of(log.bootstrap, log.namespace, manifest)
    assert weights.sha256(payload) == manifest.sha256
    arrays, _ = weights.unpack(payload)
    task = log.project.tasks[0]
    prefix = f"{task.fingerprint.hex()}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items()}
    assert probes.check(manifest.probes, {task.fingerprint: task}, {task.fingerprint: own}) is None
    spoilt = own | {"wide": own["wide"] + 0.001}
    complaint = probes.check(manifest.probes, {task.fingerprint: task}, {task.fingerprint: spoilt})
    assert complaint is not None
    assert "scores differ" in complaint
    assert manifest.environment["threads"] == "1"
    assert [position.partition for position in manifest.trained] == [0, 1]
    snapshots.close()


def num_in_both(snapshots: Snapshots) -> int:
    """Versions that the learner that lived and the one that was killed have both published so far."""
    lived, killed = ({m.version for m in snapshots.manifests if m.channel == name} for name in ("lived", "killed"))
    return len(lived & killed)


def test_killed_again_and_again_it_publishes_what_a_learner_that_lived_publishes(log: Log, tmp_path: Path) -> None:
    common = {"checkpoint_cuts": 2}
    lived = settings_of(
        log.bootstrap, log.namespace, tmp_path, channel="lived", checkpoint_dir=tmp_path / "a", **common
    )
    killed = settings_of(
        log.bootstrap, log.namespace, tmp_path, channel="killed", checkpoint_dir=tmp_path / "b", **common
    )
    snapshots = Snapshots(log.bootstrap, log.namespace)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            log.tick(4)
            done.wait(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with running(lived):
            for _ in range(2):
                process = spawn(killed)
                version = max((m.version for m in snapshots.manifests if m.channel == "killed"), default=0)
                snapshots.wait_for(lambda m, v=version: m.channel == "killed" and m.version > v + 2, 60)
                process.send_signal(signal.SIGKILL)
                process.communicate()
            process = spawn(killed)
            version = max(m.version for m in snapshots.manifests if m.channel == "killed")
            snapshots.wait_for(lambda m: m.channel == "killed" and m.version > version + 2, 60)
            # In catch-up each uploads only its newest cut, so how many both upload is known only by counting.
            snapshots.wait_for(lambda m: num_in_both(snapshots) >= 8, 60)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            _, stderr = process.communicate(timeout=10)
            assert process.returncode == 0, stderr.decode()
            assert time.monotonic() - started < 10
    finally:
        done.set()
        writer.join()
    while snapshots.poll(1.0) is not None:
        pass
    by_channel = {
        name: {m.version: m for m in snapshots.manifests if m.channel == name} for name in ("lived", "killed")
    }
    both = set(by_channel["lived"]) & set(by_channel["killed"])
    assert len(both) >= 8
    for version in both:
        one, other = by_channel["lived"][version], by_channel["killed"][version]
        assert one.sha256 == other.sha256
        assert one.chain_hash == other.chain_hash
        assert one.cut_ms == other.cut_ms
    published = [(m.version, m.sha256) for m in snapshots.manifests if m.channel == "killed"]
    assert len(published) == len({version for version, _ in published}), "no version is published twice"
    assert [version for version, _ in published] == sorted(version for version, _ in published)
    assert "equivocation" not in stderr.decode()
    snapshots.close()


def test_learner_that_lost_its_checkpoints_makes_the_same_cuts_and_publishes_none_twice(
    log: Log, tmp_path: Path
) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)
    with running(settings):
        for _ in range(10):
            log.tick(3)
            time.sleep(0.15)
        first = snapshots.wait_for(lambda m: m.version >= 2)
    for path in checkpoint.files(settings.checkpoints):
        path.unlink()
    while snapshots.poll(0.5) is not None:
        pass
    highest = max(m.version for m in snapshots.manifests)
    with running(settings) as loop:
        for _ in range(10):
            log.tick(3)
            time.sleep(0.15)
        later = snapshots.wait_for(lambda m: m.version > highest + 1)
        assert loop.metrics.value("headrace_learner_equivocations") == 0
    versions = [m.version for m in snapshots.manifests]
    assert versions == sorted(set(versions))
    assert later.environment["genesis"] == first.environment["genesis"]
    snapshots.close()


def test_other_bytes_under_a_published_version_raise_the_alarm_and_are_not_published(log: Log, tmp_path: Path) -> None:
    class Differs(ActionMeans):
        def learn(self, rows: object) -> None:
            super().learn(rows)  # type: ignore[arg-type]  # handed through
            self._sums[2] += 1e-3

    snapshots = Snapshots(log.bootstrap, log.namespace)
    with running(settings_of(log.bootstrap, log.namespace, tmp_path)):
        for _ in range(10):
            log.tick(3)
            time.sleep(0.15)
        snapshots.wait_for(lambda m: m.version >= 2)
    while snapshots.poll(0.5) is not None:
        pass
    before = len(snapshots.manifests)
    other = settings_of(log.bootstrap, log.namespace, tmp_path, checkpoint_dir=tmp_path / "other")
    stop = threading.Event()
    loop = Loop(other, stop)
    thread = threading.Thread(target=loop.run, args=(Differs,))
    thread.start()
    give_up = time.monotonic() + 15
    while loop.metrics.value("headrace_learner_equivocations") < 1 and time.monotonic() < give_up:
        time.sleep(0.05)
    stop.set()
    thread.join(10)
    assert loop.metrics.value("headrace_learner_equivocations") >= 1
    assert snapshots.poll(0.5) is None
    assert len(snapshots.manifests) == before
    snapshots.close()


def test_current_version_is_uploaded_again_with_the_same_bytes_at_new_offsets(log: Log, tmp_path: Path) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    with running(settings_of(log.bootstrap, log.namespace, tmp_path, reupload_s=1.0)):
        closed_ms = log.tick(5)
        for partition in range(PARTITIONS):
            log.progress(partition, closed_ms + 2000)
        first = snapshots.wait_for(lambda m: True)
        again = snapshots.wait_for(lambda m: True)
    assert again.version == first.version
    assert again.sha256 == first.sha256
    assert again.chunk_offsets != first.chunk_offsets
    assert payload_of(log.bootstrap, log.namespace, again) == payload_of(log.bootstrap, log.namespace, first)
    snapshots.close()


def test_malformed_record_and_a_hole_are_reported_and_learning_goes_on(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(log.bootstrap, log.namespace)
    log.producer.produce(topic(log.namespace, "transitions"), b"\x00garbage", partition=0)
    assert log.producer.flush(10) == 0  # before the rows: behind them a snapshot may come first
    with caplog.at_level(logging.ERROR), running(settings_of(log.bootstrap, log.namespace, tmp_path)) as loop:
        closed_ms = log.tick(5)
        for partition in range(PARTITIONS):
            log.progress(partition, closed_ms + 2000)
        snapshots.wait_for(lambda m: True)
        assert loop.metrics.value("headrace_learner_alarms", kind="malformed", partition=0) == 1
    assert "malformed" in caplog.text
    snapshots.close()


def test_a_learner_publishes_on_among_malformed_messages_of_the_model_topic(log: Log, tmp_path: Path) -> None:
    settings = settings_of(log.bootstrap, log.namespace, tmp_path)

    def publish_next(loop: Loop, than: float) -> float:
        """Learn until a version above `than` is in the topic; returns it."""
        for _ in range(100):
            log.tick(5)
            time.sleep(0.1)
            if (version := loop.metrics.value("headrace_learner_snapshot_version")) > than:
                return version
        raise AssertionError(f"no version above {than}")

    with running(settings) as loop:
        version = publish_next(loop, 0)
        good = next(codec.encode(each, REGISTRY) for *_, each in read_all(settings, "snapshots", 1))
        for value, _ in bad_records(good):
            log.producer.produce(topic(log.namespace, "snapshots"), value, b"main", partition=0)
        assert log.producer.flush(10) == 0
        version = publish_next(loop, version)
    with running(settings) as loop:  # reads back behind them
        publish_next(loop, version)


def test_partition_that_is_ahead_is_paused_at_the_limit_and_everything_is_learnt_in_the_end(
    log: Log, tmp_path: Path
) -> None:
    now_ms, limit = int(time.time() * 1000), 1 << 20
    for step in range(60):
        log.rows(0, [now_ms + step] * 1000)
        log.progress(0, now_ms + step + 1)
    log.producer.flush(30)
    snapshots = Snapshots(log.bootstrap, log.namespace)
    with running(settings_of(log.bootstrap, log.namespace, tmp_path, waiting_bytes_max=limit)) as loop:
        give_up = time.monotonic() + 60
        while loop.metrics.value("headrace_learner_waiting_bytes") < limit and time.monotonic() < give_up:
            time.sleep(0.05)
        time.sleep(1.0)
        held = loop.metrics.value("headrace_learner_waiting_bytes")
        lag = loop.metrics.value("headrace_learner_lag_records", partition=0)
        assert limit <= held
        for step in range(60):
            log.rows(1, [now_ms + step])
            log.progress(1, now_ms + step + 1)
        for partition in range(PARTITIONS):
            log.progress(partition, now_ms + 5000)
        snapshots.wait_for(lambda m: sum(m.rows_learnt.values()) == 60_060)
    assert held < 6 * limit
    assert lag > 0, "all was read at once: nothing was paused"
    snapshots.close()


def test_no_broker_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    settings = settings_of("127.0.0.1:1", "nobody", tmp_path)
    with pytest.raises(UserError, match=r"no Kafka broker answers at 127\.0\.0\.1:1") as caught:
        Loop(settings, threading.Event()).run(ActionMeans)
    assert "headrace broker start" in caught.value.remedy


def test_a_learner_stopped_while_it_waits_for_a_broker_ends_in_order(tmp_path: Path) -> None:
    stop = threading.Event()
    settings = settings_of("127.0.0.1:1", "nobody", tmp_path, broker_wait_s=600)
    threading.Timer(0.5, stop.set).start()
    assert Loop(settings, stop).run(ActionMeans) == 0


def test_missing_topics_are_named(broker: str, namespace: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{namespace}.transitions"):
        Loop(settings_of(broker, namespace, tmp_path), threading.Event()).run(ActionMeans)


def test_missing_signing_key_is_one_sentence_with_the_remedy(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = settings_of(broker, namespace, tmp_path).model_copy(update={"signing_key": None})
    with pytest.raises(UserError, match="no key to sign") as caught:
        Loop(settings, threading.Event()).run(ActionMeans)
    assert "headrace keys create" in caught.value.remedy


def test_broker_outage_is_logged_once_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "broker"
    first = local_broker.start(folder, port=0, tied=True)
    port = int(first.bootstrap.rsplit(":", 1)[1])
    try:
        topics.create(CommonSettings(bootstrap=first.bootstrap, namespace="outage"), partitions=PARTITIONS)
        log = Log(first.bootstrap, project("outage", PARTITIONS))
        snapshots = Snapshots(first.bootstrap, "outage")
        with caplog.at_level(logging.INFO), running(settings_of(first.bootstrap, "outage", tmp_path)):
            for _ in range(8):
                log.tick(5)
                time.sleep(0.1)
            snapshots.wait_for(lambda m: True)
            local_broker.stop(folder)
            time.sleep(4)
            local_broker.start(folder, port=port, tied=True)
            closed_ms = log.tick(5)
            for partition in range(PARTITIONS):
                log.progress(partition, closed_ms + 2000)
            log.producer.flush(30)
            snapshots.wait_for(lambda m: sum(m.rows_learnt.values()) == 9 * 5 * PARTITIONS, 60)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert [text for text in said if "learning goes on by itself" in text] == said[:1]
        assert len(said) == 1, said
        snapshots.close()
    finally:
        local_broker.stop(folder)
