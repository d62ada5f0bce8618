"""What is published already, as a starting learner sees it: signed by its own key, or not there. A topic in memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner import metrics, published
from learner.cuts import CutState
from learner.merge import Position
from learner.namespace import Snapshot
from learner.publish import signed
from learner.published import Published, read_published
from learner.restore import _keep_or_break_lineage, _rebased, start_of
from learner.uploads import Uploads
from schemas import codec
from schemas.records import SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from tests.learner.test_publish import snapshot

REGISTRY = FileRegistry()
SETTINGS = CommonSettings(bootstrap="127.0.0.1:1", namespace="unit")
KEY, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
POSITIONS = [Position(0), Position(1)]
GENESIS = CutState.start(POSITIONS, 0).genesis
VERSION_MAX = 2**63 - 1


class Message:
    def __init__(self, offset: int, payload: bytes) -> None:
        self._offset, self._payload = offset, payload

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._payload

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000 + self._offset

    def error(self) -> None:
        return None


def consumer_of(log: list[bytes]) -> Any:
    class Client:
        def __init__(self, *_: Any, **__: Any) -> None:
            self._next = 0

        def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
            return 0, len(log)

        def assign(self, partitions: Any) -> None:
            self._next = partitions[0].offset

        def poll(self, _: float) -> Message:
            self._next += 1
            return Message(self._next - 1, log[self._next - 1])

        def close(self) -> None:
            pass

    return Client


def real(version: int, mark: bytes = b"x") -> SnapshotManifest:
    return signed(snapshot(version, mark=mark, genesis=GENESIS, torch="ours").draft, KEY)


def forged(version: int, key: Ed25519PrivateKey | None = None, **environment: str) -> SnapshotManifest:
    draft = replace(snapshot(version, mark=b"forged", genesis=GENESIS, **environment).draft, cut_ms=0)
    return replace(draft, signature=b"") if key is None else signed(draft, key)


def found(monkeypatch: pytest.MonkeyPatch, *log: SnapshotManifest | bytes, from_version: int = 0) -> Published:
    payloads = [each if isinstance(each, bytes) else codec.encode(each, REGISTRY) for each in log]
    monkeypatch.setattr(published, "Consumer", consumer_of(payloads))
    return read_published(SETTINGS, REGISTRY, "main", KEY.public_key(), from_version)


@pytest.mark.parametrize("key", [None, STRANGER])
def test_a_start_believes_no_version_that_its_key_did_not_sign(
    monkeypatch: pytest.MonkeyPatch, key: Ed25519PrivateKey | None
) -> None:
    there = found(monkeypatch, real(1), real(2), forged(VERSION_MAX, key, torch="forged"))
    assert (there.version, sorted(there.entries), there.next_offset) == (2, [1, 2], 3)
    assert start_of(POSITIONS, there).version_base == 0
    cut = replace(CutState.start(POSITIONS, 0), number=1)
    assert _rebased(cut, there) == cut


def test_a_forged_environment_does_not_refuse_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    there = found(monkeypatch, real(3), forged(4, torch="forged"))
    assert there.newest is not None
    before = {name: value for name, value in there.newest.environment.items() if name != "genesis"}
    learner: Any = type("Learner", (), {"environment": {"torch": "ours"}, "cut": CutState(), "last": None})()
    assert not _keep_or_break_lineage(learner, before, there, allow=False)


def test_a_forged_manifest_neither_hides_the_real_one_of_its_version_nor_raises_an_equivocation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = found(monkeypatch, forged(1), real(1), forged(1, STRANGER))
    counted = metrics.make()
    adopted: list[int] = []

    class Takes:
        def submit(self, snapshot: Snapshot) -> None:
            raise AssertionError("it stands in the topic already")

        def adopt(self, snapshot: Snapshot, age_s: float) -> None:
            adopted.append(snapshot.draft.version)

    Uploads(Takes(), there, counted).offer(snapshot(1, genesis=GENESIS, torch="ours"), is_behind=False)
    assert adopted == [1]
    assert counted.value("headrace_learner_equivocations") == 0


def test_what_is_passed_over_is_counted_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        there = found(monkeypatch, real(1), b"no manifest", *[forged(version) for version in range(2, 200)])
    assert there.num_foreign == 199
    (said,) = caplog.records
    assert "199 messages passed over, the first at offset 1: " in said.getMessage()
    assert there.version == 1


def test_others_do_not_hide_the_newest_of_ones_own_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MANIFESTS_MAX", 64)
    assert found(monkeypatch, real(5), *[forged(6)] * 100).version == 5
    assert found(monkeypatch, *[real(version) for version in range(1, 101)]).entries.keys() == set(range(37, 101))


def test_of_another_channel_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    other = signed(replace(snapshot(9).draft, channel="fresh"), STRANGER)
    assert found(monkeypatch, real(1), other).num_foreign == 0
    assert not caplog.records
