"""The processes of a whole namespace around their real cores: what they have in common, and ingest.

What a class does between two calls of the scheduler is what its shell does (named in each docstring): read, call the
core, write, commit what is finished. Writes meet their fate in the outboxes, later or never. The deciders stand in
`chain_deciders`, the learner in `chain_learner`, the joins in `join_worker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from schemas.codec import encode
from schemas.records import Decision
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import Project
from streams.ingest import ingest
from streams.offsets import Offsets
from tests.simulation.broker import Broker
from tests.simulation.join_worker import batch_of
from tests.simulation.virtual import Ack, Faults, Outbox

REGISTRY = FileRegistry()


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
