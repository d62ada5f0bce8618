"""A broker that was silent says, for a moment after it is back, that no topic has a leader and no broker is there.

Found by CI: a decider asked in that moment, believed it for librdkafka's five minutes, and answered nobody meanwhile.
Without a refresh of metadata that happens to half of the clients here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from deploy import broker as local_broker
from deploy.topics import create
from schemas.settings import CommonSettings
from schemas.topics import topic

SILENT_S = 12.0
"""Longer than Kafka's broker.session.timeout.ms, 9 s: its controller fences it."""
NUM_ASKING = 80
EVERY_S = 0.01
ANSWERED_S_MAX = 45.0
CUT_OFF_MAX = NUM_ASKING // 10
"""A few forget the broker for good (librdkafka's issue 5301, decision 24); a new client is answered."""
CALL_S = 2.0


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[local_broker.RunningBroker]:
    running = local_broker.start(tmp_path / "broker", port=0, tied=True)
    try:
        yield running
    finally:
        for node in running.nodes:
            os.kill(node.pid, signal.SIGCONT)
        local_broker.stop(tmp_path / "broker")


def asked(consumer: Consumer, name: str, took_s: list[float]) -> None:
    """Ask where the topic ends until the broker says it, as `streams.redelivery` does."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < ANSWERED_S_MAX:
        try:
            consumer.get_watermark_offsets(TopicPartition(name, 0), timeout=CALL_S)
        except KafkaException:
            time.sleep(0.5)
        else:
            took_s.append(time.monotonic() - began_s)
            return


@pytest.mark.timeout(200)
def test_whoever_asks_when_the_broker_is_back_is_answered_soon(own_broker: local_broker.RunningBroker) -> None:
    settings = CommonSettings(bootstrap=own_broker.bootstrap, namespace="silent")
    create(settings, partitions=1)
    consumers = [Consumer(settings.librdkafka(**{"group.id": "asks", "log_level": 0})) for _ in range(NUM_ASKING)]
    took_s: list[float] = []
    threads = [
        threading.Thread(target=asked, args=(consumer, topic("silent", "requests"), took_s)) for consumer in consumers
    ]
    for node in own_broker.nodes:
        os.kill(node.pid, signal.SIGSTOP)
    time.sleep(SILENT_S)
    for node in own_broker.nodes:
        os.kill(node.pid, signal.SIGCONT)
    for thread in threads:
        thread.start()
        time.sleep(EVERY_S)
    for thread in threads:
        thread.join()
    for consumer in consumers:
        consumer.close()
    cut_off = NUM_ASKING - len(took_s)
    assert cut_off <= CUT_OFF_MAX, f"{cut_off} were not answered within {ANSWERED_S_MAX:.0f} s"
    latecomer = Consumer(settings.librdkafka(**{"group.id": "asks"}))
    asked(latecomer, topic("silent", "requests"), took_s)
    latecomer.close()
    assert len(took_s) == NUM_ASKING - cut_off + 1
