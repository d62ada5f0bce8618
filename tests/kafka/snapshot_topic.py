"""A learner's side of the model topic, by hand: packs, signs, uploads, and spoils snapshots for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from learner.policy import explore, network, probes
from schemas import weights as tensors
from schemas.codec import encode
from schemas.records import DecisionRequest, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.signing_keys import create_keys, load_private_key
from schemas.task import Task
from schemas.topics import topic
from streams.features import Encoder

REGISTRY = FileRegistry()
CHUNK_BYTES = 900 * 1024


def weights_of(task: Task, favourite: int, num_rows: float = 10_000.0) -> dict[str, np.ndarray[Any, Any]]:
    """The wide head alone, sure that the action at place `favourite` is best."""
    dx, num_actions = task.context.width, len(task.actions)
    wide = np.zeros((1 + dx, num_actions))
    wide[0, favourite] = 1.0
    return {
        "stats": np.array([num_rows, 0.5, 0.25, 1e-6, 0.0, 0.0]),
        "stack": np.ones(1),
        "action_rows": np.full(num_actions, 1000, np.int64),
        "x_mean": np.zeros(dx),
        "x_scale": np.ones(dx),
        "a_mean": np.zeros(0),
        "a_scale": np.zeros(0),
        "wide": wide,
    }


def probes_of(task: Task, weights: dict[str, Any], requests: list[DecisionRequest]) -> bytes:
    """Probes as the learner packs them."""
    features = Encoder(task).encode(requests).columns
    allowed = np.ones(int(features.num_candidates.sum()), np.bool_)
    inputs = {task.fingerprint: probes.ProbeInputs(features, allowed)}
    return probes.pack(inputs, {task.fingerprint: task}, {task.fingerprint: weights})


class ModelTopic:
    """Publishes snapshots of one task with a key pair in `folder`."""

    def __init__(self, settings: CommonSettings, folder: Path, task: Task) -> None:
        self.private_key_path, self.public_key = create_keys(folder / "keys")
        self._key = load_private_key(self.private_key_path)
        self._namespace = settings.namespace
        self._producer = Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 0, "acks": "all"})
        self._task = task

    def publish(
        self,
        version: int,
        favourite: int = 0,
        *,
        padding_bytes: int = 0,
        spoil_payload: Callable[[bytes], bytes] = lambda payload: payload,
        spoil_chunks: Callable[[list[bytes]], list[bytes]] = lambda chunks: chunks,
        spoil_manifest: Callable[[SnapshotManifest], SnapshotManifest] = lambda manifest: manifest,
        spoil_signed: Callable[[SnapshotManifest], SnapshotManifest] = lambda manifest: manifest,
        weights: dict[str, Any] | None = None,
    ) -> SnapshotManifest:
        """Upload one version; the hooks spoil it before it is hashed, cut, signed or sent."""
        weights = weights or weights_of(self._task, favourite)
        arrays = {f"{self._task.fingerprint.hex()}/{name}": array for name, array in weights.items()}
        if padding_bytes:  # of a task that no worker knows: makes the snapshot large
            arrays[f"{'0' * 32}/padding"] = (
                np.random.default_rng(version).integers(0, 9, padding_bytes).astype(np.uint8)
            )
        payload = spoil_payload(tensors.pack(arrays, {}))
        requests = [DecisionRequest(f"p{k}", self._task.name, "p", {"text": f"a card {k}"}) for k in range(16)]
        manifest = SnapshotManifest(
            version=version,
            parent_sha256=b"",
            sha256=tensors.sha256(payload),
            size_bytes=len(payload),
            chunk_offsets=(),
            cut_ms=1000 * version,
            trained=(),
            chain_hash=b"\0" * 32,
            cut_number=version,
            tasks=(self._task.fingerprint,),
            environment={},
            rows_learnt={},
            probes=probes_of(self._task, weights, requests),
            channel="main",
        )
        chunks = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
        offsets = self.upload(spoil_chunks(chunks))
        manifest = spoil_manifest(replace(manifest, chunk_offsets=tuple(offsets)))
        manifest = spoil_signed(tensors.sign(manifest, self._key))
        self.send(encode(manifest, REGISTRY))
        return manifest

    def upload(self, chunks: list[bytes]) -> list[int]:
        """Chunks to the broker; their offsets."""
        offsets: list[int] = []
        for chunk in chunks:
            self._producer.produce(
                topic(self._namespace, "snapshot-chunks"),
                chunk,
                on_delivery=lambda error, message: offsets.append(int(message.offset())),
            )
        assert self._producer.flush(30) == 0
        return offsets

    def send(self, payload: bytes | None) -> None:
        """A raw message to the topic of manifests."""
        self._producer.produce(topic(self._namespace, "snapshots"), payload, b"main")
        assert self._producer.flush(30) == 0


def favourite_of(policy: Any, task: Task) -> int:
    """Which action a policy thinks best."""
    loaded = policy.tasks[task.fingerprint]
    columns = Encoder(task).encode([DecisionRequest("x", task.name, "x", {"text": "card"})]).columns
    scores = np.asarray(network.scores(loaded.weights, task, columns), np.float64)
    integers = loaded.explorer.integers(scores, columns.num_candidates, np.ones(len(scores), np.bool_))
    assert integers.sum() == explore.PROPENSITY_ONE
    return int(np.argmax(integers))
