"""`headrace topics` on a real broker."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import applying, processes, topics
from schemas.settings import CommonSettings
from schemas.topics import TOPICS, topic


def test_apply_creates_every_topic_with_the_brokers_clock_and_a_second_apply_changes_nothing(
    broker: str, namespace: str
) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    project = topics.empty_project(namespace, 3)

    changes = topics.apply(settings, project)

    assert len(changes) == len(TOPICS)
    found = topics.found(settings, [f"{namespace}.{spec.name}" for spec in TOPICS])
    assert {each.config["message.timestamp.type"] for each in found.values()} == {"LogAppendTime"}
    assert found[f"{namespace}.journal"].partitions == 3
    assert topics.check(settings, project) == []
    assert topics.apply(settings, project) == []


def test_check_names_a_missing_topic_and_how_to_make_it(broker: str, namespace: str) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=namespace)

    faults = topics.check(settings, topics.empty_project(namespace, 2))

    assert {fault.topic for fault in faults} == {f"{namespace}.{spec.name}" for spec in TOPICS}
    assert "headrace topics apply" in faults[0].remedy


def test_check_refuses_a_topic_with_the_clients_clock_and_apply_mends_it(broker: str, namespace: str) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    project = topics.empty_project(namespace, 2)
    wrong = NewTopic(f"{namespace}.journal", 2, 1, config={"message.timestamp.type": "CreateTime"})
    client = AdminClient({"bootstrap.servers": broker})  # dropped, it would cancel its own calls
    for future in client.create_topics([wrong]).values():
        future.result(10)

    messages = [fault.message for fault in topics.check(settings, project) if fault.topic.endswith(".journal")]

    assert any("message.timestamp.type=CreateTime, expected LogAppendTime" in message for message in messages)
    topics.apply(settings, project)
    assert topics.check(settings, project) == []


def test_a_topic_with_another_partition_count_cannot_be_mended(broker: str, namespace: str) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    topics.apply(settings, topics.empty_project(namespace, 2))

    faults = topics.check(settings, topics.empty_project(namespace, 4))

    assert f"topic {namespace}.journal has 2 partitions, expected 4" in [fault.message for fault in faults]


@pytest.mark.parametrize("word", ["partitions", "missing"])
def test_what_is_wrong_is_not_told_by_the_name_of_the_topic(broker: str, namespace: str, word: str) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=f"{word}-{namespace}")
    project = topics.empty_project(settings.namespace, 1)
    topics.apply(settings, project)
    for mend in (topics.apply, applying.apply):
        topics._set(topics.admin(settings), topic(settings.namespace, "journal"), {"retention.ms": "1000"})
        assert processes.wait_until(lambda: topics.check(settings, project) != [], 10)
        assert any("retention.ms" in change for change in mend(settings, project))


def test_a_retention_that_the_user_made_longer_is_left_alone(broker: str, namespace: str) -> None:
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    project = topics.empty_project(namespace, 1)
    topics.apply(settings, project)
    journal = f"{namespace}.journal"
    topics._set(topics.admin(settings), journal, {"retention.ms": str(400 * 86_400_000)})

    assert topics.apply(settings, project) == []
    assert topics.found(settings, [journal])[journal].config["retention.ms"] == str(400 * 86_400_000)
