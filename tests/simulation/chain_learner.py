"""The learner of a namespace: the real merge, namespace learner and uploads. A hash of all rows is its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from learner.cuts import CutRules, CutState
from learner.merge import Merge
from learner.namespace import Definition, NamespaceLearner, Snapshot
from learner.policy.blank import blank_weights
from learner.publish import chunks_of, signed
from learner.published import Entry, Published
from learner.uploads import Uploads
from schemas.codec import decode, encode
from schemas.records import SnapshotManifest
from schemas.task import Task
from tests.simulation.chain_workers import REGISTRY, Net
from tests.simulation.learning import SAME, HashOfRows
from tests.simulation.truth import require
from tests.simulation.virtual import Faults, Outbox


class ServingHash(HashOfRows):
    """A hash of all rows whose bits are the weights that workers decide by: learning wrongly changes decisions."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._task = task

    def weights(self) -> Mapping[str, np.ndarray[Any, Any]]:
        arrays = {name: array.copy() for name, array in blank_weights(self._task).items()}
        bits = np.frombuffer(self._digest * 8, np.uint8).astype(np.float64) / 256
        for name in ("wide", "stack"):
            arrays[name] = np.resize(bits, arrays[name].shape).astype(arrays[name].dtype)
        arrays["stats"][0] = self.num_rows
        return arrays


class LearnerProcess:
    """`learner.loop`: read, merge, learn, hand snapshots over, checkpoint now and then; one publisher beside it."""

    rules = CutRules(bucket_ms=10_000, publish_ms=100_000, publish_bytes_per_s=10_000_000)

    def __init__(self, net: Net, disk: list[Any], versions: dict[int, Snapshot]) -> None:
        """`disk` holds the checkpoints of all lives, `versions` every snapshot ever made."""
        self.net, self.disk, self.versions = net, disk, versions
        self._logs = net.broker.logs["transitions"]
        known = {task.fingerprint: Definition(task) for task in net.project.tasks}
        start = CutState.start(Merge(len(self._logs), self.rules.bucket_ms).positions(), 0)
        self.learner = NamespaceLearner(ServingHash, known.get, self.rules, start, {})
        positions: Any = ()
        if disk and net.rng.random() < 0.9:
            (arrays, values), positions = net.rng.choice(disk[-3:])
            self.learner.load_state(arrays, values)
        self.merge = Merge(len(self._logs), self.rules.bucket_ms, positions)
        self.alarms: list[str] = []
        self._waiting: Snapshot | None = None
        self._chunks, self._manifests = net.broker.outboxes("snapshot-chunks")[0], net.broker.outboxes("snapshots")[0]
        metrics: Any = SimpleNamespace(add=lambda name, **_: self.alarms.append(name))
        self._uploads = Uploads(self, _published(net), metrics)

    def turn(self) -> None:
        left = [p for p, offset in enumerate(self.merge.next_offsets) if offset < len(self._logs[p])]
        if not left:
            return
        partition = self.net.rng.choice(left)
        first = self.merge.next_offsets[partition]
        for offset in range(first, min(len(self._logs[partition]), first + 6)):
            record = decode(self._logs[partition][offset][1], REGISTRY)
            alarm = self.merge.offer(partition, offset, record, 100)
            self.alarms += [alarm.kind] if alarm is not None else []
        for snapshot in self.learner.advance(self.merge):
            known = self.versions.setdefault(snapshot.draft.version, snapshot)
            require(known.payload == snapshot.payload, SAME, snapshot.draft.version)
            self._uploads.offer(snapshot, is_behind=False)
            if self.net.rng.random() < 0.5:
                self.disk.append((self.learner.state(), self.merge.positions()))

    def submit(self, snapshot: Snapshot) -> None:
        self._waiting = snapshot

    def adopt(self, snapshot: Snapshot, age_s: float) -> None:
        pass

    def publish(self, faults: Faults) -> None:
        """`learner.publish`: chunks, their acks, then the manifest. Any error: again, unless a newer one waits."""
        snapshot, self._waiting = self._waiting, None
        if snapshot is None:
            return
        offsets: list[int] = []
        for piece in chunks_of(snapshot.payload):
            if not self._wrote(self._chunks, bytes(piece), faults, offsets):
                self._waiting = self._waiting or snapshot
                return
        manifest = signed(replace(snapshot.draft, chunk_offsets=tuple(offsets)), self.net.signing_key)
        if not self._wrote(self._manifests, encode(manifest, REGISTRY), faults, []):
            self._waiting = self._waiting or snapshot

    def _wrote(self, outbox: Outbox, payload: bytes, faults: Faults, offsets: list[int]) -> bool:
        ack = outbox.put(payload)
        outbox.deliver(faults.strike(self.net.rng))
        if ack.exception() is None:
            offsets.append(ack.result())
        return ack.exception() is None

    @property
    def digests(self) -> dict[bytes, bytes]:
        arrays, _ = self.learner.state()
        found = {name.split("/")[1]: array for name, array in arrays.items() if name.endswith("/digest")}
        return {bytes.fromhex(prefix): array.tobytes() for prefix, array in found.items()}


def _published(net: Net) -> Published:
    """As `learner.published.read_published`."""
    found = Published()
    for time_ms, value in net.broker.logs["snapshots"][0]:
        manifest = decode(value, REGISTRY, expect=SnapshotManifest)
        found.entries[manifest.version] = Entry(manifest.sha256, manifest.environment, time_ms)
        if found.newest is None or manifest.version > found.newest.version:
            found.newest = manifest
    return found
