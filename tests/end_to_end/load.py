"""A shop that asks at a rate which the test sets, and never stops asking because something is down.

Plain confluent-kafka and JSON. Requests leave in an open loop; while the broker is away they wait in librdkafka's
queue, as a shop's would. Each answer is acted on and its outcome told a moment later. Remembers of every request in
which phase of the test it was asked and how it was answered.
"""

from __future__ import annotations

import csv
import heapq
import json
import random
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from schemas.settings import CommonSettings
from schemas.topics import topic

SUBJECTS = 5_000
TOLD = 0.7
"""Share of answers of which an outcome tells."""
DELAY_S = (0.05, 1.5)
"""From answer to outcome; the example's window is 2 s."""


class Load(threading.Thread):
    """Asks and listens until `close`. `rate_per_s`, `phase` and `num_at_once` may be set at any time."""

    def __init__(self, settings: CommonSettings, messages: Path) -> None:
        super().__init__(name="load", daemon=True)
        self.rate_per_s = 0.0
        self.phase = ""
        self.num_at_once = 0
        """Requests to ask beside the rate, now; 0 again when they are asked."""
        self.asked: dict[str, str] = {}
        """Decision id → phase in which it was asked."""
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        """Phase → reasons of the first answers to what was asked in it."""
        self.num_answers = 0
        self.versions: dict[str, Counter[int]] = defaultdict(Counter)
        self.failures: Counter[str] = Counter()
        """Requests and outcomes that the client gave up, by error."""
        self._waiting: set[str] = set()
        self._settings = settings
        self._random = random.Random(9)
        with messages.open(newline="", encoding="utf-8") as file:
            self._rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
        client = settings.librdkafka(log_level=0)
        forever = {"message.timeout.ms": 0, "queue.buffering.max.messages": 1_000_000}
        self._producer = Producer({**client, "linger.ms": 0, "enable.idempotence": True, **forever})
        self._consumer = Consumer({**client, "group.id": "load", "enable.auto.commit": False})
        self._due: list[tuple[float, str, bytes]] = []
        """Outcomes to tell: (time, subject, value)."""
        self._stopping = threading.Event()
        self.failure: Exception | None = None

    @property
    def num_unanswered(self) -> int:
        return len(self._waiting)

    def unanswered(self) -> str:
        """Who waits, for a message: how many of each phase, and the first of them."""
        waiting = sorted(set(self._waiting), key=lambda name: int(name.removeprefix("ask-")))
        return f"{dict(Counter(self.asked[name] for name in waiting))}, first {waiting[:20]}"

    def share(self, phase: str) -> float:
        """Of the requests asked in a phase, those that a baseline answered."""
        reasons = self.reasons[phase]
        return 1.0 - reasons["policy"] / max(1, reasons.total())

    def run(self) -> None:
        try:
            self._subscribe()
            last_s, owed = time.monotonic(), 0.0
            while not self._stopping.is_set():
                now_s = time.monotonic()
                owed += (now_s - last_s) * self.rate_per_s
                owed, self.num_at_once, last_s = owed + self.num_at_once, 0, now_s
                while owed >= 1.0:
                    owed -= 1.0
                    self._ask()
                self._tell(now_s)
                self._producer.poll(0)
                for message in self._consumer.consume(1000, 0.01):
                    if message.error() is None:
                        self._heard(message, time.monotonic())
        except Exception as error:  # the test shall say so, not wait for answers that nobody reads
            self.failure = error

    def close(self) -> None:
        self._stopping.set()
        self.join(10)
        left = self._producer.flush(30)
        self._consumer.close()
        assert left == 0, f"{left} messages never reached the broker"

    def _subscribe(self) -> None:
        name = topic(self._settings.namespace, "decisions")
        partitions = self._consumer.list_topics(name, timeout=10).topics[name].partitions
        # Not from its end: that is looked up while the first requests are answered, and their answers lie before it.
        self._consumer.assign([TopicPartition(name, partition, 0) for partition in partitions])

    def _ask(self) -> None:
        number = len(self.asked)
        name, subject = f"ask-{number}", f"customer-{self._random.randrange(SUBJECTS)}"
        text, _ = self._rows[number % len(self._rows)]
        self.asked[name] = self.phase
        self._waiting.add(name)
        request = {"decision_id": name, "task": "support", "subject": subject, "context": {"text": text}}
        self._send("requests", subject, json.dumps(request).encode())

    def _tell(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, subject, value = heapq.heappop(self._due)
            self._send("outcomes", subject, value)

    def _send(self, name: str, subject: str, value: bytes) -> None:
        self._producer.produce(
            topic(self._settings.namespace, name), value, subject.encode(), on_delivery=self._delivered
        )

    def _delivered(self, error: object, _message: Message) -> None:
        if error is not None:
            self.failures[str(error)] += 1

    def _heard(self, message: Message, now_s: float) -> None:
        answer = json.loads(message.value() or b"{}")
        self.num_answers += 1
        name = answer["decision_id"]
        if name not in self._waiting:
            return
        self._waiting.remove(name)
        phase = self.asked[name]
        self.reasons[phase][answer["reason"]] += 1
        self.versions[phase][answer["snapshot_version"]] += 1
        if self._random.random() < TOLD:
            right = self._rows[int(name.removeprefix("ask-")) % len(self._rows)][1]
            value = float(answer["actions"] == [right])
            subject = answer["subject"]
            outcome = {"decision_id": name, "subject": subject, "type": "resolved", "value": value}
            heapq.heappush(self._due, (now_s + self._random.uniform(*DELAY_S), subject, json.dumps(outcome).encode()))
