"""The learner's publisher with made-up snapshots; run as a script it is a process that a fault point may kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learner import metrics
from learner.namespace import Snapshot
from learner.publish import Publisher
from schemas import weights as tensors
from schemas.fault_points import VARIABLE
from schemas.outage import Outage
from schemas.records import DecisionRequest, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.signing_keys import load_private_key
from schemas.task import Task
from tests.kafka.decider_process import project
from tests.kafka.snapshot_topic import probes_of, weights_of

UPLOAD_S_MAX = 90.0


def snapshot_of(task: Task, version: int, favourite: int, padding_bytes: int) -> Snapshot:
    """A snapshot that prefers one action, with so many bytes of a task that no worker knows."""
    weights = weights_of(task, favourite)
    arrays = {f"{task.fingerprint.hex()}/{name}": array for name, array in weights.items()}
    arrays[f"{'0' * 32}/padding"] = np.random.default_rng(version).integers(0, 256, padding_bytes, np.uint8)
    payload = tensors.pack(arrays, {})
    requests = [DecisionRequest(f"p{k}", task.name, "p", {"text": f"a card {k}"}) for k in range(4)]
    draft = SnapshotManifest(
        version=version,
        parent_sha256=b"",
        sha256=tensors.sha256(payload),
        size_bytes=len(payload),
        chunk_offsets=(),
        cut_ms=1000 * version,
        trained=(),
        chain_hash=b"\0" * 32,
        cut_number=version,
        tasks=(task.fingerprint,),
        environment={},
        rows_learnt={},
        probes=probes_of(task, weights, requests),
        channel="main",
    )
    return Snapshot(draft, payload)


def publish(settings: CommonSettings, key: Path, snapshots: Sequence[Snapshot]) -> None:
    """Upload them one after another, as the learner does."""
    publisher = Publisher(settings, FileRegistry(), load_private_key(key), metrics.make(), 3600.0, Outage()).start()
    for snapshot in snapshots:
        publisher.submit(snapshot)
        assert publisher.flush(UPLOAD_S_MAX), "not uploaded in time"
    publisher.close()


def spawn(
    settings: CommonSettings, key: Path, version: int, favourite: int, padding_bytes: int, faults: str
) -> subprocess.Popen[bytes]:
    """A process that uploads one snapshot and dies where `faults` says."""
    root = Path(__file__).resolve().parents[2]
    arguments = [settings.bootstrap, settings.namespace, str(key), str(version), str(favourite), str(padding_bytes)]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env={**os.environ, VARIABLE: faults, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )


def main(bootstrap: str, namespace: str, key: str, version: str, favourite: str, padding_bytes: str) -> None:
    task = project(namespace).task("route")
    snapshot = snapshot_of(task, int(version), int(favourite), int(padding_bytes))
    publish(CommonSettings(bootstrap=bootstrap, namespace=namespace), Path(key), [snapshot])


if __name__ == "__main__":
    main(*sys.argv[1:])
