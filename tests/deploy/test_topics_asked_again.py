"""A topic whose creation the client lost with the node that it had asked is asked for again."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # it re-exports it without saying so

from deploy import topics
from schemas.errors import UserError


class Client:
    """Answers each creation with the next code of its list, None for success."""

    def __init__(self, answers: dict[str, list[int | None]]) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def create_topics(self, wanted: list[Any]) -> dict[str, Future[None]]:
        self.asked.append([each.topic for each in wanted])
        return {each.topic: self._answered(self.answers[each.topic].pop(0)) for each in wanted}

    @staticmethod
    def _answered(code: int | None) -> Future[None]:
        future: Future[None] = Future()
        if code is None:
            future.set_result(None)
        else:
            future.set_exception(KafkaException(KafkaError(code)))
        return future


def create(client: Any, *names: str) -> None:
    topics._create(client, [NewTopic(name, 1, 1) for name in names])


def test_what_was_lost_is_asked_for_again_and_nothing_else() -> None:
    lost = KafkaError._DESTROY_BROKER
    client = Client({"a": [None], "b": [lost, lost, KafkaError.TOPIC_ALREADY_EXISTS], "c": [lost, None]})
    create(client, "a", "b", "c")
    assert client.asked == [["a", "b", "c"], ["b", "c"], ["b"]]


def test_nothing_to_create_asks_nobody() -> None:
    client = Client({})
    create(client)
    assert client.asked == []


def test_another_error_is_told() -> None:
    with pytest.raises(UserError, match="topic a could not be created"):
        create(Client({"a": [KafkaError.TOPIC_AUTHORIZATION_FAILED]}), "a")
