"""When a worker counts as live and ready."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from schemas.errors import UserError
from schemas.telemetry import Metric, Metrics, MetricsServer
from streams.health import BEATS_LATE_S_MAX, Health
from streams.metrics import worker_metrics


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_partition_that_stands_still_with_something_to_read_is_not_live() -> None:
    clock = Clock()
    health = Health(60, clock)
    health.note("journal[0]", 10, 20)
    clock.now_s += 61
    health.beat()
    health.note("journal[0]", 10, 25)
    assert health.live() == "journal[0] stands at offset 10 of 25 for 61 s"
    health.note("journal[0]", 11, 25)
    assert health.live() is None


def test_a_partition_with_nothing_to_read_may_stand_still() -> None:
    clock = Clock()
    health = Health(60, clock)
    health.note("journal[0]", 20, 20)
    clock.now_s += 600
    health.beat()
    health.note("journal[0]", 20, 20)
    assert health.live() is None


def test_what_waits_on_purpose_is_live_but_not_ready() -> None:
    clock = Clock()
    health = Health(60, clock)
    health.wait_for("start", None)
    health.note("journal[0]", 10, 20)
    health.wait_for("journal[0]", "waits for an unknown task")
    clock.now_s += 600
    health.beat()
    assert health.live() is None
    assert health.ready() == "journal[0]: waits for an unknown task"


def test_a_silent_event_loop_is_not_live() -> None:
    clock = Clock()
    health = Health(60, clock)
    clock.now_s += BEATS_LATE_S_MAX + 1
    assert health.live() == "the event loop has not run for 21 s"


def test_a_partition_given_away_is_forgotten() -> None:
    clock = Clock()
    health = Health(60, clock)
    health.note("journal[0]", 10, 20)
    health.forget("journal[0]")
    clock.now_s += 61
    health.beat()
    assert health.live() is None


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def served(health: Health, metrics: Metrics, port: int = 0) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, "127.0.0.1", port, health.live, health.ready).start()
    try:
        yield server
    finally:
        server.close()


def test_the_metrics_port_answers_live_ready_and_metrics() -> None:
    health, metrics = Health(60, Clock()), worker_metrics()
    metrics.add("headrace_dead_letters", 2, topic="shop.orders", reason="bad-json")
    with served(health, metrics) as server:
        assert get(server.port, "/live") == (200, "ok\n")
        assert get(server.port, "/ready") == (503, "start: the worker is starting\n")
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert 'headrace_dead_letters_total{reason="bad-json",topic="shop.orders"} 2.0' in text
        assert get(server.port, "/")[0] == 404


def test_a_taken_metrics_port_is_one_clear_sentence() -> None:
    health, metrics = Health(60, Clock()), worker_metrics()
    with (
        served(health, metrics) as server,
        pytest.raises(
            UserError, match=f"metrics port 127.0.0.1:{server.port} cannot be opened: Address already in use"
        ),
        served(health, metrics, server.port),
    ):
        pass


def test_a_metric_that_is_in_no_catalogue_cannot_be_counted() -> None:
    metrics = Metrics([Metric("known", "counter", "records", "Known.", "none needed")])
    with pytest.raises(KeyError):
        metrics.add("unknown")
