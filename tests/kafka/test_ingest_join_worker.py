"""A worker process from outside: what it says when something is missing, and how it sits out a broker that is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import broker as local_broker
from deploy import topics
from schemas.settings import CommonSettings, load_settings
from schemas.topics import topic
from tests.kafka.journal_writer import JournalWriter, account, check_complete, subject_in
from tests.kafka.workers import WorkerProcess, free_port, producer, project, set_up, until, worker


def refusal(settings: CommonSettings, folder: Path, **environment: object) -> str:
    """The last line of a worker that refuses to start."""
    made = WorkerProcess("ingest+join", settings, folder, **environment)
    try:
        assert made.process.wait(60) == 1
        assert "Traceback" not in made.said()
        return made.said().rstrip().splitlines()[-1]
    finally:
        made.end()


def test_no_broker_is_one_line_that_says_how_to_start_one(tmp_path: Path) -> None:
    settings = load_settings(CommonSettings, bootstrap=f"127.0.0.1:{free_port()}", namespace="nowhere")
    said = refusal(settings, tmp_path)
    assert said.startswith(f"no Kafka broker answers at {settings.bootstrap}")
    assert "headrace broker start" in said


def test_missing_topics_are_one_line_that_says_how_to_create_them(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=namespace)
    assert "headrace topics apply" in refusal(settings, tmp_path)


def test_a_namespace_to_which_nothing_is_applied_is_one_line(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=namespace)
    topics.create(settings)
    assert "headrace apply" in refusal(settings, tmp_path)


def test_a_topic_with_the_clients_clock_is_refused(broker: str, namespace: str, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(f"{namespace}.outcomes", 4, 1)])[f"{namespace}.outcomes"].result(10)
    wanted = project(namespace)
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=namespace)
    from deploy.applying import apply

    topics.apply(settings, wanted)
    apply(settings, wanted)
    _set_clock(admin, topic(namespace, "outcomes"))
    assert "message.timestamp.type=CreateTime, expected LogAppendTime" in refusal(settings, tmp_path)


def _set_clock(admin: AdminClient, name: str) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    entry = ConfigEntry("message.timestamp.type", "CreateTime", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(10)


def test_a_taken_metrics_port_and_an_unwritable_folder_are_one_line(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace))
    with worker("ingest", settings, tmp_path) as running:
        assert "cannot be opened: Address already in use" in refusal(settings, tmp_path, metrics_port=running.port)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(settings, tmp_path, state_dir=tmp_path / "file" / "state")


def num_outcomes(settings: CommonSettings) -> int:
    """Outcomes that the newest Progress of every partition accounts for."""
    newest = account(settings).progress.values()
    return sum(count for each in newest for bucket, count in each.outcome_counts.items() if bucket != "copies")


@pytest.mark.timeout(400)  # its waits may take 350 s before they say what they waited for
def test_a_broker_that_is_gone_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    """The broker is killed with records in flight and comes back on the same log ten seconds later."""
    folder = tmp_path / "broker"
    running = local_broker.start(folder, port=free_port(), tied=True)
    try:
        wanted = project("outage", 4, window="5s")
        settings = set_up(running.bootstrap, wanted)
        writer = JournalWriter(settings, wanted.tasks[0], 4)
        with worker("ingest+join", settings, tmp_path, session_timeout_s=10) as both:
            for partition in range(4):
                writer.decide(partition)
            writer.flush()
            until(lambda: account(settings).num_rows == 40, 60, both.said)
            os.kill(running.nodes[0].pid, signal.SIGKILL)
            time.sleep(10)
            assert both.process.poll() is None
            assert both.get("/live")[0] == 200
            local_broker.start(folder, port=int(running.bootstrap.rpartition(":")[2]), tied=True)
            client = producer(settings)
            for partition in range(4):  # the group finds its members again after a session of 10 s, windows or not
                text = {"subject": subject_in(partition, 4), "type": "resolved", "decision_id": "nobody-asked"}
                client.produce(topic("outage", "outcomes"), json.dumps(text).encode())
            assert client.flush(30) == 0
            until(lambda: num_outcomes(settings) == 4, 90, both.said)
            decided = {partition: writer.decide(partition) for partition in range(4)}
            writer.flush()  # in the journal before their outcomes: this task takes no early ones
            for partition, ids in decided.items():
                for each in ids[:5]:
                    text = {"subject": subject_in(partition, 4), "type": "resolved", "decision_id": each}
                    client.produce(topic("outage", "outcomes"), json.dumps(text).encode())
                    writer.rewarded.add(each)
            assert client.flush(30) == 0
            until(lambda: account(settings).num_rows >= 80, 90, both.said)
            until(
                lambda: sum(p.decision_counts["open"] for p in account(settings).progress.values()) == 0, 30, both.said
            )
            assert check_complete(settings, writer).num_holes == 0
            noise = [line for line in both.said().splitlines() if re.search(r"ERROR|WARNING|Traceback|%\d\|", line)]
            assert len(noise) < 60, "\n".join(noise)
            code, took_s = both.stop()
            assert (code, took_s < 10) == (0, True), both.said()
    finally:
        local_broker.stop(folder)
