"""The deciders of a whole namespace, each with the real snapshot follower and its trusted version on disk."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

from schemas.codec import decode, decode_request, encode
from schemas.outage import Outage
from schemas.records import Decision
from schemas.settings import CommonSettings
from schemas.task import TaskTable
from schemas.topics import topic
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import parts_of
from streams.redelivery import Logged, Redelivery, answer_of
from streams.snapshot_log import Chunks
from streams.snapshots import SnapshotFollower
from streams.trusted_version import TrustedVersion
from tests.simulation.broker import Broker, ListConsumer
from tests.simulation.chain_workers import REGISTRY, Net, Process
from tests.simulation.join_worker import NAMESPACE
from tests.simulation.truth import require
from tests.simulation.virtual import Ack

BACK = "a worker went back to an older snapshot"
UNVERIFIED = "a version is trusted that was never verified"
STALE = "a restarted worker does not serve what it trusts"


class Follower(SnapshotFollower):
    """The real follower without its thread and with a consumer of lists."""

    broker: Broker

    def __init__(self, net: Net, folder: Path, table: TaskTable) -> None:
        super().__init__(replace_dir(net.settings, folder), REGISTRY, table)
        self.broker = net.broker
        manifests: Any = ListConsumer(net.broker, NAMESPACE)
        self._following = self._manifests(manifests)
        pieces: Any = ListConsumer(net.broker, NAMESPACE)
        self._chunks = Chunks(pieces, topic(NAMESPACE, "snapshot-chunks"), self._stopping, pieces.now_s)
        self._pending = self._following.at_start()
        self.turn()

    def turn(self) -> None:
        """One round of `_run`."""
        if self._pending:
            self._pending = self._take_newest(self._pending, self._chunks)
        self._pending = self._newer(self._following, self._pending)

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
        self.redelivery = LookBack(
            net.settings, REGISTRY, self.table, len(self.outboxes), threading.Event(), lambda: None, Outage()
        )
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
            for rows, part in parts_of(group.task, group.version, group.rows, group.columns, name):
                answers = [(group.decisions[row], batch[group.rows[row].index]) for row in rows]
                ack = self.outboxes[part.partition].put(encode(part.block(), REGISTRY))
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
