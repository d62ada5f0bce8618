"""Following the tasks topic on a real broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from deploy.applying import apply
from schemas.codec import encode
from schemas.errors import UserError
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import parse
from schemas.topics import topic
from streams.tasks import TaskFollower
from tests.kafka.decider_process import PROJECT, project
from tests.kafka.workers import set_up, until

REGISTRY = FileRegistry()


def _write(settings: CommonSettings, payload: bytes, key: bytes = b"k") -> None:
    producer = Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 0})
    producer.produce(topic(settings.namespace, "tasks"), payload, key)
    assert producer.flush(20) == 0


def test_what_is_applied_is_known_at_start_and_what_follows_soon_after(broker: str, namespace: str) -> None:
    settings = set_up(broker, project(namespace))
    with TaskFollower(settings) as tasks:
        tasks.wait_ready(20)
        assert tasks.namespace.partitions == 4
        assert [task.name for task in tasks.table.current] == ["offer", "route"]
        before = tasks.table.named("route")
        changed = parse(PROJECT.format(namespace=namespace, reply="journal-first").replace('"refund"\n', '"card"\n'))
        apply(settings, changed)
        until(lambda: tasks.table.named("route") == changed.task("route"), 20)
        assert before is not None
        assert before != changed.task("route")
        assert tasks.table.get(before.fingerprint) == before


def test_a_retirement_written_after_its_successor_leaves_the_successor_in_force(broker: str, namespace: str) -> None:
    settings = set_up(broker, project(namespace))
    changed = parse(PROJECT.format(namespace=namespace, reply="immediate"))
    apply(settings, changed)
    with TaskFollower(settings) as tasks:
        tasks.wait_ready(20)
        assert tasks.table.named("route") == changed.task("route")
        _write(settings, encode(changed.task("route").record(retired=True), REGISTRY))
        until(lambda: tasks.table.named("route") is None, 20)
        assert tasks.table.get(changed.task("route").fingerprint) is not None


def test_an_unreadable_definition_is_passed_over(broker: str, namespace: str) -> None:
    settings = set_up(broker, project(namespace))
    with TaskFollower(settings) as tasks:
        tasks.wait_ready(20)
        seen = tasks.changes
        _write(settings, b"garbage")
        record = project(namespace).task("offer").record()
        _write(
            settings, encode(replace(record, fingerprint=bytes(16), definition='{"kind": "from the future"}'), REGISTRY)
        )
        _write(settings, encode(replace(record, kind="unheard-of"), REGISTRY))
        _write(settings, encode(record, REGISTRY))
        until(lambda: tasks.changes == seen + 1, 20)
        assert len(tasks.table.current) == 2


def test_nothing_applied_is_said_with_the_remedy(broker: str, namespace: str, create_topics: object) -> None:
    assert callable(create_topics)
    create_topics()
    with (
        TaskFollower(CommonSettings(bootstrap=broker, namespace=namespace)) as tasks,
        pytest.raises(UserError, match="nothing is applied"),
    ):
        tasks.wait_ready(20)


def test_a_journal_of_another_width_is_refused(broker: str, namespace: str, create_topics: object) -> None:
    assert callable(create_topics)
    create_topics(3)
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    for record in project(namespace).records():
        _write(settings, encode(record, REGISTRY), record.fingerprint)
    with TaskFollower(settings) as tasks, pytest.raises(UserError, match="has 3 partitions"):
        tasks.wait_ready(20)


def test_without_a_topic_or_a_broker_the_start_fails_at_once(broker: str, namespace: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing at"):
        TaskFollower(CommonSettings(bootstrap=broker, namespace=namespace)).start()
    with pytest.raises(UserError, match="no Kafka broker answers"):
        TaskFollower(CommonSettings(bootstrap="127.0.0.1:1", namespace=namespace)).start()
