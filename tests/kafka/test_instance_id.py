"""Static membership (KIP-345): a killed worker has its partitions back when it is up, not when its session has ended.

The session here is far longer than any of these waits: without the name that outlives the worker they fail.
"""

from __future__ import annotations

import json
from pathlib import Path

from schemas.topics import topic
from tests.kafka import decider_process
from tests.kafka.decider_process import Shop, decider, route
from tests.kafka.journal_writer import JournalWriter, account, subject_in
from tests.kafka.workers import producer, project, set_up, until, worker

SESSION_S = 200
WAIT_S = 60.0
NAMED = {"session_timeout_s": SESSION_S, "instance_id": "worker-0"}


def test_a_killed_join_worker_has_its_partitions_back_before_its_session_ends(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    wanted = project(namespace, 4, window="1s")
    settings = set_up(broker, wanted)
    writer = JournalWriter(settings, wanted.tasks[0], 4)
    with worker("ingest+join", settings, tmp_path, **NAMED) as first:
        for partition in range(4):
            writer.decide(partition)
        writer.flush()
        until(lambda: account(settings).num_rows == 40, WAIT_S, first.said)
        first.kill()
    with worker("ingest+join", settings, tmp_path, **NAMED) as second:
        for partition in range(4):
            writer.decide(partition)
        writer.flush()
        client = producer(settings)
        for partition in range(4):
            text = {"subject": subject_in(partition, 4), "type": "resolved", "decision_id": "nobody-asked"}
            client.produce(topic(namespace, "outcomes"), json.dumps(text).encode())
        assert client.flush(30) == 0
        until(lambda: account(settings).num_rows == 80, WAIT_S, second.said)


def test_a_killed_decider_has_its_partitions_back_before_its_session_ends(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, decider_process.project(namespace))
    shop = Shop(settings)
    with decider(settings, tmp_path, **NAMED) as first:
        shop.send(route(1))
        shop.flush()
        shop.collect(1, WAIT_S)
        first.kill()
    with decider(settings, tmp_path, **NAMED):
        shop.send(route(2))
        shop.flush()
        shop.collect(2, WAIT_S)
    shop.close()


def test_a_decider_whose_name_another_has_taken_ends_with_a_sentence(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, decider_process.project(namespace))
    shop = Shop(settings)
    with (
        decider(settings, tmp_path, instance_id="worker-0") as first,
        decider(settings, tmp_path, instance_id="worker-0") as second,
    ):
        until(lambda: first.process.poll() is not None, WAIT_S, first.said)
        assert first.process.poll() == 1
        assert "another worker has the name HEADRACE_INSTANCE_ID=worker-0" in first.said()
        shop.send(route(1))
        shop.flush()
        shop.collect(1, WAIT_S)
        assert second.process.poll() is None
    shop.close()
