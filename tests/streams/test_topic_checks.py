"""Why the settings of topics could not be read: nobody's rights are to blame for a broker that went away."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import UserError
from schemas.settings import CommonSettings, load_settings
from streams import decider, topic_checks
from streams.decider_settings import DeciderSettings

STAMPED = {"message.timestamp.type": SimpleNamespace(value="LogAppendTime")}


class Admin:
    """Answers as it is told, one answer after the other."""

    answers: list[Any]

    def __init__(self, _properties: dict[str, Any]) -> None:
        pass

    def describe_configs(self, resources: list[Any], request_timeout: float) -> dict[Any, Future[Any]]:
        told: Future[Any] = Future()
        answer = Admin.answers.pop(0)
        if isinstance(answer, int):
            told.set_exception(KafkaException(KafkaError(answer)))
        else:
            told.set_result(answer)
        return dict.fromkeys(resources, told)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> CommonSettings:
    monkeypatch.setattr(topic_checks, "AdminClient", Admin)
    monkeypatch.setattr(topic_checks, "require_topics", lambda settings, names: {})
    return load_settings(CommonSettings, broker_wait_s=0.2)


def test_a_broker_that_comes_back_in_time_is_asked_again(settings: CommonSettings) -> None:
    Admin.answers = [KafkaError._TIMED_OUT, KafkaError._TRANSPORT, STAMPED]
    topic_checks.require_append_time(settings, ["t"])
    assert Admin.answers == []


def test_one_that_stays_away_is_named_as_the_cause(settings: CommonSettings) -> None:
    Admin.answers = [KafkaError._TIMED_OUT] * 4  # 0.2 s of patience, a try every 0.1 s
    with pytest.raises(UserError, match="the broker does not say how t are set") as caught:
        topic_checks.require_append_time(settings, ["t"])
    assert "headrace broker status" in caught.value.remedy


def test_missing_rights_are_named_at_once(settings: CommonSettings) -> None:
    Admin.answers = [KafkaError.TOPIC_AUTHORIZATION_FAILED]
    with pytest.raises(UserError, match="cannot be read") as caught:
        topic_checks.require_append_time(settings, ["t"])
    assert "the right to describe" in caught.value.remedy


def test_a_decider_whose_decisions_topic_has_other_partitions_than_the_namespace_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found by review: with fewer it was ready, and ended again and again at an answer that it could not write."""
    tasks = SimpleNamespace(wait_ready=lambda _: None, namespace=SimpleNamespace(partitions=4))
    monkeypatch.setattr(decider, "quiet", SimpleNamespace(set_up=lambda _: None))
    monkeypatch.setattr(decider, "spare_memory", SimpleNamespace(give_back_from_now_on=lambda: None))
    for name in ("require_topics", "require_append_time", "open_for_service"):
        monkeypatch.setattr(decider, name, lambda *_: None)
    monkeypatch.setattr(decider, "TaskFollower", lambda *_: nullcontext(tasks))
    monkeypatch.setattr(decider, "SnapshotFollower", lambda *_, **__: pytest.fail("it has started"))
    monkeypatch.setattr(topic_checks, "require_topics", lambda settings, names: dict.fromkeys(names, 1))
    with pytest.raises(UserError, match=r"topic n.decisions has 1 partitions, the namespace has 4"):
        decider.run(load_settings(DeciderSettings, namespace="n", state_dir=tmp_path))
