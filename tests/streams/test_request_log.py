"""The requests topic as decide reads it: what is finished is committed, whatever becomes of the first try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.outage import Outage
from schemas.registry import FileRegistry
from schemas.settings import load_settings
from streams import decider, request_log
from streams.decider_settings import DeciderSettings
from streams.health import BEATS_LATE_S_MAX, Health
from streams.metrics import worker_metrics
from streams.offsets import Offsets
from streams.request_log import RequestLog

BUSY = KafkaError(KafkaError.REBALANCE_IN_PROGRESS)


class Consumer:
    """A client that commits, fails at once, or says later that it failed."""

    at_poll: Callable[[], Any]

    def __init__(self, config: dict[str, Any], **_: Any) -> None:
        self._on_commit: Callable[..., None] = config.get("on_commit", lambda *_: None)
        self.outcome = "done"
        self.commits = list[tuple[int, int]]()

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        if self.outcome == "raised":
            raise KafkaException(BUSY)
        if self.outcome == "refused":
            self._on_commit(BUSY, offsets)
        elif self.outcome == "refused by partition":
            self._on_commit(
                None, [SimpleNamespace(partition=p.partition, offset=p.offset, error=BUSY) for p in offsets]
            )
        else:
            self.commits += [(place.partition, place.offset) for place in offsets]
        return offsets

    def poll(self, _timeout_s: float) -> Any:
        return self.at_poll()

    def consume(self, _num: int, _timeout_s: float) -> list[Any]:
        return []

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("requests", 0)]

    def position(self, _places: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition("requests", 0, 6)]

    def get_watermark_offsets(self, _place: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, 6

    def subscribe(self, _topics: list[str], **callbacks: Callable[..., None]) -> None:
        self.on_assign, self.on_lost = callbacks["on_assign"], callbacks["on_lost"]

    def resume(self, _places: list[TopicPartition]) -> None:
        """Go on."""

    def close(self) -> None:
        """Leave."""


@pytest.mark.parametrize("outcome", ["raised", "refused", "refused by partition"])
def test_a_commit_that_fails_is_made_again_without_another_request(
    outcome: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found by torture: the last commit before the traffic ended met a rebalance, and 198 requests counted as lag."""
    monkeypatch.setattr(request_log, "Consumer", Consumer)
    offsets, unused = Offsets(), SimpleNamespace()
    settings = load_settings(DeciderSettings, state_dir=tmp_path, decide_commit_s=1e-9)
    reader: Any = RequestLog(settings, offsets, unused, lambda _: 0, unused, unused, Outage())  # type: ignore[arg-type]
    offsets.own([0, 3])
    for partition in (0, 3):
        for offset in (10, 11):
            offsets.begin(partition, offset)
            offsets.end(partition, offset)
    reader._consumer.outcome = outcome
    reader.commit_now_and_then()
    assert reader._consumer.commits == []
    reader._consumer.outcome = "done"
    reader.commit_now_and_then()
    assert sorted(reader._consumer.commits) == [(0, 12), (3, 12)]
    reader.commit_now_and_then()
    assert len(reader._consumer.commits) == 2


def test_a_worker_that_looks_up_earlier_answers_is_alive_and_not_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found by torture: without a broker the look-up took twenty minutes, in which it passed for ready and for dead."""
    monkeypatch.setattr(request_log, "Consumer", Consumer)
    monkeypatch.setattr(request_log, "CALL_S", 0.0)
    monkeypatch.setattr(request_log, "PATIENCE_S", -1.0)
    clock_s, left, seen = [0.0], [3], list[tuple[str | None, str | None]]()
    health = Health(60.0, lambda: clock_s[0])
    settings = load_settings(DeciderSettings, state_dir=tmp_path)
    search: Any = SimpleNamespace(answered=lambda *_: {})
    reader: Any = RequestLog(settings, Offsets(), search, lambda _: 0, SimpleNamespace(), health, Outage())  # type: ignore[arg-type]
    reader.subscribe()

    asked = list[Any]()

    def committed(consumer: Any, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        asked.append(consumer)
        seen.append((health.live(), health.ready()))
        clock_s[0] += 0.9 * BEATS_LATE_S_MAX
        left[0] -= 1
        if left[0]:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return places

    monkeypatch.setattr(Consumer, "committed", committed, raising=False)
    reader._consumer.on_assign(reader._consumer, [TopicPartition("requests", 0, 5)])
    assert [live for live, _ in seen] == [None] * 3
    assert all(ready is not None and "answered before" in ready for _, ready in seen)
    assert len(set(map(id, asked))) == 3, "one that was not answered may never be: another one asks"
    assert health.ready() is None


def test_a_worker_that_its_group_lost_is_not_ready_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found by CI: a client that lost its broker never came back, and the worker passed for ready meanwhile."""
    monkeypatch.setattr(request_log, "Consumer", Consumer)
    health = Health(60.0)
    metrics: Any = SimpleNamespace(drop=lambda *_, **__: None)
    search: Any = SimpleNamespace(answered=lambda *_: {})
    settings = load_settings(DeciderSettings, state_dir=tmp_path)
    reader: Any = RequestLog(settings, Offsets(), search, lambda _: 0, metrics, health, Outage())
    reader.subscribe()
    monkeypatch.setattr(Consumer, "committed", lambda _, places, timeout: places, raising=False)
    share = [TopicPartition("requests", 0, 5)]
    for _ in range(2):
        reader._consumer.on_assign(reader._consumer, share)
        assert health.ready() is None
        reader._consumer.on_lost(reader._consumer, share)
        assert "joins it again" in (health.ready() or "")


def test_a_request_that_was_read_when_the_signal_came_is_left_to_be_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found by review: the same turn's report passed over it, the last commit took it, and the shop never heard."""
    monkeypatch.setattr(request_log, "Consumer", Consumer)
    monkeypatch.setattr(decider, "REPORT_S", 0.0)
    replies = SimpleNamespace(
        failure="", wait_s=lambda most_s: most_s, write_due=lambda: None, flush=lambda _: 0, close=lambda _: None
    )
    for name, made in (("Replies", replies), ("Redelivery", None), ("Decide", None)):
        monkeypatch.setattr(decider, name, lambda *_, made=made: made)
    monkeypatch.setattr(decider, "LastResort", lambda _: SimpleNamespace(arm=lambda: None))
    tasks = SimpleNamespace(namespace=SimpleNamespace(draw_key="00", partitions=4), table=None)
    settings = load_settings(DeciderSettings, state_dir=tmp_path)
    follower = SimpleNamespace(untold=[], policy=None)
    worker: Any = decider.Decider(
        settings, FileRegistry(), tasks, follower, worker_metrics(), Health(60.0), Outage()  # type: ignore[arg-type]
    )  # fmt: skip
    worker._offsets.own([0])

    def poll() -> Any:
        worker._stop(0, None)  # the signal comes while the client waits; its handler runs when it returns
        return SimpleNamespace(error=lambda: None, partition=lambda: 0, offset=lambda: 5)

    client = worker._requests._consumer
    client.at_poll = poll
    worker._answer_requests()
    worker._finish()
    assert client.commits == []
