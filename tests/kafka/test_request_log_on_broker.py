"""Every request is read, whatever becomes of the client that reads them.

Found by torture: 200 kills of the broker took partitions from deciders that held them back. They had them back, alive
and ready, and never read them again: a pause outlives the assignment in the client.

Found by CI: a client that the broker told, just back from a silence, that no broker is there, never read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer

from schemas.outage import Outage
from schemas.settings import load_settings
from schemas.topics import topic
from streams.decider_settings import DeciderSettings
from streams.messages import place_of
from streams.offsets import Offsets
from streams.request_log import RequestLog
from tests.kafka.workers import producer, until

PARTITIONS = 4
NUM_REQUESTS = 50
"""Per partition."""
IN_FLIGHT_MAX = 10


class Worker:
    """A request log whose requests are answered when we say so."""

    def __init__(self, settings: DeciderSettings) -> None:
        self.offsets, self.read_places = Offsets(), set[tuple[int, int]]()
        nothing: Any = SimpleNamespace(
            answered=lambda *_: {}, drop=lambda *_, **__: None, wait_for=lambda *_: None, forget=lambda *_: None
        )
        self.log = RequestLog(settings, self.offsets, nothing, lambda _: 0, nothing, nothing, Outage())
        self._has_subscribed = False

    def read(self) -> int:
        """Take what comes; how many."""
        if not self._has_subscribed:
            self._has_subscribed = True
            self.log.subscribe()
        places = [place_of(message) for message in self.log.read(0.1)]
        for place in places:
            self.offsets.begin(*place)
        self.read_places.update(places)
        return len(places)

    def answer_all(self) -> None:
        """Everything that was read is finished."""
        for place in self.read_places:
            self.offsets.end(*place)

    def holds_back(self) -> bool:
        """Whether more than the limit is on its way, and nothing comes."""
        return self.read() == 0 and self.offsets.num_open > IN_FLIGHT_MAX


@pytest.fixture
def settings(broker: str, namespace: str, tmp_path: Path, create_topics: Callable[..., None]) -> DeciderSettings:
    create_topics(PARTITIONS)
    settings = load_settings(
        DeciderSettings,
        bootstrap=broker, namespace=namespace, state_dir=tmp_path, insecure_dev=True, decide_batch_max=4,
        decide_in_flight_max=IN_FLIGHT_MAX,
    )  # fmt: skip
    fill = producer(settings)
    for partition in range(PARTITIONS):
        for _ in range(NUM_REQUESTS):
            fill.produce(topic(namespace, "requests"), b"request", partition=partition)
    assert fill.flush(30) == 0
    return settings


@pytest.fixture
def worker(settings: DeciderSettings) -> Iterator[Worker]:
    """In the group from its first `read` on."""
    made = Worker(settings)
    yield made
    made.log.close(10)


@pytest.fixture
def second(settings: DeciderSettings) -> Iterator[Consumer]:
    """Another member of the group, which answers nothing."""
    group = {"group.id": f"{settings.namespace}.decide", "partition.assignment.strategy": "cooperative-sticky"}
    consumer = Consumer({"bootstrap.servers": settings.bootstrap, "enable.auto.commit": False, **group})
    yield consumer
    with suppress(RuntimeError):  # the test has closed it
        consumer.close()


def has_read_everything(worker: Worker) -> bool:
    """Answer what was read, read on."""
    worker.answer_all()
    worker.read()
    return len(worker.read_places) == PARTITIONS * NUM_REQUESTS


def test_partitions_held_back_when_they_were_taken_away_are_read_when_they_come_back(
    settings: DeciderSettings, worker: Worker, second: Consumer
) -> None:
    until(worker.holds_back, 60)
    second.subscribe([topic(settings.namespace, "requests")])

    def has_given_some_away() -> bool:
        second.poll(0.05)
        worker.read()
        return len(second.assignment()) == PARTITIONS // 2

    until(has_given_some_away, 60)
    second.close()
    until(lambda: has_read_everything(worker), 60, lambda: f"{len(worker.read_places)} of {PARTITIONS * NUM_REQUESTS}")


def test_a_partition_that_comes_while_others_are_held_back_does_not_leave_them_so(
    settings: DeciderSettings, worker: Worker, second: Consumer
) -> None:
    second.subscribe([topic(settings.namespace, "requests")])
    until(lambda: second.poll(0.05) is None and len(second.assignment()) == PARTITIONS, 60)

    def shares() -> bool:
        second.poll(0.05)
        return worker.holds_back() and len(second.assignment()) == PARTITIONS // 2

    until(shares, 60)
    held = sorted(worker.read_places)
    for place in held[: len(held) - IN_FLIGHT_MAX + 1]:  # fewer than the limit are left, more than half of it
        worker.offsets.end(*place)
    second.close()
    until(lambda: worker.read() > 0, 60)
    until(lambda: has_read_everything(worker), 60, lambda: f"{len(worker.read_places)} of {PARTITIONS * NUM_REQUESTS}")


@pytest.mark.parametrize("holds_back", [False, True])
def test_where_a_client_will_never_read_again_a_new_one_reads_all_that_is_not_committed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, holds_back: bool
) -> None:
    until((lambda: worker.holds_back()) if holds_back else (lambda: worker.read() > 0), 60)
    before, old = set(worker.read_places), id(worker.log._consumer)  # no reference: that would keep it in the group
    worker.log.renew()
    assert id(worker.log._consumer) == old, "it will read again"
    monkeypatch.setattr(worker.log._membership, "look", lambda: "out of its group")
    worker.log.renew()
    assert id(worker.log._consumer) != old
    assert worker.offsets.num_open == 0, "what it had read counts as not done"
    worker.answer_all()
    assert worker.offsets.take() == {}, "and is committed by nobody"
    worker.read_places.clear()
    until(lambda: has_read_everything(worker), 60, lambda: f"{len(worker.read_places)} of {PARTITIONS * NUM_REQUESTS}")
    assert before <= worker.read_places
    monkeypatch.undo()
    until(lambda: worker.read() == 0 and worker.log._membership.has_coordinator, 30)
    new = id(worker.log._consumer)
    worker.log.renew()
    assert id(worker.log._consumer) == new, "it is in the group and reads"
