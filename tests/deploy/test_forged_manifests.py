"""Tools that read manifests with a public key: what it did not sign stands for no version. A topic in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy import explain_snapshots, reading, replay
from learner.publish import signed
from learner.settings import LearnerSettings
from schemas import codec
from schemas.errors import UserError
from schemas.records import ChainPosition, SnapshotManifest, TrainedPosition
from schemas.registry import FileRegistry
from schemas.signing_keys import PUBLIC_KEY_FILE, create_keys, load_private_key
from tests.learner.test_publish import snapshot

REGISTRY = FileRegistry()
FINGERPRINT = b"f" * 16


def forged(version: int) -> SnapshotManifest:
    return manifest(version, b"forged", hwm=1 << 40)


def manifest(version: int, mark: bytes = b"x", hwm: int = 0) -> SnapshotManifest:
    trained = (TrainedPosition(0, 1, 0, (ChainPosition(FINGERPRINT, 0, hwm),)),)
    return replace(snapshot(version, mark=mark).draft, trained=trained)


class World:
    """Settings with keys, and what stands in the topic of manifests."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        private, _ = create_keys(folder)
        self._key = load_private_key(private)
        self.settings = LearnerSettings(namespace="unit", public_key=folder / PUBLIC_KEY_FILE)
        self._log: list[SnapshotManifest] = []
        monkeypatch.setattr(reading, "span_of", lambda *_: (0, len(self._log)))
        monkeypatch.setattr(reading, "offset_at", lambda *_: len(self._log))
        monkeypatch.setattr(reading, "read_span", self._read)

    def holds(self, *log: SnapshotManifest) -> None:
        self._log = list(log)

    def real(self, version: int, hwm: int = 0) -> SnapshotManifest:
        return signed(manifest(version, hwm=hwm), self._key)

    def _read(self, _settings: Any, name: str, _partition: int, start: int, stop: int) -> Iterator[reading.Entry]:
        for offset in range(start, stop):
            yield reading.Entry(name, 0, offset, 0, b"", codec.encode(self._log[offset], REGISTRY))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_replay_finds_the_signed_manifest_behind_forged_ones(world: World) -> None:
    world.holds(forged(2), world.real(1), forged(2), world.real(2), forged(0))
    assert replay._manifest(world.settings, REGISTRY, 2) == world.real(2)
    world.holds(world.real(1), forged(2))
    with pytest.raises(UserError, match="of version 2 is not signed with"):
        replay._manifest(world.settings, REGISTRY, 2)
    with pytest.raises(UserError, match=r"version 9 was never published .*published are 1 to 1"):
        replay._manifest(world.settings, REGISTRY, 9)


def test_explain_shows_the_signed_manifest_of_a_version_and_a_forged_one_as_wrong(world: World) -> None:
    snapshots = explain_snapshots.Snapshots(world.settings, REGISTRY, 1)
    world.holds(world.real(1), forged(2), world.real(2), forged(0), forged(3))
    shown, _, _ = snapshots.of_version(2, 0, FINGERPRINT)
    assert shown is not None
    assert (shown.signature, shown.sha256, shown.other_sha256) == ("valid", world.real(2).sha256.hex(), [])
    shown, _, _ = snapshots.of_version(3, 0, FINGERPRINT)
    assert shown is not None
    assert shown.signature == "wrong"


def test_explain_takes_no_forged_manifest_for_the_first_that_learnt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.holds(forged(1), world.real(2, hwm=4), world.real(3, hwm=7))
    monkeypatch.setattr(reading, "offset_at", lambda *_: 0)
    found = explain_snapshots.Snapshots(world.settings, REGISTRY, 1).first_trained(0, FINGERPRINT, 7, 0)
    assert found is not None
    assert found.version == 3
