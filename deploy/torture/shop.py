"""The shop of `headrace torture`: asks, reads answers, tells outcomes, and misbehaves exactly as often as planned.

A process of its own, so that its clock does not wait for the faults that are planted elsewhere:

    python -m deploy.torture.shop PLAN.json REPORT.json

Everything that it sends is fixed by the plan's seed; only when an outcome leaves depends on when its answer came.
Requests leave in open loop, faults or not. What the broker does not take at once waits in librdkafka's queue.
"""

from __future__ import annotations

import heapq
import json
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from deploy.torture import corruption
from schemas.codec import decode_outcome, decode_request, encode
from schemas.registry import FileRegistry, Registry

AVRO = 0.2
"""Share of requests, and of outcomes, in Avro instead of JSON."""
SUBJECTS = 5_000
SEGMENTS = ("new", "loyal", "leaving", "away")
DUPLICATE, LATE, SPOILT, OVERSIZED = 0.02, 0.02, 0.01, 0.005
OUTCOME_DELAY_S = (0.05, 0.7)
"""As a share of the window, an outcome that is in time comes so long after its decision."""
LATE_S = (1.5, 3.0)
"""So long after the window's end a late one comes."""
PAUSE_S = 0.01
OPENS_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the shop does."""

    bootstrap: str
    namespace: str
    seed: int
    decisions: int
    rate: float
    """Requests a second."""
    tasks: dict[str, float]
    """Name → window in seconds."""
    actions: list[str]
    patience_s: float
    """How long after its last request the shop waits while nothing new is answered."""


class Shop:
    """Everything the shop remembers while it runs."""

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self.plan, self.registry = plan, registry
        self.random = random.Random(plan.seed)
        self.counts: Counter[str] = Counter()
        self.spoilt: Counter[str] = Counter()
        """``topic/kind`` → messages planted."""
        client = {"bootstrap.servers": plan.bootstrap, "client.id": "shop", "log_level": 0}
        self.producer = Producer(
            {
                **client,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 2,
                "message.timeout.ms": 0,  # as long as it takes
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
                "reconnect.backoff.max.ms": 500,
            }
        )
        self.consumer = Consumer(
            {**client, "group.id": "shop", "enable.auto.commit": False, "reconnect.backoff.max.ms": 500}
        )
        self.due: list[tuple[float, int, str, bytes, bytes]] = []
        """Messages to send later: (time, number, topic, key, value)."""
        self.waiting: dict[str, tuple[str, str]] = {}
        """Decision id → (task, action that would be right) of requests without an answer."""
        self.heard_s = time.time()

    def run(self) -> None:
        """Ask everything, tell everything, wait for the last answer."""
        self._subscribe()
        began_s, asked = time.time(), 0
        while not self._is_done(asked):
            now_s = time.time()
            while asked < self.plan.decisions and began_s + asked / self.plan.rate <= now_s:
                self._ask(asked, now_s)
                asked += 1
                self.heard_s = now_s
            while self.due and self.due[0][0] <= now_s:
                _, _, topic, key, value = heapq.heappop(self.due)
                self._send(topic, key, value)
            self.producer.poll(0)
            for message in self.consumer.consume(500, PAUSE_S):
                if message.error() is None:
                    self._answered(message, time.time())
        self.counts["unanswered"] = len(self.waiting)
        self.counts["not_delivered"] += self.producer.flush(30)
        self.consumer.close()

    def report(self) -> dict[str, Any]:
        """What the shop knows: the judge compares it with the log."""
        return {"counts": dict(self.counts), "spoilt": dict(self.spoilt), "plan": asdict(self.plan)}

    def _is_done(self, asked: int) -> bool:
        if asked < self.plan.decisions or self.due:
            return False
        return not self.waiting or time.time() > self.heard_s + self.plan.patience_s

    def _subscribe(self) -> None:
        topic = f"{self.plan.namespace}.decisions"
        opens_by_s = time.monotonic() + OPENS_S_MAX
        while True:
            try:
                partitions = self.consumer.list_topics(topic, timeout=2).topics[topic].partitions
                break
            except KafkaException:  # the first fault may be the broker's
                if time.monotonic() > opens_by_s:
                    raise
        self.consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])

    def _send(self, topic: str, key: bytes, value: bytes) -> None:
        self.producer.produce(f"{self.plan.namespace}.{topic}", value, key, on_delivery=self._delivered)
        self.counts[f"{topic}_sent"] += 1

    def _delivered(self, error: Any, message: Message) -> None:
        if error is not None:
            self.counts["not_delivered"] += 1

    def _later(self, at_s: float, topic: str, key: bytes, value: bytes) -> None:
        self.counts["scheduled"] += 1
        heapq.heappush(self.due, (at_s, self.counts["scheduled"], topic, key, value))

    def _ask(self, number: int, now_s: float) -> None:
        draw = self.random
        task = draw.choice(list(self.plan.tasks))
        segment = draw.choice(SEGMENTS)
        decision_id = f"{self.plan.seed}-{number}"
        fields: corruption.JsonObject = {
            "decision_id": decision_id,
            "task": task,
            "subject": f"customer-{draw.randrange(SUBJECTS)}",
            "context": {"price": round(draw.uniform(1, 99), 2), "segment": segment, "note": f"a {segment} customer"},
        }
        right = self.plan.actions[SEGMENTS.index(segment) % len(self.plan.actions)]
        self.waiting[decision_id] = (task, right)
        self._untidy("requests", fields, now_s)

    def _untidy(self, topic: str, fields: corruption.JsonObject, at_s: float) -> None:
        """Send at `at_s`; now and then twice, now and then with a spoilt copy under another id beside it."""
        draw = self.random
        plain = json.dumps(fields).encode()
        avro = self._avro(topic, plain)
        value = avro if draw.random() < AVRO else plain
        self._later(at_s, topic, fields["subject"].encode(), value)
        if draw.random() < DUPLICATE:
            self.counts[f"{topic}_twice"] += 1
            self._later(at_s + draw.random(), topic, fields["subject"].encode(), value)
        kinds = list(corruption.KINDS[topic].values())
        if draw.random() < SPOILT:
            self._spoil(topic, draw.choice(kinds[:-1]), fields, at_s)
        if draw.random() < OVERSIZED:
            self._spoil(topic, kinds[-1], fields, at_s)

    def _spoil(self, topic: str, kind: corruption.Kind, fields: corruption.JsonObject, at_s: float) -> None:
        self.counts["spoilt"] += 1
        own = {**fields, "decision_id": f"spoilt-{self.plan.seed}-{self.counts['spoilt']}"}
        avro = self._avro(topic, json.dumps(own).encode())
        self.spoilt[f"{topic}/{kind.name}"] += 1
        self._later(at_s, topic, corruption.key_of(kind), kind.make(own, avro))

    def _avro(self, topic: str, plain: bytes) -> bytes:
        decoded = (decode_request if topic == "requests" else decode_outcome)(plain, self.registry)
        return encode(decoded, self.registry)

    def _answered(self, message: Message, now_s: float) -> None:
        value = message.value() or b""
        if value.startswith(b"{"):
            found = json.loads(value)
            decision_id, actions = found["decision_id"], found["actions"]
        else:
            from schemas.codec import decode

            decision: Any = decode(value, self.registry)
            decision_id, actions = decision.decision_id, decision.actions
        known = self.waiting.pop(decision_id, None)
        self.counts["answers"] += 1
        if known is None:
            self.counts["answers_again"] += 1
            return
        self.heard_s = now_s
        task, right = known
        window_s = self.plan.tasks[task]
        is_late = self.random.random() < LATE
        self.counts["outcomes_late"] += is_late
        delay_s = (
            window_s + self.random.uniform(*LATE_S) if is_late else window_s * self.random.uniform(*OUTCOME_DELAY_S)
        )
        fields = {
            "outcome_id": f"{decision_id}-resolved",
            "decision_id": decision_id,
            "subject": (message.key() or b"").decode(),
            "type": "resolved",
            "value": 1.0 if actions[:1] == [right] else 0.0,
        }
        self._untidy("outcomes", fields, now_s + delay_s)


def main(plan_file: str, report_file: str) -> int:
    """Run the shop. SIGTERM ends it early; what it knows is reported all the same."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    shop = Shop(Plan(**json.loads(Path(plan_file).read_text())), FileRegistry())
    try:
        shop.run()
    finally:
        Path(report_file).write_text(json.dumps(shop.report(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
