"""One published policy version in memory, and the checks that stand between a message and its use.

Owns the reader's order: size caps, signature, version, sha256, shapes and finiteness, shadow load, probes.
Pure: persisting the trusted version and swapping are the follower's (`streams.snapshots`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.policy import network, probes, shapes
from learner.policy.blank import blank_weights
from learner.policy.explore import Explorer
from learner.policy.serving import Forward
from schemas import weights as tensors
from schemas.records import SnapshotManifest
from schemas.task import Task, TaskTable
from streams.examples import example_of
from streams.features import Encoder

SNAPSHOT_BYTES_MAX = 1 << 30
"""1 GiB: four times the largest token table; two versions are in memory during a swap."""

CHUNK_BYTES_MAX = 900 * 1024
"""Chunks are this long, but for the last (architecture §7)."""

TASKS_MAX = 4096
"""Tasks one snapshot serves at most."""

MANIFEST_BYTES_MAX = 1 << 20
"""What fits into one message of a broker with default limits."""

Weights = Mapping[str, Any]


class Refused(Exception):
    """A snapshot that must not serve. `reason` is a code for metrics, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


REFUSALS = {
    "too-large": "more bytes, chunks, tasks or probes than a snapshot may have, or chunks that do not fit its size",
    "no-signature": "the manifest is not signed",
    "bad-signature": "the signature does not belong to this manifest and the worker's public key",
    "old-version": "it is below the version that the worker trusts, or that version with other content",
    "missing-chunk": "a chunk that it names is gone, or is not there yet",
    "wrong-size": "its chunks are longer or shorter than it says",
    "wrong-sha256": "its chunks hold other bytes than it says",
    "bad-weights": "its bytes are no weights that fit their task",
    "missing-weights": "it names a task whose weights it does not hold",
    "probes": "it scores its own probe inputs otherwise than the learner did",
    "unreadable-manifest": "the message is no manifest; the reason of its dead letter says what is wrong",
    "not-persisted": "the worker cannot write its trusted version: nothing is wrong with the snapshot, no dead letter",
}
"""Every reason for which a snapshot is refused, in the order of the checks, and what it means."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One task of a snapshot, with everything worked out that no request changes."""

    weights: Weights
    forward: Forward
    explorer: Explorer


@dataclass(frozen=True, slots=True)
class Policy:
    """A verified snapshot, ready to decide. Replaced as a whole, never changed."""

    version: int
    sha256: bytes
    cut_ms: int
    """Rows with closed_at up to this log time are in."""
    tasks: Mapping[bytes, Loaded]
    """By task fingerprint."""

    def serves(self, task: Task) -> bool:
        """Whether it has weights for exactly this definition."""
        return task.fingerprint in self.tasks


Verify = Callable[[SnapshotManifest], bool]
"""Whether the signature is right; None stands for a worker in insecure development mode."""


