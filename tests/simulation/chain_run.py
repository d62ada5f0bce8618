"""One seed of a whole namespace: a shop, deciders, ingest, joins, a learner and its snapshots, all in one thread.

Everything passes through a broker of lists in its real bytes. Processes die, pause and come back at any call, groups
rebalance, clocks step at leader changes, writes are lost, doubled or refused. Then the trouble ends, everyone finishes,
and the log is judged: the join by the brute-force join, the learner by the hash it must have come to, the answers by
the journal, the snapshots by what every worker trusted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schemas.blocks import Tick
from schemas.codec import decode, encode
from schemas.records import Candidate, DecisionRequest, Progress
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project, parse
from streams import snapshots
from streams.join import JoinPartition
from tests.simulation.broker import Broker
from tests.simulation.chain_deciders import DeciderProcess
from tests.simulation.chain_judge import Finished, judge, judge_alarms
from tests.simulation.chain_learner import LearnerProcess
from tests.simulation.chain_workers import REGISTRY, IngestProcess, Net, Process
from tests.simulation.join_run import MODES
from tests.simulation.join_worker import NAMESPACE, JoinWorker, Logs, Setting
from tests.simulation.seams import CutAnywhere, owned_partitions, replaced, silence
from tests.simulation.virtual import Clock, Faults

NUM_STEPS = 90
SETTLE_ROUNDS = 500
HEAL_S = 60.0
TOPICS = {"requests": 2, "outcomes": 2, "snapshots": 1, "snapshot-chunks": 1}

PROJECT = """
[namespace]
name = "t"
partitions = {partitions}
[[tasks]]
name = "offer"
[tasks.context]
x = {{ kind = "number" }}
[tasks.action]
z = {{ kind = "number" }}
[tasks.learner]
deep = false
[tasks.reward]
window = "100s"
backward_window = "30s"
min = -2.0
max = 6.0
[tasks.reward.outcomes.click]
aggregate = "sum"
[[tasks]]
name = "route"
actions = ["left", "middle", "right"]
[tasks.context]
x = {{ kind = "number" }}
[tasks.learner]
deep = false
[tasks.reward]
window = "300s"
default = 0.25
min = 0.0
max = 4.0
[tasks.reward.outcomes.click]
aggregate = "count"
[tasks.reward.outcomes.order]
aggregate = "max"
"""


@lru_cache(maxsize=4)
def project_of(partitions: int) -> Project:
    return parse(PROJECT.format(partitions=partitions))


SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC_KEY = SIGNING_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class ChainRun:
    """See the module's docstring. Everything follows from the seed."""

    def __init__(self, seed: int, join: type[JoinPartition] = CutAnywhere) -> None:
        self.rng, self.join = Random(seed), join
        rng = self.rng
        self.partitions = rng.choice((1, 2))
        self.project = project_of(self.partitions)
        self.clock = Clock()
        topics = {**TOPICS, "journal": self.partitions, "transitions": self.partitions}
        self.broker = Broker(self.clock, topics)
        self.mode = self.faults = rng.choice((Faults(), Faults(), Faults(refuse=0.03), *MODES[1:5]))
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-simulation-"))
        public = self.folder / "public.pem"
        public.write_bytes(PUBLIC_KEY)
        settings = load_settings(CommonSettings, namespace=NAMESPACE, public_key=public, state_dir=self.folder)
        self.net = Net(rng, self.broker, self.project, self.folder, settings, SIGNING_KEY, [], {})
        logs = [
            Logs(self.broker.logs["journal"][p], self.broker.logs["transitions"][p]) for p in range(self.partitions)
        ]  # fmt: skip
        wire: Any = SimpleNamespace(decode=lambda value: decode(value, REGISTRY))
        self.setting = Setting(
            rng, logs, wire, self.clock, list(self.project.tasks), self.faults, heal_s=HEAL_S, registry=REGISTRY,
            tick=encode(Tick(), REGISTRY), append_ms=self.broker.append_ms, pause=rng.choice((0.0, 0.2)),
        )  # fmt: skip
        self.restless = rng.choice((0.0, 0.05, 0.15))
        self.steps = rng.random() < 0.3
        self.is_gentle = not (self.steps or self.mode.lose or self.mode.doubt or self.mode.double)
        """Nothing that lets a decision into the journal behind the back of the next owner."""
        self.num_asked = 0
        self.asleep: set[int] = set()
        self.groups: dict[str, list[Any]] = {}

    def run(self) -> None:
        """Raises Wrong."""
        try:
            with (
                silence(),
                owned_partitions(self.rng, None, self.clock, self.join),
                # Machines do not die here, and a disk that is busy with a broker's tests takes its time.
                replaced((snapshots, "time", Impatient()), (os, "fsync", lambda _: None)),
            ):
                self._begin()
                for _ in range(NUM_STEPS):
                    self._step()
                self._settle()
            judge(self._finished())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        rng = self.rng
        self.disk: list[Any] = []
        self.versions: dict[int, Any] = {}
        self.groups = {
            "decide": [self._decider(f"d{index}") for index in range(rng.choice((1, 2)))],
            "ingest": [IngestProcess(self.net) for _ in range(rng.choice((1, 2)))],
            "join": [JoinWorker(self.setting) for _ in range(rng.choice((1, 2)))],
        }
        self.learner = LearnerProcess(self.net, self.disk, self.versions)
        for group in self.groups:
            self._rebalance(group)

    def _decider(self, name: str) -> DeciderProcess:
        return DeciderProcess(self.net, self.folder / name)

    # trouble

    def _step(self) -> None:
        rng = self.rng
        self.clock.now_s += rng.choice((0.1, 1, 5, 20, 60))
        self._shop()
        if self.steps and rng.random() < 0.03:
            place = (rng.choice(("requests", "journal")), rng.randrange(self.partitions))
            self.broker.steps_ms[place] = rng.choice((0, 0, 3_600_000, -3_600_000, -20_000, 20_000))
        if rng.random() < self.restless:
            self._disturb()
        for logs in self.setting.logs:
            logs.visible = min(len(logs.journal), logs.visible + rng.choice((0, 1, 4, 100)))
        for group, processes in self.groups.items():
            for index, process in enumerate(processes):
                if id(process) not in self.asleep:
                    self._act(group, index, process)
        self._learn()

    def _act(self, group: str, index: int, process: Any) -> None:
        rng = self.rng
        if group == "join":
            for partition in range(self.partitions):
                process.deliver(partition, self.faults)
            if process.held.keys() != process.assignment and rng.random() < 0.7:
                process.obey()
            for partition in list(process.held):
                for _ in range(rng.choice((1, 2, 4))):
                    process.turn(partition)
            return
        if process.position.keys() != process.assignment and rng.random() < 0.7:
            process.obey()
        if rng.random() < 0.6:
            process.turn()
        if rng.random() < 0.7:
            process.deliver(self.faults)
        if rng.random() < 0.2:
            process.commit()
        if group == "decide" and rng.random() < 0.4:
            process.follow()
        if process.failed:
            self._kill(group, index)

    def _learn(self) -> None:
        rng = self.rng
        if rng.random() < 0.4:
            self.learner.turn()
        if rng.random() < 0.3:
            self.learner.publish(self.faults)
        if rng.random() < self.restless / 2:
            judge_alarms(self.learner)
            self.learner = LearnerProcess(self.net, self.disk, self.versions)
        manifests = self.broker.logs["snapshots"][0]
        if manifests and rng.random() < 0.01:  # someone brings an old one back
            self.broker.append("snapshots", 0, rng.choice(manifests)[1])

    def _disturb(self) -> None:
        group = self.rng.choice((*sorted(self.groups), "decide"))
        index = self.rng.randrange(len(self.groups[group]))
        choice = self.rng.randrange(4)
        if choice in (0, 3):
            self._kill(group, index)
        elif choice == 1 and len(self.groups[group]) > 1:
            self.asleep.add(id(self.groups[group][index]))
        elif choice == 2:
            self.asleep.clear()
        self._rebalance(group)

    def _kill(self, group: str, index: int) -> None:
        process = self.groups[group][index]
        process.die()
        self.asleep.discard(id(process))
        fresh: Callable[[], Any] = {
            "decide": lambda: self._decider(process.folder.name),
            "ingest": lambda: IngestProcess(self.net),
            "join": lambda: JoinWorker(self.setting),
        }[group]
        self.groups[group][index] = fresh()
        self._rebalance(group)

    def _rebalance(self, group: str) -> None:
        awake = [each for each in self.groups[group] if id(each) not in self.asleep]
        if not awake:
            self.asleep -= {id(each) for each in self.groups[group]}
            awake = self.groups[group]
        shares: dict[int, set[int]] = {id(each): set() for each in awake}
        num = self.partitions if group == "join" else 2
        for partition in range(num):
            owner = self.rng.choice(awake)
            shares[id(owner)].add(partition)
            self.net.owner[group, partition] = owner
        for each in awake:
            each.assignment = frozenset(shares[id(each)])

    # the shop

    def _shop(self) -> None:
        rng = self.rng
        if rng.random() < 0.25:
            self.num_asked += 1
            number = rng.randint(1, self.num_asked) if rng.random() < 0.1 else self.num_asked
            self._ask(number)
        if rng.random() < 0.3 and self.num_asked:
            self._tell(rng.randint(max(1, self.num_asked - 4), self.num_asked + 1))

    def _ask(self, number: int) -> None:
        task = "offer" if number % 2 else "route"
        candidates = [Candidate(f"a{k}", {"z": float(k)}) for k in range(3)] if task == "offer" else None
        request = DecisionRequest(f"id{number}", task, f"s{number % 3}", {"x": float(number)}, candidates)
        self.broker.append("requests", number % 2, encode(request, REGISTRY))

    def _tell(self, number: int) -> None:
        rng = self.rng
        event: dict[str, Any] = {"subject": f"s{number % 3}", "type": rng.choice(("click", "click", "order", "view"))}
        event["value"] = rng.choice((0.5, 1.0, 2.0))
        if rng.random() < 0.5:
            event["decision_id"] = f"id{number}"
        if rng.random() < 0.3:
            event["outcome_id"] = f"o{rng.randint(1, 9)}"
        if rng.random() < 0.1:
            event["action_id"] = rng.choice(("a0", "left"))
        self.broker.append("outcomes", number % 2, b"{" if rng.random() < 0.02 else orjson.dumps(event))

    # the end

    def _settle(self) -> None:
        self.setting.faults, self.setting.pause, self.faults = Faults(), 0.0, Faults()
        self.setting.is_troubled = False
        self.asleep.clear()
        for group in self.groups:
            self._rebalance(group)
        for turn in range(SETTLE_ROUNDS):
            self.clock.now_s += 10
            for logs in self.setting.logs:
                logs.visible = len(logs.journal)
            for group, processes in self.groups.items():
                for index, process in enumerate(processes):
                    if not isinstance(process, Process):
                        for partition in process.held:
                            if turn % 8 == 0:
                                process.look(partition)
                    self._act(group, index, process)
            self.learner.turn()
            self.learner.publish(Faults())
            if turn in (20, 28):
                self.clock.now_s += 10_800
            if turn > 36 and turn % 6 == 0 and self._is_settled():
                return

    def _is_settled(self) -> bool:
        for group in ("decide", "ingest"):
            if not all(process.is_idle() for process in self.groups[group]):
                return False
        lasts = [self._progress(partition) for partition in range(self.partitions)]
        ends = [self.broker.append_ms("journal", p) - 3_000_000 for p in range(self.partitions)]
        read = all(
            o == len(log)
            for o, log in zip(self.learner.merge.next_offsets, self.broker.logs["transitions"], strict=True)
        )
        return read and all(last is not None and last.time_ms > end for last, end in zip(lasts, ends, strict=True))

    def _progress(self, partition: int) -> Progress | None:
        for _, value in reversed(self.broker.logs["transitions"][partition]):
            record = decode(value, REGISTRY)
            if isinstance(record, Progress):
                return record
        return None

    def _finished(self) -> Finished:
        is_decided_once = self.is_gentle and len(self.groups["decide"]) == 1
        return Finished(
            self.project.tasks, self.broker.logs, self.net.answers, self.learner, not self.mode.lose, is_decided_once
        )


class Impatient:
    """A clock for the follower on which every look takes a second: it never waits for what is not coming."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 1.0
        return self._now_s
