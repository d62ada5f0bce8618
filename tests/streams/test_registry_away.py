"""Workers while the schema registry is away: a request that needs it is refused, what stands in our own logs waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from schemas.blocks import OutcomeBlock
from schemas.chain import ChainReader
from schemas.codec import encode
from schemas.outage import Outage
from schemas.records import DecisionRequest
from schemas.registry import FileRegistry, RegistryUnavailable
from schemas.settings import CommonSettings, load_settings
from schemas.task import TaskTable
from streams import agents_join
from streams.agents_ingest import IngestAgent
from streams.agents_join import JoinAgent
from streams.agents_ports import Ports
from streams.health import Health
from streams.metrics import worker_metrics
from streams.read_back import ReadState
from streams.redelivery import Redelivery
from streams.salvage import salvage
from streams.settings import WorkerSettings
from streams.transport_batch import pack
from tests.kafka.decider_process import project
from tests.kafka.journal_writer import decision_block, outcome_block
from tests.kafka.workers import until
from tests.schemas.away import AwayRegistry, message

REGISTRY = FileRegistry()
FOREIGN = b"\0\0\0\0\x27\x10rest"


def test_of_a_request_whose_schema_cannot_be_fetched_nothing_is_salvaged() -> None:
    assert salvage(FOREIGN, AwayRegistry()) is None
    assert salvage(encode(DecisionRequest("d", "route", "s", {}), REGISTRY), AwayRegistry()) is None


# redelivery


def test_the_search_for_earlier_answers_waits_for_a_schema_rather_than_decide_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry, stopping, beats = AwayRegistry("OutcomeBlock"), threading.Event(), list[int]()
    task = project("unit").tasks[0]
    settings = load_settings(CommonSettings, namespace="unit", bootstrap="127.0.0.1:1")
    search = Redelivery(settings, registry, TaskTable([task]), 4, stopping, lambda: beats.append(1), Outage())
    block = decision_block(task, ["d0", "d1"], ["s", "s"])
    partition, offset = int(block.request_partitions[0]), int(block.request_offsets[0])
    search._requests = block.request_topic
    found: dict[tuple[int, int], Any] = {}
    search._collect(message(encode(outcome_block(0, 0, ["d0"], ["s"]), REGISTRY)), {partition: 0}, found)
    assert not beats, "what is known to be no decision is passed over without the registry"
    collecting = threading.Thread(
        target=search._collect, args=(message(encode(block, REGISTRY)), {partition: 0}, found), daemon=True
    )
    collecting.start()
    until(lambda: len(beats) > 1, 20)
    assert not found
    registry.away = False
    collecting.join(20)
    assert (partition, offset) in found
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


# join


def join_agent() -> JoinAgent:
    """One without Faust, whose registry is away."""

    def ports(restart: Callable[[int, str], None]) -> Ports:
        nothing: Any = None
        settings, table = load_settings(WorkerSettings, namespace="unit"), TaskTable()
        return Ports(
            settings, AwayRegistry(), table, nothing, nothing, worker_metrics(), restart, lambda: 0, 100
        )  # fmt: skip

    app: Any = SimpleNamespace(rebalancing=False, outage=Outage())
    return JoinAgent(app, ports, Health(60.0), lambda error: pytest.fail(str(error)))


def test_a_rebuild_waits_until_the_registry_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def read_state(*_: Any) -> ReadState:
        tries.append(1)
        if len(tries) < 4:
            raise RegistryUnavailable("the schema registry did not answer", "check that it runs")
        return ReadState(None, ChainReader(), 0, 0, 0, 0, 0)

    async def run() -> None:
        offsets = await join_agent().starting_offsets({TP("unit.journal", 1)})
        assert offsets == {TP("unit.journal", 1): 0}

    monkeypatch.setattr(agents_join, "read_state", read_state)
    monkeypatch.setattr(agents_join, "RETRY_S", 0.01)
    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len(tries) == 4
    assert len(caplog.records) == 1


# ingest


def test_outcomes_wait_for_a_schema_and_the_worker_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = AwayRegistry()
    seconds = [0.0]
    health = Health(60.0, lambda: seconds[0])
    nothing: Any = None
    agent = IngestAgent(
        load_settings(WorkerSettings, namespace="unit"), registry, 4, (), nothing, nothing, worker_metrics(), health,
        lambda error: pytest.fail(str(error)),
    )  # fmt: skip
    agent.assigned(set())
    payloads: Sequence[bytes] = [b'{"subject": "s", "type": "click"}', FOREIGN]
    batch = pack(
        "unit.outcomes", 2, [SimpleNamespace(offset=k, timestamp=0, value=value) for k, value in enumerate(payloads)]
    )

    async def run() -> None:
        health.note("unit.outcomes[2]", 0, 2)
        decoding = asyncio.ensure_future(agent._decoded(batch, None))
        while registry.num_asked < 3:
            await asyncio.sleep(0.01)
            seconds[0] += 100.0
            health.beat()
            health.note("unit.outcomes[2]", 0, 2)
            assert health.live() is None
        assert "waits for the schema registry" in (health.ready() or "")
        registry.away = False
        found = await decoding
        assert [len(block) for _, block in found.blocks if isinstance(block, OutcomeBlock)] == [1]
        assert [(refused.index, refused.reason) for refused in found.refused] == [(1, "unknown-schema")]
        assert health.ready() is None

    monkeypatch.setattr("streams.agents_ingest.RETRY_S", 0.02)
    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len(caplog.records) == 1
