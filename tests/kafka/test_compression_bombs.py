"""A kilobyte that decompresses to hundreds of megabytes harms only itself, whoever reads it.

The broker looks at the compressed size alone: with its defaults it takes what these tests send. Ingest bounds what it
decompresses by itself, decide reads through librdkafka (docs/decisions/0018-what-is-decompressed.md).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.codec import encode
from schemas.records import Outcome
from schemas.settings import CommonSettings
from schemas.topics import topic
from tests.kafka import decider_process
from tests.kafka.workers import REGISTRY, WorkerProcess, project, read_all, set_up, until, worker

MIB = 1 << 20
GROWTH_MIB_MAX = 400.0
"""Of a decider: the client itself makes room for the bomb, twice while it grows."""
INGEST_GROWTH_MIB_MAX = 96.0


def _send(settings: CommonSettings, name: str, values: list[bytes], codec: str, partition: int = 0) -> None:
    """Into one partition, each value in a record batch of its own."""
    client = Producer(
        {
            "bootstrap.servers": settings.bootstrap,
            "compression.type": codec,
            "message.max.bytes": 400 * MIB,
            "batch.num.messages": 1,
            "linger.ms": 0,
        }
    )
    for value in values:
        client.produce(topic(settings.namespace, name), value, partition=partition)
        assert client.flush(60) == 0


def _peak_mib(process: WorkerProcess) -> float:
    """The most memory that it ever held."""
    lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _reasons(settings: CommonSettings, num: int) -> list[tuple[str, int]]:
    return [(letter.reason, letter.offset) for *_, letter in read_all(settings, "dead-letters", num)]


@pytest.mark.parametrize(("codec", "num_mib"), [("zstd", 300), ("gzip", 90)])
def test_ingest_leaves_a_dead_letter_and_goes_on(
    broker: str, namespace: str, tmp_path: Path, codec: str, num_mib: int
) -> None:
    bomb = bytes(num_mib * MIB)
    settings = set_up(broker, project(namespace))
    good = [encode(Outcome("ada", "resolved", 1.0, f"o{i}", f"d{i}"), REGISTRY) for i in range(3)]
    with worker("ingest", settings, tmp_path) as ingest:
        before_mib = _peak_mib(ingest)
        _send(settings, "outcomes", [good[0], bomb, good[1], bomb, good[2]], codec)
        until(lambda: ingest.metric("headrace_ingest_outcomes_total") == 3, 60, ingest.said)
        assert _reasons(settings, 2) == [("too-large", 1), ("too-large", 3)]
        assert _peak_mib(ingest) - before_mib < INGEST_GROWTH_MIB_MAX
        code, _ = ingest.stop()
    assert code == 0, ingest.said()


@pytest.mark.parametrize("codec", ["gzip", "lz4"])
def test_decide_leaves_a_dead_letter_and_goes_on(broker: str, namespace: str, tmp_path: Path, codec: str) -> None:
    settings = set_up(broker, decider_process.project(namespace))
    good = [json.dumps(decider_process.route(i)).encode() for i in range(3)]
    with decider_process.decider(settings, tmp_path) as decide:
        before_mib = _peak_mib(decide)
        shop = decider_process.Shop(settings)
        _send(settings, "requests", [good[0], bytes(90 * MIB), good[1], bytes(90 * MIB), good[2]], codec)
        shop.collect(3, 60)
        shop.close()
        assert _reasons(settings, 2) == [("too-large", 1), ("too-large", 3)]
        assert _peak_mib(decide) - before_mib < GROWTH_MIB_MAX
        code, _ = decide.stop()
    assert code == 0, decide.said()


def test_what_deciders_cannot_decompress_stops_its_own_partition_alone_also_for_who_takes_over(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    """librdkafka fetches zstd beyond 100 MB again, for ever."""
    settings = set_up(broker, decider_process.project(namespace))
    _send(settings, "requests", [bytes(300 * MIB)], "zstd")
    for number in range(2):
        with decider_process.decider(settings, tmp_path) as decide:
            shop = decider_process.Shop(settings)
            good = json.dumps(decider_process.route(number)).encode()
            _send(settings, "requests", [good], "none", partition=1)
            shop.collect(number + 1, 60)
            shop.close()
            code, _ = decide.stop()
        assert code == 0, decide.said()
