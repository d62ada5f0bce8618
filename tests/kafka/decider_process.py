"""What the decider's tests on a real broker share: its process, a shop's side of it, and what the log then holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.blocks import DecisionBlock
from schemas.settings import CommonSettings
from schemas.task import Project, parse
from schemas.topics import topic
from tests.kafka.workers import WorkerProcess, free_port, read_all

START = """
import sys
from schemas.errors import UserError
from schemas.last_resort import end
from schemas.settings import load_settings
from streams.decider import run
from streams.decider_settings import DeciderSettings
try:
    end(run(load_settings(DeciderSettings)))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""

PROJECT = """
[namespace]
name = "{namespace}"
partitions = 4

[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
baseline = "refund"
reply = "{reply}"
[tasks.context]
text = {{ kind = "text" }}
[tasks.reward]
window = "2s"
backward_window = "1s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true

[[tasks]]
name = "offer"
[tasks.context]
age = {{ kind = "number" }}
[tasks.action]
price = {{ kind = "number" }}
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.order]
aggregate = "max"
binary = true
"""


def project(namespace: str, reply: str = "journal-first") -> Project:
    """A task with a catalogue, and one whose candidates come with the request."""
    return parse(PROJECT.format(namespace=namespace, reply=reply))


class DeciderProcess(WorkerProcess):
    """`headrace worker decide` without the command line."""

    def __init__(self, settings: CommonSettings, folder: Path, start: str = START, **environment: Any) -> None:
        self.port = free_port()
        self.log = folder / f"decide-{self.port}.log"
        values = {
            "bootstrap": settings.bootstrap,
            "namespace": settings.namespace,
            "state_dir": folder / "state",
            "metrics_port": self.port,
            "session_timeout_s": 6,
            "heartbeat_s": 1,
            "insecure_dev": "true",
            **environment,
        }
        env = {**os.environ, **{f"HEADRACE_{name.upper()}": str(value) for name, value in values.items()}}
        env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start], env=env, stdout=out, stderr=subprocess.STDOUT
            )


@contextmanager
def decider(settings: CommonSettings, folder: Path, **environment: Any) -> Iterator[DeciderProcess]:
    """A decider that is ready, and dead afterwards."""
    made = DeciderProcess(settings, folder, **environment)
    try:
        made.wait_ready()
        yield made
    finally:
        made.end()


def route(number: int, **fields: Any) -> dict[str, Any]:
    """A JSON request of the task with a catalogue."""
    subject = f"subject-{number % 7}"
    return {"decision_id": f"r-{number}", "task": "route", "subject": subject, "context": {"text": "a card"}, **fields}


class Shop:
    """Sends requests as a shop does, with nothing but confluent-kafka, and collects the answers."""

    def __init__(self, settings: CommonSettings) -> None:
        self._requests = topic(settings.namespace, "requests")
        self._producer = Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 0})
        self._consumer = Consumer(
            {"bootstrap.servers": settings.bootstrap, "group.id": "shop", "fetch.wait.max.ms": 10}
        )
        name = topic(settings.namespace, "decisions")
        partitions = self._consumer.list_topics(name, timeout=10).topics[name].partitions
        self._consumer.assign([TopicPartition(name, partition, 0) for partition in partitions])
        self.answers: list[tuple[bytes | None, bytes]] = []
        """(key, value) of every answer so far."""

    def send(self, value: dict[str, Any] | bytes, key: str = "any") -> None:
        """One request: a JSON object or raw bytes."""
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        subject = value.get("subject", key) if isinstance(value, dict) else key
        self._producer.produce(self._requests, payload, str(subject).encode())
        self._producer.poll(0)

    def flush(self) -> None:
        """Until the broker has them all."""
        assert self._producer.flush(30) == 0

    def collect(self, num: int, timeout_s: float = 30.0) -> list[tuple[bytes | None, bytes]]:
        """Until `num` answers have come in all; AssertionError when they do not."""
        end = time.monotonic() + timeout_s
        while len(self.answers) < num:
            assert time.monotonic() < end, f"{len(self.answers)} of {num} answers within {timeout_s:g} s"
            self.poll(0.1)
        return self.answers

    def poll(self, timeout_s: float) -> None:
        """Take in what is there."""
        for message in self._consumer.consume(500, timeout_s):
            if message.error() is None:
                self.answers.append((message.key(), message.value() or b""))

    def decided(self) -> dict[str, list[dict[str, Any]]]:
        """JSON answers by decision id."""
        found: dict[str, list[dict[str, Any]]] = {}
        for _, value in self.answers:
            answer = json.loads(value)
            found.setdefault(answer["decision_id"], []).append(answer)
        return found

    def close(self) -> None:
        self._consumer.close()


def journaled(settings: CommonSettings, num_at_least: int = 0) -> list[tuple[int, DecisionBlock, int]]:
    """(journal partition, block, row) of every decision in the journal."""
    records: Sequence[Any] = read_all(settings, "journal")
    rows = [
        (partition, block, row)
        for partition, _, _, block in records
        if isinstance(block, DecisionBlock)
        for row in range(len(block))
    ]
    assert len(rows) >= num_at_least
    return rows
