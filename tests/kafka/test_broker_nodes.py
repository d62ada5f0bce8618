"""Nodes of a cluster end and come back one by one, and clients lose nothing that was acked."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import broker as local_broker
from deploy import processes
from deploy.broker import RunningBroker
from deploy.torture.small_disk import SmallDisk, open_disk
from schemas.errors import UserError

QUICK = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"}
"""A dead broker is missed after 2 s instead of 9; nobody may come back under its name before."""
WAIT_S = 30.0


class SteadyWriter:
    """Writes numbers, acks=all, until told to end; knows which were acked."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.acked: list[int] = []
        self.errors: list[KafkaError] = []
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )
        self._topic, self._ending = topic, threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._ending.is_set():
            self._producer.produce(self._topic, str(number).encode(), str(number).encode(), on_delivery=self._settled)
            number += 1
            self._producer.poll(0.005)

    def _settled(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acked.append(int(message.value() or b""))
        else:
            self.errors.append(error)

    def takes_writes(self, num: int = 50) -> bool:
        """Whether so many more are acked in time, all of them sent from now on."""
        time.sleep(0.1)
        enough = len(self.acked) + num
        return processes.wait_until(lambda: len(self.acked) >= enough, WAIT_S)

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        self._producer.flush(WAIT_S)


def create(bootstrap: str, topic: str, partitions: int, replicas: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = NewTopic(topic, partitions, replicas, config={"min.insync.replicas": str(max(1, replicas - 1))})
    for future in admin.create_topics([wanted]).values():
        future.result(WAIT_S)


def read_all(bootstrap: str, topic: str, partitions: int) -> list[int]:
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "audit", "enable.partition.eof": True})
    reader.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
    found: list[int] = []
    at_end = 0
    while at_end < partitions:
        message = reader.poll(WAIT_S)
        assert message is not None
        if message.error() is None:
            found.append(int(message.value() or b""))
        else:
            assert message.error().code() == KafkaError._PARTITION_EOF
            at_end += 1
    reader.close()
    return found


def catches_up(running: RunningBroker) -> bool:
    """Whether every replica is in sync in time."""
    return processes.wait_until(lambda: not local_broker.num_lagging_replicas(running.bootstrap), WAIT_S)


@pytest.fixture(autouse=True)
def quick_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short lives: compiling Kafka as for a long one would take half of their time."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.fixture
def cluster(quick_java: None, tmp_path: Path) -> Iterator[RunningBroker]:
    running = local_broker.start(tmp_path, port=0, num_brokers=3, tied=True, overrides=QUICK)
    try:
        yield running
    finally:
        local_broker.stop(tmp_path)


def test_any_node_may_be_killed_and_come_back_while_acked_writes_go_on(cluster: RunningBroker) -> None:
    folder = Path(cluster.folder)
    create(cluster.bootstrap, "numbers", partitions=3, replicas=3)
    writer = SteadyWriter(cluster.bootstrap, "numbers")
    try:
        assert writer.takes_writes()
        for node_id in (1, 2, 3):
            before = {node.node_id: node for node in cluster.nodes}
            assert local_broker.stop_node(folder, node_id, kill=True)
            assert not local_broker.stop_node(folder, node_id)
            assert writer.takes_writes(), f"without node {node_id}"

            cluster = local_broker.start_node(folder, node_id, tied=True)

            assert local_broker.status(folder) == cluster
            assert cluster.is_alive
            after = {node.node_id: node for node in cluster.nodes}
            assert [each for each in after if after[each].pid != before[each].pid] == [node_id]
            assert {each.port for each in after.values()} == {each.port for each in before.values()}
            assert catches_up(cluster)
        assert writer.takes_writes()
    finally:
        writer.end()

    found = read_all(cluster.bootstrap, "numbers", 3)
    assert writer.errors == []
    assert len(writer.acked) > 200
    assert sorted(found) == sorted(writer.acked)


def test_a_node_that_runs_is_not_started_twice_and_one_that_never_was_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node 1 was started"):
        local_broker.start_node(tmp_path, 1)

    living = {"node_id": 1, "port": 1, "pid": os.getpid(), "started_s": psutil.Process().create_time()}
    kept = {"bootstrap": "127.0.0.1:1", "folder": str(tmp_path), "nodes": [living], "kafka_options": {}}
    (tmp_path / "broker.json").write_text(json.dumps(kept))

    with pytest.raises(UserError, match=r"node 1 of .* runs already"):
        local_broker.start_node(tmp_path, 1)
    with pytest.raises(UserError, match="no node 2 was started"):
        local_broker.stop_node(tmp_path, 2)


@dataclass
class SmallLog:
    """A place for node 1's log that can be left without room, by a small file system or by the kernel's limit."""

    disk: SmallDisk | None

    @property
    def data_folders(self) -> dict[int, Path]:
        return {} if self.disk is None else {1: self.disk.folder}

    def fill(self, running: RunningBroker) -> None:
        """No byte more. Without a disk of its own the process may write to no file any more (RLIMIT_FSIZE): it gets
        EFBIG where it would get ENOSPC, which is the same to Kafka, and it takes no rights."""
        if self.disk is not None:
            self.disk.fill()
        else:
            node = psutil.Process(running.nodes[0].pid)
            node.rlimit(psutil.RLIMIT_FSIZE, (0, node.rlimit(psutil.RLIMIT_FSIZE)[1]))

    def free(self) -> None:
        """Room again, for the next process."""
        if self.disk is not None:
            self.disk.free()


@pytest.fixture(params=["a disk, where one may be mounted", "a limit"])
def small_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallLog]:
    disk = open_disk(tmp_path / "small", 64) if request.param != "a limit" else "not wanted"
    if isinstance(disk, str):
        yield SmallLog(None)
    else:
        with disk:
            yield SmallLog(disk)


def test_a_broker_whose_disk_filled_comes_back_with_what_it_acked_when_there_is_room(
    small_log: SmallLog, tmp_path: Path
) -> None:
    folder = tmp_path / "broker"
    running = local_broker.start(folder, port=0, tied=True, overrides=QUICK, data_folders=small_log.data_folders)
    try:
        create(running.bootstrap, "numbers", partitions=1, replicas=1)
        writer = SteadyWriter(running.bootstrap, "numbers")
        try:
            assert writer.takes_writes()
            small_log.fill(running)
            assert processes.wait_until(lambda: not running.is_alive, WAIT_S)
            small_log.free()
            running = local_broker.start_node(folder, 1, tied=True)
            assert writer.takes_writes()
        finally:
            writer.end()
        assert set(read_all(running.bootstrap, "numbers", 1)) >= set(writer.acked)
    finally:
        local_broker.stop(folder)
