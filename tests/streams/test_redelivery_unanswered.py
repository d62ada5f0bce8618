"""Looking up earlier answers without a broker, or with a client that nobody will answer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.outage import Outage
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings, load_settings
from schemas.task import TaskTable
from streams import redelivery
from streams.redelivery import Redelivery


def test_the_search_ends_when_the_process_is_told_to_stop() -> None:
    stopping = threading.Event()
    settings = load_settings(CommonSettings, bootstrap="127.0.0.1:1")
    beats: list[float] = []
    search = Redelivery(
        settings, FileRegistry(), TaskTable(), 4, stopping, lambda: beats.append(time.monotonic()), Outage()
    )
    found: list[object] = []
    looking = threading.Thread(target=lambda: found.append(search.answered({0: 5}, 0)), daemon=True)
    looking.start()
    looking.join(1.0)
    assert looking.is_alive(), "it waits for a broker as long as the process serves"
    stopping.set()
    looking.join(30)
    assert found == [{}]
    assert beats, "whoever waits for a broker is not dead"


class Consumer:
    """One that forgot every broker when it was first asked, as the first two here; the next is answered."""

    num_made = num_questions = num_closed = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Consumer.num_made += 1
        self._kind = Consumer.num_made

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        Consumer.num_questions += 1
        if self._kind == 1:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        return (0, 10) if self._kind == 2 else (0, 0)

    def assign(self, _places: Any) -> None:
        """Read there."""

    def poll(self, _timeout_s: float) -> None:
        """Nothing, for ever."""

    def close(self) -> None:
        Consumer.num_closed += 1


def test_a_client_that_is_not_answered_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asked in the moment in which a broker was back from a silence may never be answered (decision 24)."""
    monkeypatch.setattr(redelivery, "Consumer", Consumer)
    monkeypatch.setattr(redelivery, "RETRY_S", 0.0)
    monkeypatch.setattr(redelivery, "PATIENCE_S", 0.05)
    monkeypatch.setattr(redelivery, "SILENCE_S_MAX", 0.05)
    settings = load_settings(CommonSettings, bootstrap="127.0.0.1:1")
    outage = Outage()
    search = Redelivery(settings, FileRegistry(), TaskTable(), 4, threading.Event(), lambda: None, outage)
    assert search.answered({0: 5}, 0) == {}
    assert Consumer.num_made == Consumer.num_closed == 3
    assert Consumer.num_questions > 3, "a client is asked again before it is replaced"
    assert outage.is_on, "both were complaints"
