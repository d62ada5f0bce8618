"""What a learner asks of the topics before it starts, of a broker that goes away while it asks."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from learner import consume
from learner.consume import TopicIdentity, require_topics
from schemas.errors import UserError
from schemas.settings import CommonSettings, load_settings

DESCRIBED = SimpleNamespace(topic_id="abc")


class Admin:
    """Answers as it is told, one answer after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def describe_topics(self, _names: Any, request_timeout: float) -> dict[str, Future[Any]]:
        told: Future[Any] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            told.set_exception(KafkaException(KafkaError(answer)))
        else:
            told.set_result(answer)
        return {"t": told}


def asked(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> dict[str, TopicIdentity]:
    topics = {"t": SimpleNamespace(error=None, partitions={0: None, 1: None})}
    monkeypatch.setattr(consume, "find_topics", lambda settings, stop: (Admin(*answers), topics))
    return require_topics(load_settings(CommonSettings, broker_wait_s=0.25), ["t"])


def test_a_broker_that_goes_and_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, KafkaError._TIMED_OUT, KafkaError._TRANSPORT, DESCRIBED)
    assert found == {"t": TopicIdentity("abc", 2)}


def test_one_that_stays_away_is_a_users_error_and_no_mistake_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the broker does not describe t") as caught:
        asked(monkeypatch, *[KafkaError._TIMED_OUT] * 10)
    assert "headrace broker status" in caught.value.remedy
