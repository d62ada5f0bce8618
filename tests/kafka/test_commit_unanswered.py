"""The group's offsets are for the lag that people watch: a commit that nobody answers stops neither work nor the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from deploy import broker as local_broker
from deploy import processes
from deploy.torture.kafka_faults import Action, Direction, Fault
from deploy.torture.kafka_frames import Api
from deploy.torture.kafka_proxy import Proxy
from schemas.settings import CommonSettings
from schemas.topics import topic
from tests.kafka.workers import WorkerProcess, producer, project, set_up, until, worker

CLIENT = "commits"
FOR_EVER_MS = 600_000.0


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    (port,) = processes.free_ports(1)
    running = local_broker.start(tmp_path / "broker", port=0, tied=True, advertised=[port])
    try:
        with Proxy([("127.0.0.1", node.port) for node in running.nodes], [port]) as proxy:
            yield proxy
    finally:
        local_broker.stop(tmp_path / "broker")


def tell(settings: CommonSettings, num: int) -> None:
    shop = producer(settings)
    for i in range(num):
        outcome = {"task": "support", "decision_id": f"d-{i}", "kind": "resolved", "value": 1.0, "outcome_id": f"o-{i}"}
        shop.produce(topic(settings.namespace, "outcomes"), json.dumps(outcome).encode(), key=b"someone")
    assert shop.flush(20) == 0


def lag(settings: CommonSettings) -> int:
    """Outcomes that the group of ingest has not committed."""
    name, group = topic(settings.namespace, "outcomes"), f"{settings.namespace}.ingest"
    reader = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": group, "client.id": "audit"})
    try:
        ends = {p: reader.get_watermark_offsets(TopicPartition(name, p), timeout=15)[1] for p in range(4)}
        committed = reader.committed([TopicPartition(name, p) for p in ends], timeout=15)
        return sum(ends[each.partition] - max(0, each.offset) for each in committed)
    finally:
        reader.close()


def hold_back_commits(proxy: Proxy, running: WorkerProcess, settings: CommonSettings) -> None:
    """From now on no commit of the worker is answered, and one waits."""
    proxy.inject(
        Fault(
            Action.DELAY,
            (CLIENT,),
            frozenset({Api.OFFSET_COMMIT}),
            direction=Direction.REQUESTS,
            delay_ms=(FOR_EVER_MS, FOR_EVER_MS),
        )
    )
    tell(settings, 20)
    until(lambda: proxy.counts.num_bites(Action.DELAY, Api.OFFSET_COMMIT, CLIENT) > 0, 30, running.said)


def test_a_worker_whose_commits_are_not_answered_stops_in_time(proxy: Proxy, namespace: str, tmp_path: Path) -> None:
    wanted = project(namespace)
    settings = set_up(proxy.bootstrap, wanted)
    with worker("ingest+join", settings, tmp_path, client_id=CLIENT) as running:
        hold_back_commits(proxy, running, settings)
        code, _ = running.stop()
        assert code == 0, running.said()
