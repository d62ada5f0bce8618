"""A broker that was silent says, for a moment after it is back, that no topic has a leader and no broker is there.

Found by CI: a decider asked in that moment, believed it for librdkafka's five minutes or for ever, and answered nobody.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from deploy import broker as local_broker
from deploy.topics import create
from schemas.outage import Outage
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import TaskTable
from schemas.topics import topic
from streams.redelivery import Redelivery

SILENT_S = 12.0
"""Longer than Kafka's broker.session.timeout.ms, 9 s: its controller fences it."""
NUM_ASKING = 80
EVERY_S = 0.01
ANSWERED_S_MAX = 60.0
RECORD = b"{}"


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[local_broker.RunningBroker]:
    running = local_broker.start(tmp_path / "broker", port=0, tied=True)
    try:
        yield running
    finally:
        for node in running.nodes:
            os.kill(node.pid, signal.SIGCONT)
        local_broker.stop(tmp_path / "broker")


@pytest.mark.timeout(200)
def test_a_decider_that_asks_when_the_broker_is_back_is_answered_soon(own_broker: local_broker.RunningBroker) -> None:
    """It looks up earlier answers, in the requests topic and in the journal, with clients made for that."""
    settings = CommonSettings(bootstrap=own_broker.bootstrap, namespace="silent")
    create(settings, partitions=1)
    fill = Producer(settings.librdkafka())
    for name in ("requests", "journal"):
        fill.produce(topic("silent", name), RECORD, partition=0)
    assert fill.flush(30) == 0
    stopping, took_s = threading.Event(), list[float]()
    registry, table, outage = FileRegistry(), TaskTable(), Outage()

    def look_up() -> None:
        began_s = time.monotonic()
        Redelivery(settings, registry, table, 1, stopping, lambda: None, outage).answered({0: 0}, 0)
        if not stopping.is_set():
            took_s.append(time.monotonic() - began_s)

    threads = [threading.Thread(target=look_up) for _ in range(NUM_ASKING)]
    for node in own_broker.nodes:
        os.kill(node.pid, signal.SIGSTOP)
    time.sleep(SILENT_S)
    for node in own_broker.nodes:
        os.kill(node.pid, signal.SIGCONT)
    for thread in threads:
        thread.start()
        time.sleep(EVERY_S)
    end_s = time.monotonic() + ANSWERED_S_MAX
    for thread in threads:
        thread.join(max(0.0, end_s - time.monotonic()))
    stopping.set()
    for thread in threads:
        thread.join()
    assert len(took_s) == NUM_ASKING, f"{NUM_ASKING - len(took_s)} were not answered within {ANSWERED_S_MAX:.0f} s"
