"""In a cluster, brokers hear of a new topic one after another."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from deploy import topics
from schemas.settings import CommonSettings, load_settings


class Cluster:
    """An admin client whose every second broker has not heard of ``shop.journal`` for a while."""

    def __init__(self, num_unaware: int) -> None:
        self.num_unaware = num_unaware

    def list_topics(self, timeout: float) -> Any:
        found = {name: SimpleNamespace(error=None, partitions={0: None}) for name in ("shop.journal", "shop.tasks")}
        return SimpleNamespace(topics=found)

    def describe_configs(self, resources: list[Any]) -> dict[Any, Future[Any]]:
        asked = {}
        for resource in resources:
            future = asked[resource] = Future[Any]()
            if resource.name == "shop.journal" and self.num_unaware:
                self.num_unaware -= 1
                future.set_exception(KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)))
            else:
                future.set_result({"cleanup.policy": SimpleNamespace(value="delete")})
        return asked


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> CommonSettings:
    monkeypatch.setattr(topics, "SPREAD_S", 0.5)
    return load_settings(CommonSettings, namespace="shop")


def test_a_topic_that_one_broker_does_not_know_yet_is_asked_for_again(
    settings: CommonSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "admin", lambda _: Cluster(num_unaware=3))
    found = topics.found(settings, ["shop.journal", "shop.tasks"])
    assert set(found) == {"shop.journal", "shop.tasks"}
    assert all(each.config == {"cleanup.policy": "delete"} for each in found.values())


def test_a_topic_that_never_spreads_is_not_there(settings: CommonSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "admin", lambda _: Cluster(num_unaware=10_000))
    assert list(topics.found(settings, ["shop.journal", "shop.tasks"])) == ["shop.tasks"]
