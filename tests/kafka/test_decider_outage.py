"""The broker goes away in mid-run and comes back: the decider waits, says so once, and loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import broker as local_broker
from tests.kafka.decider_process import Shop, decider, journaled, project, route
from tests.kafka.workers import set_up

GONE_S = 8.0


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Path]:
    """Folder of a broker that this test may stop; its port stays the same."""
    folder = tmp_path / "broker"
    local_broker.start(folder, port=0, tied=True)
    try:
        yield folder
    finally:
        local_broker.stop(folder)


def test_a_broker_that_is_gone_for_a_while_costs_no_request(own_broker: Path, namespace: str, tmp_path: Path) -> None:
    running = local_broker.status(own_broker)
    assert running is not None
    settings = set_up(running.bootstrap, project(namespace))
    with decider(settings, tmp_path) as process:
        shop = Shop(settings)
        for number in range(100):
            shop.send(route(number))
        shop.collect(100)
        said_before = process.said()
        local_broker.stop(own_broker)
        for number in range(100, 200):
            shop.send(route(number))
        time.sleep(GONE_S)
        local_broker.start(own_broker, port=running.nodes[0].port, tied=True)
        end_s = time.monotonic() + 60
        while len(shop.decided()) < 200:  # of those that were answered when the broker went some are answered again
            assert time.monotonic() < end_s, process.said()
            shop.poll(0.1)
        assert process.process.poll() is None, process.said()
        said = process.said().removeprefix(said_before)
        errors = [line for line in said.splitlines() if " ERROR " in line or " WARNING " in line]
        code, seconds = process.stop()
        shop.poll(0.5)
        shop.close()
    assert (code, seconds < 10) == (0, True)
    assert len(errors) == 1, "\n".join(errors)
    assert "Traceback" not in process.said()
    ids = [block.decision_ids[row] for _, block, row in journaled(settings)]
    assert sorted(ids) == sorted(shop.decided())
    assert len(ids) == 200


def test_sigterm_without_a_broker_still_ends_in_time(own_broker: Path, namespace: str, tmp_path: Path) -> None:
    running = local_broker.status(own_broker)
    assert running is not None
    settings = set_up(running.bootstrap, project(namespace))
    with decider(settings, tmp_path) as process:
        local_broker.stop(own_broker)
        time.sleep(1.0)
        code, seconds = process.stop()
    assert seconds < 10
    assert code == 0, process.said()
