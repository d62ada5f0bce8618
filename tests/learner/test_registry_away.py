"""A learner while the schema registry is away: it waits, passes over nothing, and learns the same."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner import loop
from learner.consume import Received
from learner.definitions import Definitions
from learner.loop import Loop
from learner.merge import Merge
from learner.publish import signed
from learner.settings import LearnerSettings
from learner.watch import ManifestWatch
from schemas import codec
from schemas.errors import UserError
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings, load_settings
from schemas.task import parse
from tests.learner.test_publish import snapshot
from tests.learner.transition_rows import FINGERPRINTS, block, progress
from tests.schemas.away import AwayRegistry

REGISTRY = FileRegistry()
SETTINGS = CommonSettings(bootstrap="127.0.0.1:1", namespace="unit")


def message(payload: bytes, offset: int) -> Any:
    """As librdkafka gives it."""
    return SimpleNamespace(
        value=lambda: payload,
        offset=lambda: offset,
        partition=lambda: 0,
        timestamp=lambda: (2, 1_000 + offset),
        topic=lambda: "unit.tasks",
        error=lambda: None,
    )


class Client:
    """A consumer that gives what is put into `log`, each message once."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, len(self.log)

    def assign(self, _: Any) -> None:
        pass

    def poll(self, _: float) -> Any:
        return self.log.pop(0) if self.log else None

    def consume(self, num: int, _: float) -> list[Any]:
        given, self.log = self.log[:num], self.log[num:]
        return given


PROJECT = parse("""
[namespace]
name = "unit"
[[tasks]]
name = "route"
actions = ["a", "b"]
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
""")


def test_definitions_that_cannot_be_decoded_now_are_known_when_they_can() -> None:
    registry = AwayRegistry()
    definitions = Definitions(SETTINGS, registry)
    task = PROJECT.tasks[0]
    written = [PROJECT.namespace.record(), task.record(), task.record(retired=True)]
    client: Any = Client([message(codec.encode(record, REGISTRY), k) for k, record in enumerate(written)])
    definitions._consumer = client
    with pytest.raises(UserError, match="waits for its schema: the schema registry did not answer"):
        definitions.read_to_end(0.1)
    assert (definitions.namespace, definitions.find(task.fingerprint)) == (None, None)
    assert definitions.poll() == 0
    registry.away = False
    assert definitions.poll() == 3
    found = definitions.find(task.fingerprint)
    assert found is not None
    assert (found.task, found.retired_ms) == (task, 1_002), "in the order of the log"
    assert definitions.namespace == PROJECT.namespace


def test_a_manifest_that_cannot_be_decoded_now_is_watched_when_it_can() -> None:
    registry, key = AwayRegistry(), Ed25519PrivateKey.generate()
    watch = ManifestWatch(SETTINGS, registry, "main", key.public_key(), 0)
    sent = [signed(snapshot(version).draft, key) for version in (1, 2)]
    client: Any = Client([message(codec.encode(manifest, REGISTRY), k) for k, manifest in enumerate(sent)])
    watch._consumer = client

    def look() -> list[int]:
        watch._looked_s = float("-inf")
        return [manifest.version for manifest, _ in watch.look()]

    assert look() == []
    assert look() == []
    registry.away = False
    assert look() == [1, 2]
    assert look() == []


class Reader:
    """Transitions that come in two batches; it counts how often it is asked."""

    def __init__(self, *batches: list[Received]) -> None:
        self.batches = list(batches)
        self.num_reads = 0
        self.paused: set[int] = set()

    def read(self, _: float) -> list[Received]:
        self.num_reads += 1
        return self.batches.pop(0) if self.batches else []

    def pause_only(self, _: Any) -> None:
        pass

    def lag(self, _partition: int, _next_offset: int) -> int:
        return 0


def test_transitions_that_cannot_be_decoded_now_wait_and_are_offered_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = [
        block([0, 1], [10, 20]),
        progress(0, 100, {FINGERPRINTS[0]: 1}),
        block([3], [110], prev=1),
        progress(0, 200, {FINGERPRINTS[0]: 3}),
    ]
    received = [Received(0, k, codec.encode(record, REGISTRY), 0) for k, record in enumerate(written)]
    registry = AwayRegistry("TransitionBlock")
    process: Any = Loop(load_settings(LearnerSettings, state_dir=tmp_path), threading.Event())
    reader = Reader(received[:2], received[2:])
    nothing = SimpleNamespace(settle=lambda: None)
    process._registry, process._reader, process._merge, process._uploads = registry, reader, Merge(1, 100), nothing
    process._beat = float("inf")
    for name in ("_look_at_manifests", "_advance"):
        monkeypatch.setattr(process, name, lambda: None)
    monkeypatch.setattr(loop, "READ_S", 0.001)
    for _ in range(20):
        process._turn()
    assert (reader.num_reads, process._merge.next_offsets) == (1, [1]), "no more is read while records wait"
    assert process._ready() == "waits for the schema registry"
    registry.away = False
    for _ in range(3):
        process._turn()
    assert (process._merge.next_offsets, process._merge.times_ms) == ([4], [200])
    assert process._ready() is None
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert not process.metrics.value("headrace_learner_alarms", kind="malformed", partition=0)
