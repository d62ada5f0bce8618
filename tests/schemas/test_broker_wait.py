"""Asking a broker that has just gone, and where its log ends."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.broker_wait import ask, end_of
from schemas.settings import CommonSettings, load_settings

GONE = KafkaException(KafkaError(KafkaError._TIMED_OUT))
SETTINGS = load_settings(CommonSettings, broker_wait_s=0.25)
WHERE = TopicPartition("t", 0)


class Answers:
    """One after the other; exceptions are raised."""

    def __init__(self, *answers: Any) -> None:
        self.left = list(answers)

    def __call__(self, timeout_s: float) -> Any:
        assert 0 < timeout_s <= SETTINGS.broker_wait_s
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_question_is_asked_again_until_it_is_answered() -> None:
    answers = Answers(GONE, GONE, "here", "never asked")
    assert ask(SETTINGS, answers) == "here"
    assert answers.left == ["never asked"]


def test_patience_ends_with_what_was_said_last() -> None:
    with pytest.raises(KafkaException) as caught:
        ask(SETTINGS, Answers(*[GONE] * 10))
    assert caught.value is GONE


def test_a_refusal_is_not_asked_again() -> None:
    refusal = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(KafkaException) as caught:
        ask(SETTINGS, Answers(refusal, "too late"))
    assert caught.value is refusal


def test_nothing_is_asked_once_it_shall_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert ask(SETTINGS, Answers(), stop) is None


class Log(Consumer):
    """Says what it is told about its watermarks."""

    def __init__(self, answer: tuple[int, int] | KafkaException) -> None:
        super().__init__({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
        self._answer = answer

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        if isinstance(self._answer, KafkaException):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(("answer", "end"), [((3, 9), 9), ((4, 4), 0), ((0, 0), 0), (GONE, None)])
def test_the_end_of_a_log(answer: tuple[int, int] | KafkaException, end: int | None) -> None:
    assert end_of(Log(answer), WHERE) == end
