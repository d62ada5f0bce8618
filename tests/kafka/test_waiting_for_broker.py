"""Processes that start while no broker is there: they wait as long as they were told to, and then serve."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deploy import broker as local_broker
from schemas.broker_wait import Probe
from schemas.settings import CommonSettings
from tests.kafka import decider_process
from tests.kafka.decider_process import DeciderProcess
from tests.kafka.workers import WorkerProcess, free_port, set_up, until

WAITS = "no broker answers at"


@pytest.mark.timeout(280)
def test_workers_started_before_the_broker_wait_for_it_and_serve(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    running = local_broker.start(folder, port=free_port(), tied=True)
    try:
        settings = set_up(running.bootstrap, decider_process.project("early"))
        local_broker.stop(folder)
        started = [
            WorkerProcess("ingest+join", settings, tmp_path, broker_wait_s=120),
            DeciderProcess(settings, tmp_path, broker_wait_s=120),
        ]
        try:
            for each in started:
                until(lambda: WAITS in each.said(), 60, each.said)  # noqa: B023 - asked before the next
                assert each.process.poll() is None
            local_broker.start(folder, port=int(running.bootstrap.rpartition(":")[2]), tied=True)
            for each in started:
                each.wait_ready()
        finally:
            for each in started:
                each.end()
    finally:
        local_broker.stop(folder)


def test_a_probe_finds_a_broker_that_is_there_and_keeps_nobody_waiting_for_one_that_is_not(broker: str) -> None:
    nobody, somebody = (Probe(CommonSettings(bootstrap=address)) for address in ("127.0.0.1:1", broker))
    began_s = time.monotonic()
    assert not nobody()
    assert not somebody(), "it answers the question before"
    assert time.monotonic() - began_s < 1.0
    until(somebody, 30)
    assert not nobody()
