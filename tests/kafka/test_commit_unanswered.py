"""A commit that nobody answers stops neither the work nor the end of a worker, and is made up for later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from deploy.torture.kafka_faults import Action, Direction, Fault
from deploy.torture.kafka_frames import Api
from deploy.torture.kafka_proxy import Proxy
from schemas.settings import CommonSettings
from schemas.topics import topic
from streams.transport_thread import ANSWER_S
from tests.kafka.workers import WorkerProcess, producer, project, set_up, until, worker

CLIENT = "commits"
FOR_EVER_MS = 600_000.0


@pytest.fixture(autouse=True)
def healed(proxy: Proxy) -> Iterator[None]:
    yield
    proxy.heal_all()


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


def hold_back_commits(proxy: Proxy, running: WorkerProcess, settings: CommonSettings, delay_ms: float) -> None:
    """From now on commits of the worker arrive that much later, and one is on its way."""
    fault = Fault(
        Action.DELAY,
        (CLIENT,),
        frozenset({Api.OFFSET_COMMIT}),
        direction=Direction.REQUESTS,
        delay_ms=(delay_ms, delay_ms),
    )
    proxy.inject(fault)
    before = proxy.counts.num_bites(Action.DELAY, Api.OFFSET_COMMIT, CLIENT)
    tell(settings, 20)
    until(lambda: proxy.counts.num_bites(Action.DELAY, Api.OFFSET_COMMIT, CLIENT) > before, 30, running.said)


def test_a_worker_whose_commits_are_not_answered_stops_in_time(proxy: Proxy, namespace: str, tmp_path: Path) -> None:
    settings = set_up(proxy.bootstrap, project(namespace))
    with worker("ingest+join", settings, tmp_path, client_id=CLIENT) as running:
        hold_back_commits(proxy, running, settings, FOR_EVER_MS)
        code, _ = running.stop()
        assert code == 0, running.said()


def test_commits_that_come_too_late_are_made_up_for_when_the_way_is_free(
    proxy: Proxy, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(proxy.bootstrap, project(namespace))
    with worker("ingest+join", settings, tmp_path, client_id=CLIENT) as running:
        hold_back_commits(proxy, running, settings, 1.5 * 1000 * ANSWER_S)
        until(lambda: "are not answered" in running.said(), 20, running.said)
        assert running.get("/ready")[0] == 200, running.said()
        proxy.heal_all()
        until(lambda: lag(settings) == 0, 30, running.said)
        code, _ = running.stop()
        assert code == 0, running.said()
