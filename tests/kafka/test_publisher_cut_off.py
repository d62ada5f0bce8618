"""A publisher whose Kafka client is never answered again, beside a broker that answers others (decision 24)."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

from learner import metrics, publish
from schemas.outage import Outage
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.signing_keys import create_keys, load_private_key
from tests.kafka.decider_process import project
from tests.kafka.snapshot_publisher import snapshot_of
from tests.kafka.workers import set_up, until


class CutOff(publish.Publisher):
    """Its first client has no broker to ask; those after it have."""

    num_clients = 0

    def _new_producer(self) -> Producer:
        self.num_clients += 1
        if self.num_clients > 1:
            return super()._new_producer()
        return Producer({"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500, "log_level": 0})


def test_a_snapshot_that_no_broker_took_is_published_by_a_new_client(
    broker: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "DELIVERY_S_MAX", 5.0)
    wanted = project(namespace)
    set_up(broker, wanted)
    private, _ = create_keys(tmp_path / "keys")
    counters = metrics.make()
    settings = CommonSettings(bootstrap=broker, namespace=namespace)
    cut_off = CutOff(settings, FileRegistry(), load_private_key(private), counters, 3600.0, Outage()).start()
    try:
        cut_off.submit(snapshot_of(wanted.task("route"), 1, 0, 100))

        until(lambda: cut_off.flush(0.1), 30, lambda: f"{cut_off.num_clients} clients")

        assert cut_off.num_clients == 2
    finally:
        cut_off.close()