def check_manifest(
    manifest: SnapshotManifest,
    verify: Verify | None,
    trusted: tuple[int, bytes],
    size_bytes_max: int = SNAPSHOT_BYTES_MAX,
) -> None:
    """Size caps, signature, version: all that can be refused before a chunk is read.

    `trusted` is the persisted (version, sha256): below it nothing loads, at it only the same content (a restart).
    Raises Refused.
    """
    num_chunks = -(-manifest.size_bytes // CHUNK_BYTES_MAX)
    if not 0 < manifest.size_bytes <= size_bytes_max:
        raise Refused("too-large", f"{manifest.size_bytes} bytes, expected 1 to {size_bytes_max}")
    if len(manifest.chunk_offsets) != num_chunks:
        found = len(manifest.chunk_offsets)
        raise Refused("too-large", f"{found} chunks, expected {num_chunks} for {manifest.size_bytes} bytes")
    if len(manifest.tasks) > TASKS_MAX or len(manifest.probes) > MANIFEST_BYTES_MAX:
        raise Refused("too-large", f"{len(manifest.tasks)} tasks and {len(manifest.probes)} bytes of probes")
    if verify is not None:
        if not manifest.signature:
            raise Refused("no-signature", "the manifest is not signed")
        if not verify(manifest):
            raise Refused("bad-signature", "the signature does not belong to this manifest and our public key")
    version, sha256 = trusted
    if manifest.version < version:
        raise Refused("old-version", f"version {manifest.version}, trusted is {version}")
    if manifest.version == version and sha256 and manifest.sha256 != sha256:
        raise Refused("old-version", f"version {version} again, with other content than the trusted one")


def verify_and_load(
    manifest: SnapshotManifest,
    chunks: Sequence[bytes],
    verify: Verify | None,
    trusted: tuple[int, bytes],
    table: TaskTable,
    size_bytes_max: int = SNAPSHOT_BYTES_MAX,
) -> Policy:
    """The policy of a manifest and its chunks, after every check of architecture §7 but persisting.

    Tasks that `table` does not know are left out: their policy would not be used either. Raises Refused.
    """
    check_manifest(manifest, verify, trusted, size_bytes_max)
    payload = _assembled(manifest, chunks)
    try:
        arrays, _ = tensors.unpack(payload)
    except ValueError as error:
        raise Refused("bad-weights", str(error)) from error
    tasks = {key: task for key in manifest.tasks if (task := table.get(key)) is not None}
    weights = _by_task(arrays, tasks)
    loaded = _shadow_load(weights, tasks)
    prepared = {key: ready.weights for key, ready in loaded.items()}
    serving = {key: ready.forward.scores for key, ready in loaded.items()}
    reason = probes.check(manifest.probes, tasks, prepared, serving) if manifest.probes else None
    if reason is not None:
        raise Refused("probes", reason)
    return Policy(manifest.version, manifest.sha256, manifest.cut_ms, loaded)


def _assembled(manifest: SnapshotManifest, chunks: Sequence[bytes]) -> bytes:
    """All chunks in one, checked by size and sha256."""
    payload = b"".join(chunks)
    if len(payload) != manifest.size_bytes:
        raise Refused("wrong-size", f"{len(payload)} bytes in chunks, the manifest says {manifest.size_bytes}")
    found = hashlib.sha256(payload).digest()
    if found != manifest.sha256:
        raise Refused("wrong-sha256", f"sha256 {found.hex()[:16]}…, the manifest says {manifest.sha256.hex()[:16]}…")
    return payload


def _by_task(arrays: Mapping[str, Any], tasks: Mapping[bytes, Task]) -> dict[bytes, dict[str, Any]]:
    """Arrays called ``<fingerprint hex>/<name>``, by fingerprint and name, of the tasks known here."""
    weights: dict[bytes, dict[str, Any]] = {key: {} for key in tasks}
    by_hex = {key.hex(): key for key in tasks}
    for name, array in arrays.items():
        prefix, _, rest = name.partition("/")
        if prefix in by_hex:
            weights[by_hex[prefix]][rest] = array
    for key, found in weights.items():
        if not found:
            raise Refused("missing-weights", f"task {tasks[key].name} is in the manifest, its weights are not")
    return weights


def blank_policy(table: TaskTable) -> Policy:
    """A policy that knows nothing, for rehearsals: loaded and probed as a real one, so that all of it is compiled."""
    tasks = {task.fingerprint: task for task in table.current}
    weights = {key: blank_weights(task) for key, task in tasks.items()}
    loaded = _shadow_load(weights, tasks)
    inputs = {
        key: probes.ProbeInputs(columns, np.ones(int(columns.num_candidates.sum()), np.bool_))
        for key, task in tasks.items()
        for columns in [Encoder(task).encode([example_of(task)]).columns]
    }
    reason = probes.check(
        probes.pack(inputs, tasks, weights), tasks, {key: each.weights for key, each in loaded.items()}
    )
    assert reason is None, reason
    return Policy(0, b"", 0, loaded)


def _shadow_load(weights: Mapping[bytes, Weights], tasks: Mapping[bytes, Task]) -> dict[bytes, Loaded]:
    """Make everything a decision needs, beside the policy that serves, and decide a made-up request with it."""
    loaded = {}
    for key, task in tasks.items():
        fault = shapes.fault_of(weights[key], task)
        if fault is not None:
            raise Refused("bad-weights", f"task {task.name}: {fault}")
        try:
            prepared = network.prepare(weights[key], task)
            ready = Loaded(prepared, Forward.of(prepared, task), Explorer.of(weights[key], task))
            columns = Encoder(task).encode([example_of(task)]).columns
            scores = ready.forward.scores(columns)
            ready.explorer.integers(scores, columns.num_candidates, np.ones(len(scores), np.bool_))
        except (KeyError, ValueError, IndexError, TypeError, ArithmeticError) as error:
            raise Refused("bad-weights", f"task {task.name}: {type(error).__name__}: {error}") from error
        loaded[key] = ready
    return loaded
