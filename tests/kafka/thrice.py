"""Requests that a shop sends three times while deciders die and policies change, and how the shop acts.

Plain JSON: the shop acts on the first answer that it hears to a decision id.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from learner.namespace import Snapshot
from learner.policy import probes
from schemas import weights as tensors
from schemas.records import DecisionRequest
from schemas.settings import CommonSettings
from schemas.task import Project, Task, parse
from schemas.topics import topic
from streams.features import Encoder
from tests.kafka.decider_process import START, DeciderProcess, Shop
from tests.kafka.snapshot_publisher import snapshot_of
from tests.kafka.snapshot_topic import weights_of

PARTITIONS = 4
BACKWARD_MS = 2_000
TASK = """
[[tasks]]
name = "{name}"
actions = ["card", "refund", "other"]
reply = "{reply}"
[tasks.context]
text = {{ kind = "text" }}
[tasks.reward]
window = "{window}"
backward_window = "2s"
[tasks.reward.outcomes.{name}_resolved]
aggregate = "max"
binary = true
"""


LOSES = (
    """
import os, signal, threading
from streams import replies
sound, num_sent = replies.Replies._send, 0
def lossy(self, output, name, *more):
    global num_sent
    if output is not self._unhurried or name != self._journal_topic:
        return sound(self, output, name, *more)
    num_sent += 1
    if num_sent < 80:
        return sound(self, output, name, *more)
    if num_sent == 80:
        threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGKILL)).start()
replies.Replies._send = lossy
"""
    + START
)
"""A decider that answers `immediate` requests for its last 0.8 s without their records ever reaching the journal."""


def project(namespace: str, window: str) -> Project:
    """Two tasks that differ in when they are answered."""
    head = f'[namespace]\nname = "{namespace}"\npartitions = {PARTITIONS}\ntick = "100ms"\n'
    replies = {"first": "journal-first", "hasty": "immediate"}
    return parse(head + "".join(TASK.format(name=name, reply=reply, window=window) for name, reply in replies.items()))


def snapshot(tasks: Sequence[Task], version: int, favourite: int) -> Snapshot:
    """A policy of all tasks that nearly always takes one action."""
    weights = {task.fingerprint: weights_of(task, favourite) for task in tasks}
    payload = tensors.pack(
        {f"{key.hex()}/{n}": array for key, each in weights.items() for n, array in each.items()}, {}
    )
    inputs = {}
    for task in tasks:
        features = Encoder(task).encode([DecisionRequest("p", task.name, "p", {"text": "a card"})]).columns
        inputs[task.fingerprint] = probes.ProbeInputs(features, np.ones(len(task.actions), np.bool_))
    known = {task.fingerprint: task for task in tasks}
    draft = snapshot_of(tasks[0], version, favourite, 0).draft
    return Snapshot(
        replace(
            draft,
            sha256=hashlib.sha256(payload).digest(),
            size_bytes=len(payload),
            tasks=tuple(known),
            probes=probes.pack(inputs, known, weights),
        ),
        payload,
    )


class Deciders:
    """Places in the decide group. A process that has died is followed by the next life of its place."""

    def __init__(self, settings: CommonSettings, folder: Path, key: Path, lives: Sequence[Sequence[str]]) -> None:
        """`lives`: of each place, one process after another: its fault points, or `LOSES`; "" from then on."""
        self._settings, self._folder, self._key = settings, folder, key
        self._lives = [list(each) for each in lives]
        self.running = [self._start(place) for place in range(len(lives))]
        self.ends: list[int] = []
        """Exit codes of those that died."""
        self.log = ""

    def _start(self, place: int) -> DeciderProcess:
        folder = self._folder / f"decider-{place}"
        folder.mkdir(exist_ok=True)
        life = self._lives[place].pop(0) if self._lives[place] else ""
        start, faults = (life, "") if life == LOSES else (START, life)
        more = {"public_key": self._key, "insecure_dev": "false", "fault_points": faults, "decide_commit_s": 1}
        return DeciderProcess(self._settings, folder, start, **more)

    def look_after(self) -> None:
        """Start again what has died."""
        for place, process in enumerate(self.running):
            code = process.process.poll()
            if code is not None:
                self.ends.append(code)
                self.log += process.said()
                self.running[place] = self._start(place)

    def stop(self) -> None:
        """SIGTERM to all; each ends by itself."""
        for process in self.running:
            code, seconds = process.stop(30)
            assert (code, seconds < 10) == (0, True), process.said()
            self.log += process.said()

    def end(self) -> None:
        for process in self.running:
            process.end()


@dataclass
class Agenda:
    """What to do at which second of the run."""

    due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def at(self, second: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.due, (second, next(self._numbers), what))

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def work(self) -> None:
        """Everything whose time has come."""
        while self.due and self.due[0][0] <= self.now_s():
            heapq.heappop(self.due)[2]()


class Customer:
    """Sends each request several times; acts on the first answer: an outcome that names the action that it took."""

    def __init__(self, settings: CommonSettings, seed: int) -> None:
        self.shop = Shop(settings)
        self.first: dict[str, dict[str, Any]] = {}
        """First answer to each decision id: what the shop did."""
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.told: set[str] = set()
        """Ids whose outcome was sent."""
        self.random = random.Random(seed)
        self._producer = Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 0, "acks": "all"})
        self._outcomes = topic(settings.namespace, "outcomes")
        self.num_heard = 0

    def ask(self, task: str, number: int) -> None:
        request = {"decision_id": f"{task}-{number}", "task": task, "subject": f"s-{number % 23}"}
        self.shop.send({**request, "context": {"text": f"a card {number % 5}"}})

    def listen(self, agenda: Agenda) -> None:
        """Take in answers, and say later how those that were acted on went."""
        self.shop.poll(0.02)
        for _, value in self.shop.answers[self.num_heard :]:
            self.num_heard += 1
            answer = json.loads(value)
            name = answer["decision_id"]
            self.answers[name].append(answer)
            if name not in self.first:
                self.first[name] = answer
                if self.random.random() < 0.5:
                    agenda.at(agenda.now_s() + self.random.uniform(0.2, 3.0), partial(self._tell, name))

    def _tell(self, name: str) -> None:
        answer = self.first[name]
        outcome = {
            "outcome_id": f"o-{name}",
            "decision_id": name,
            "subject": answer["subject"],
            "type": f"{answer['task']}_resolved",
            "action_id": answer["actions"][0],
            "value": 1.0,
        }
        self._producer.produce(self._outcomes, json.dumps(outcome), answer["subject"])
        self._producer.poll(0)
        self.told.add(name)

    def close(self) -> None:
        """Nothing is left on its way; what was heard stays."""
        assert self._producer.flush(30) == 0
        self.shop.flush()
        self.shop.close()
        del self._producer, self.shop  # a client that outlives the broker complains
