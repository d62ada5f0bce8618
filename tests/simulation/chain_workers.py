"""The processes of a whole namespace around their real cores: decide, ingest, learner, and the snapshot follower.

What a class here does between two calls of the scheduler is what its shell does (named in each docstring): read, call
the core, write, commit what is finished. Writes meet their fate in the outboxes, later or never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
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
from schemas.codec import decode, decode_request, encode
from schemas.records import Decision, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import Project, Task, TaskTable
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import blocks_of
from streams.ingest import ingest
from streams.offsets import Offsets
from streams.redelivery import Logged, Redelivery, answer_of
from streams.snapshots import SnapshotFollower
from streams.trusted_version import TrustedVersion
from tests.simulation.broker import Broker, ListConsumer
from tests.simulation.join_worker import NAMESPACE, batch_of
from tests.simulation.learning import SAME, HashOfRows
from tests.simulation.truth import require
from tests.simulation.virtual import Ack, Faults, Outbox

REGISTRY = FileRegistry()
BACK = "a worker went back to an older snapshot"
UNVERIFIED = "a version is trusted that was never verified"
STALE = "a restarted worker does not serve what it trusts"


@dataclass
class Net:
    """What all processes of a run share."""

    rng: Random
    broker: Broker
    project: Project
    folder: Path
    settings: CommonSettings
    signing_key: Any
    answers: list[tuple[Decision, int, int]]
    """What the shop heard: answer, request partition, request offset."""
    owner: dict[tuple[str, int], Any]
    """Who owns what by the broker's word: a commit of anyone else is refused."""

    def commit(self, group: str, process: Any, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            if self.owner.get((group, partition)) is process:
                self.broker.committed[group, partition] = offset


class Process:
    """Something that reads a share of a topic as a group member and writes to the journal."""

    group = topic = ""
    failed = False
    """A write was refused: the process ends, and another starts from what is committed."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.assignment: frozenset[int] = frozenset()
        self.position: dict[int, int] = {}
        """Next offset of every partition that it believes to own."""
        self.offsets = Offsets()
        self.outboxes: dict[int, Outbox] = net.broker.outboxes("journal")

    def obey(self) -> None:
        """Act on the newest assignment."""
        gone = self.position.keys() - self.assignment
        if gone:
            self.commit()
            self.offsets.disown(gone)
            self.position = {p: offset for p, offset in self.position.items() if p not in gone}
        given = sorted(self.assignment - self.position.keys())
        if given:
            self.assigned(given)

    def assigned(self, given: list[int]) -> None:
        self.offsets.own(given)
        for partition in given:
            self.position[partition] = self.net.broker.committed.get((self.group, partition), 0)

    def commit(self) -> None:
        self.net.commit(self.group, self, self.offsets.take())

    def deliver(self, faults: Faults) -> None:
        for partition in self.net.rng.sample(sorted(self.outboxes), len(self.outboxes)):
            if len(self.outboxes[partition]) and not self.failed and self.net.rng.random() < 0.6:
                self.outboxes[partition].deliver(faults.strike(self.net.rng))

    def die(self) -> None:
        for outbox in self.outboxes.values():
            outbox.die(0 if self.failed else self.net.rng.randint(0, len(outbox)))

    def batch(self) -> tuple[int, int, int] | None:
        """(partition, first, stop) of what is read next."""
        logs = self.net.broker.logs[self.topic]
        ready = [p for p, offset in self.position.items() if offset < len(logs[p])]
        if not ready:
            return None
        partition = self.net.rng.choice(ready)
        first = self.position[partition]
        stop = min(len(logs[partition]), first + self.net.rng.choice((1, 2, 4)))
        self.position[partition] = stop
        for offset in range(first, stop):
            self.offsets.begin(partition, offset)
        return partition, first, stop

    def is_idle(self) -> bool:
        logs = self.net.broker.logs[self.topic]
        read = all(offset == len(logs[p]) for p, offset in self.position.items())
        return read and not self.offsets.num_open and not any(map(len, self.outboxes.values()))


class IngestProcess(Process):
    """`streams.agents_ingest`: a batch is acked when all of it is in the journal; an error ends the process."""

    group, topic = "ingest", "outcomes"

    def turn(self) -> None:
        read = self.batch()
        if read is None:
            return
        partition, first, stop = read
        batch = batch_of("outcomes", partition, self.net.broker.logs["outcomes"][partition], first, stop)
        found = ingest(batch, None, REGISTRY, len(self.outboxes))
        left = len(found.blocks)

        def landed(ack: Ack) -> None:
            nonlocal left
            left -= 1
            self.failed = self.failed or ack.exception() is not None
            if not left and not self.failed:
                self._done(partition, first, stop)

        for journal_partition, block in found.blocks:
            self.outboxes[journal_partition].put(encode(block, REGISTRY)).add_done_callback(landed)
        if not found.blocks:
            self._done(partition, first, stop)

    def _done(self, partition: int, first: int, stop: int) -> None:
        for offset in range(first, stop):
            self.offsets.end(partition, offset)


class Follower(SnapshotFollower):
    """The real follower without its thread and with a consumer of lists."""

    broker: Broker

    def __init__(self, net: Net, folder: Path, table: TaskTable) -> None:
        super().__init__(replace_dir(net.settings, folder), REGISTRY, table)
        self.broker = net.broker
        manifests: Any = ListConsumer(net.broker, NAMESPACE)
        pieces: Any = ListConsumer(net.broker, NAMESPACE)
        self._manifests, self._pieces = manifests, pieces
        self._pending = self._at_start(self._manifests)
        self.turn()

    def turn(self) -> None:
        """One round of `_run`."""
        if self._pending:
            self._pending = self._take_newest(self._pending, self._pieces)
        self._pending = self._newer(self._manifests, self._pending)

    @property
    def trusted(self) -> int:
        return self._trusted.value[0]


def replace_dir(settings: CommonSettings, folder: Path) -> CommonSettings:
    return settings.model_copy(update={"state_dir": folder})


class LookBack(Redelivery):
    """The real look-up with a consumer of lists."""

    broker: Broker

    def _consumer(self) -> Any:
        return ListConsumer(self.broker, NAMESPACE)


class DeciderProcess(Process):
    """`streams.decider` and `streams.request_log`: decide, write, answer at the ack, commit what is answered."""

    group, topic = "decide", "requests"

    def __init__(self, net: Net, folder: Path) -> None:
        super().__init__(net)
        self.table = TaskTable(net.project.tasks)
        self.decide = Decide(net.project.namespace, self.table, lambda block: len(encode(block, REGISTRY)))
        self.redelivery = LookBack(net.settings, REGISTRY, self.table, len(self.outboxes))
        self.redelivery.broker = net.broker
        self.logged: dict[tuple[int, int], Logged] = {}
        self.folder = folder
        before = _trusted_before(folder)
        self.follower = Follower(net, folder, self.table)
        serving = self.follower.policy.version if self.follower.policy else 0
        require(serving >= before or not net_holds(net, before), STALE, (serving, before))
        self.served = serving

    def follow(self) -> None:
        """The follower's thread runs for a while."""
        before = self.follower.trusted
        self.follower.turn()
        serving = self.follower.policy.version if self.follower.policy else 0
        require(serving >= self.served and self.follower.trusted >= before, BACK, (self.served, serving))
        require(self.follower.trusted <= max(before, serving), UNVERIFIED, self.follower.trusted)
        self.served = serving

    def assigned(self, given: list[int]) -> None:
        committed = {p: self.net.broker.committed.get((self.group, p), 0) for p in given}
        self.logged.update(self.redelivery.answered(committed, self.net.broker.now_ms))
        super().assigned(given)

    def turn(self) -> None:
        read = self.batch()
        if read is None:
            return
        partition, first, stop = read
        batch = []
        for offset in range(first, stop):
            time_ms, payload = self.net.broker.logs["requests"][partition][offset]
            logged = self.logged.pop((partition, offset), None)
            decision = answer_of(logged, self.table, self.net.broker.now_ms) if logged is not None else None
            if decision is not None:
                self._answer(decision, partition, offset)
            else:
                batch.append(Asked(decode_request(payload, REGISTRY), partition, offset, time_ms))
        if batch:
            self._decide(batch)

    def _decide(self, batch: list[Asked]) -> None:
        situation = Situation(self.net.broker.now_ms, self.follower.policy, self.follower.refused)
        decided = self.decide.batch(batch, situation)
        for group in decided.groups:
            name = f"{NAMESPACE}.requests"
            for partition, rows, block in blocks_of(group.task, group.version, group.rows, group.columns, name):
                answers = [(group.decisions[row], batch[group.rows[row].index]) for row in rows]
                ack = self.outboxes[partition].put(encode(block, REGISTRY))
                ack.add_done_callback(partial(self._landed, answers))
        for each in decided.unjournaled:
            self._answer(each.decision, batch[each.index].partition, batch[each.index].offset)

    def _landed(self, answers: list[tuple[Decision, Asked]], ack: Ack) -> None:
        self.failed = self.failed or ack.exception() is not None
        for decision, asked in () if self.failed else answers:
            self._answer(decision, asked.partition, asked.offset)

    def _answer(self, decision: Decision, partition: int, offset: int) -> None:
        self.net.answers.append((decision, partition, offset))
        self.offsets.end(partition, offset)


def _trusted_before(folder: Path) -> int:
    return TrustedVersion(folder, NAMESPACE).value[0]


def net_holds(net: Net, version: int) -> bool:
    """Whether the newest manifests hold this version, with its chunks as they were."""
    chunks = net.broker.logs["snapshot-chunks"][0]
    for _, value in net.broker.logs["snapshots"][0][-8:]:
        manifest = decode(value, REGISTRY)
        whole = b"".join(chunks[offset][1] for offset in manifest.chunk_offsets if offset < len(chunks))
        if manifest.version == version and manifest.sha256 == _sha256(whole):
            return True
    return False


def _sha256(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


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
