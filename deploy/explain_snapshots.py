"""Snapshots as lineage needs them: the version that decided, with its bytes, and the first that a decision is in.

With a public key, manifests that it did not sign are believed in nothing. They are shown, as wrong, only where no other
of the version is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from deploy import reading
from deploy.explain_parts import SnapshotShown, TrainedShown
from learner.cuts import CutState
from learner.merge import Position
from schemas import weights as tensors
from schemas.blocks import KIND_TRANSITION
from schemas.codec import BadRecord, decode
from schemas.records import SnapshotManifest
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.signing_keys import load_public_key
from schemas.topics import topic

Weights = Mapping[str, npt.NDArray[Any]]
Published = tuple[reading.Entry, SnapshotManifest]

STEP = 64
"""Manifests read at first when going backwards; four times as many at each further step."""
CLOCK_SLACK_MS = 3_600_000
"""Append times of two partitions may lie so far apart."""
NO_VERSION = "no policy decided"


class Snapshots:
    """Looks into `snapshots` and `snapshot-chunks` of one namespace."""

    def __init__(self, settings: CommonSettings, registry: Registry, num_partitions: int) -> None:
        """Raises `UserError` when the public key named in the settings cannot be read."""
        self._settings, self._registry = settings, registry
        self._name = topic(settings.namespace, "snapshots")
        self._key = load_public_key(settings.public_key) if settings.public_key is not None else None
        self._whole = CutState.start([Position(p) for p in range(num_partitions)], 0).genesis
        """Of a history that begins where the log does."""

    def of_version(
        self, version: int, decided_ms: int, fingerprint: bytes
    ) -> tuple[SnapshotShown | None, Weights | None, str]:
        """The manifest of the version that decided at `decided_ms`, the task's weights, or why there are none."""
        if version == 0:
            return None, None, NO_VERSION
        published = self._published(version, decided_ms)
        published = [each for each in published if self._is_signed(each[1])] or published
        if not published:
            return None, None, f"no manifest of version {version} is left in {self._name}"
        first = published[0][1]
        others = {each.sha256.hex() for _, each in published} - {first.sha256.hex()}
        shown = self._shown(published[0], sorted(others))
        weights, absent = None, ""
        for _, manifest in reversed(published):  # chunks are kept a day: those of the newest upload live longest
            if manifest.sha256 == first.sha256 and weights is None:
                weights, absent = self._weights(manifest, fingerprint)
        return shown, weights, absent

    def first_trained(self, partition: int, fingerprint: bytes, position: int, closed_ms: int) -> TrainedShown | None:
        """The first manifest in the log whose learner had taken the row at `position`; None while there is none."""
        start = reading.offset_at(self._settings, self._name, 0, closed_ms - CLOCK_SLACK_MS)
        _, end = reading.span_of(self._settings, self._name, 0)
        before: set[str] = set()
        for entry, manifest in self._manifests(start, end):
            if not self._is_signed(manifest):
                continue
            genesis = manifest.environment.get("genesis", "")
            if _mark(manifest, partition, fingerprint) >= position:
                is_certain = genesis in before or genesis == self._whole
                digest = manifest.sha256.hex()
                return TrainedShown(manifest.version, digest, entry.where, manifest.cut_ms, is_certain)
            before.add(genesis)
        return None

    def _published(self, version: int, decided_ms: int) -> list[Published]:
        """Every manifest of a version, in the log's order. Versions rise along the log, so few others are read."""
        first, end = reading.span_of(self._settings, self._name, 0)
        stop = reading.offset_at(self._settings, self._name, 0, decided_ms + CLOCK_SLACK_MS)
        step, start = STEP, stop
        found: list[Published] = []
        while start > first:
            start, stop, step = max(first, start - step), start, 4 * step
            part = list(self._manifests(start, stop))
            found = [each for each in part if each[1].version == version] + found
            if any(manifest.version < version and self._is_signed(manifest) for _, manifest in part):
                break
        later = reading.offset_at(self._settings, self._name, 0, decided_ms + CLOCK_SLACK_MS)
        for entry, manifest in self._manifests(later, end):
            if manifest.version > version and self._is_signed(manifest):
                break
            if manifest.version == version:
                found.append((entry, manifest))
        return found

    def _manifests(self, start: int, stop: int) -> Iterator[Published]:
        for entry in reading.read_span(self._settings, self._name, 0, start, stop):
            with contextlib.suppress(BadRecord):
                yield entry, decode(entry.value, self._registry, expect=SnapshotManifest)

    def _is_signed(self, manifest: SnapshotManifest) -> bool:
        """By the public key; without one everything is taken for so, and said not to be checked."""
        return self._key is None or tensors.verify(manifest, self._key)

    def _shown(self, published: Published, others: list[str]) -> SnapshotShown:
        entry, manifest = published
        signature = "not checked: set HEADRACE_PUBLIC_KEY or give --public-key"
        if not manifest.signature:
            signature = "wrong" if self._key is not None else "none"
        elif self._key is not None:
            signature = "valid" if self._is_signed(manifest) else "wrong"
        return SnapshotShown(
            version=manifest.version,
            sha256=manifest.sha256.hex(),
            parent_sha256=manifest.parent_sha256.hex(),
            channel=manifest.channel,
            where=entry.where,
            cut_ms=manifest.cut_ms,
            cut_number=manifest.cut_number,
            chain_hash=manifest.chain_hash.hex(),
            genesis=manifest.environment.get("genesis", ""),
            signature=signature,
            signature_hex=manifest.signature.hex(),
            other_sha256=others,
        )

    def _weights(self, manifest: SnapshotManifest, fingerprint: bytes) -> tuple[Weights | None, str]:
        """The task's arrays out of the chunks, checked against the manifest's sha256; or why there are none."""
        name = topic(self._settings.namespace, "snapshot-chunks")
        if not manifest.chunk_offsets:
            return None, "the manifest names no chunks"
        wanted = set(manifest.chunk_offsets)
        span = reading.read_span(self._settings, name, 0, min(wanted), max(wanted) + 1)
        found = {entry.offset: entry.value for entry in span if entry.offset in wanted}
        if len(found) < len(wanted):
            return None, f"the chunks of version {manifest.version} are gone from {name}, which keeps them for a day"
        payload = b"".join(found[offset] for offset in manifest.chunk_offsets)
        if tensors.sha256(payload) != manifest.sha256:
            return None, f"the chunks of version {manifest.version} are not those of its manifest: other sha256"
        arrays, _ = tensors.unpack(payload)
        prefix = f"{fingerprint.hex()}/"
        weights = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        return (weights, "") if weights else (None, f"version {manifest.version} holds no weights of the task")


def _mark(manifest: SnapshotManifest, partition: int, fingerprint: bytes) -> int:
    """Last position of the chain that the snapshot has learnt, -1 for none."""
    return max(
        (
            chain.hwm
            for trained in manifest.trained
            if trained.partition == partition
            for chain in trained.chains
            if (chain.fingerprint, chain.kind) == (fingerprint, KIND_TRANSITION)
        ),
        default=-1,
    )
