"""A shop's support desk that asks headrace where to route each customer message. Plain confluent-kafka and JSON.

It imports nothing of headrace: three topics are the whole interface.

    <namespace>.requests   what to do with this message?   {"decision_id", "task", "subject", "context": {"text"}}
    <namespace>.decisions  the answer       {"decision_id", "actions", "propensities", …}, JSON because the request was
    <namespace>.outcomes   how it went   {"decision_id", "subject", "type": "resolved", "value": 0 or 1}

Like a real shop it is not tidy: 2 % of what it sends it sends twice, 1 % of its outcomes come after the reward window,
and beside 0.5 % of its messages it sends a malformed one. Requests leave at fixed times (open loop), and a latency is
counted from the time at which the request was meant to leave, so a slow answer cannot hide behind a late question.

    python examples/support/shop.py --bootstrap 127.0.0.1:9092 --rate 100 --seed 1 --report shop.json
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, Message, Producer, TopicPartition

SENT_TWICE = 0.02
AFTER_WINDOW = 0.01
MALFORMED = 0.005
OUTCOME_DELAY_S = (0.05, 1.5)
LATE_DELAY_S = (2.6, 3.6)
"""The task's window is 2 s."""
PATIENCE_S = 20.0
"""How long after the last request an answer is still waited for, unless --patience says otherwise."""

MALFORMED_KINDS: tuple[bytes, ...] = (
    b"",
    b"{",
    b"not json at all",
    b'{"decision_id": "x", "task": "support"}',
    b'{"decision_id": 7, "task": "support", "subject": "c", "context": {"text": "hi"}, "type": 1}',
    b'{"decision_id": "", "task": "support", "subject": "", "context": {"text": "hi"}, "type": "resolved"}',
    b'{"subject": "c", "type": "resolved", "value": NaN, "decision_id": "x", "task": "support", "context": {"n": NaN}}',
    b'{"subject": "c", "type": "resolved", "value": "much", "decision_id": "x", "task": "support", "context": "text"}',
    b'{"subject": "\xff\xfe", "type": "resolved", "decision_id": "x", "task": "support"}',
    b"\x00\x00\x00\x27\x0f\x02\x02",
    b"\x00\x00\x00",
    b"[" * 5000,
)


class Shop:
    """Everything the shop remembers while it runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.random = random.Random(options.seed)
        self.topics = {name: f"{options.namespace}.{name}" for name in ("requests", "decisions", "outcomes")}
        with Path(options.messages).open(newline="", encoding="utf-8") as file:
            self.rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
        self.random.shuffle(self.rows)
        self.rows = self.rows[: options.limit]
        self.run = f"{options.seed}-{int(time.time()):x}"
        client = {"bootstrap.servers": options.bootstrap, **json.loads(options.kafka_options)}
        self.producer = Producer({**client, "linger.ms": 0, "acks": "all", "enable.idempotence": True})
        self.consumer = Consumer(
            {**client, "group.id": f"shop-{self.run}", "enable.auto.commit": False, "fetch.queue.backoff.ms": 5}
        )
        self.due: list[tuple[float, int, str, str, bytes]] = []
        """Messages to send later: (time, number, topic, subject, value)."""
        self.num_scheduled = 0
        self.intended: dict[str, tuple[int, float]] = {}
        """Decision id → (row, intended send time) of requests without an answer."""
        self.counts: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.rewards: list[tuple[int, float]] = []
        """(row, 1 when the route was right), as the shop knows it."""

    def subscribe(self) -> None:
        """Read decisions from now on."""
        topic = self.topics["decisions"]
        found = self.consumer.list_topics(topic, timeout=10).topics[topic]
        if found.error is not None or not found.partitions:
            raise SystemExit(f"shop: the topic {topic} does not exist. Create it with `headrace topics apply`.")
        ends = []
        for partition in found.partitions:
            _, end = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            ends.append(TopicPartition(topic, partition, end if end >= 0 else OFFSET_END))
        self.consumer.assign(ends)

    def send(self, topic: str, subject: str, value: bytes) -> None:
        """Hand one message to Kafka."""
        self.producer.produce(self.topics[topic], value, subject.encode(), on_delivery=self.delivered)
        self.counts[f"{topic}_sent"] += 1

    def delivered(self, error: Any, message: Message) -> None:
        """Count what Kafka could not take."""
        if error is not None:
            self.counts["not_delivered"] += 1

    def later(self, at: float, topic: str, subject: str, value: bytes) -> None:
        """Send at a given time."""
        self.num_scheduled += 1
        heapq.heappush(self.due, (at, self.num_scheduled, topic, subject, value))

    def untidy(self, at: float, topic: str, subject: str, value: bytes) -> None:
        """Send at `at`; now and then twice, now and then with a malformed message beside it."""
        self.later(at, topic, subject, value)
        if self.random.random() < SENT_TWICE:
            self.later(at + self.random.random() * 0.3, topic, subject, value)
            self.counts[f"{topic}_sent_twice"] += 1
        if self.random.random() < MALFORMED:
            self.later(at, topic, subject, self.random.choice(MALFORMED_KINDS))
            self.counts[f"{topic}_malformed"] += 1

    def ask(self, row: int, at: float) -> None:
        """Schedule the request of one customer message."""
        decision_id, subject = f"{self.run}-{row}", f"customer-{self.random.randrange(5_000)}"
        request = {
            "decision_id": decision_id,
            "task": "support",
            "subject": subject,
            "context": {"text": self.rows[row][0]},
        }
        self.intended[decision_id] = (row, at)
        self.untidy(at, "requests", subject, json.dumps(request).encode())

    def answered(self, message: Message, now: float) -> None:
        """Take the route that was decided and schedule its outcome; a second answer is only counted."""
        decision = json.loads(message.value() or b"{}")
        decision_id = decision.get("decision_id", "")
        if not decision_id.startswith(self.run):
            return
        action = decision["actions"][0]
        self.counts["decisions_read"] += 1
        waiting = self.intended.pop(decision_id, None)
        if waiting is None:
            self.counts["answers_again"] += 1
            return
        row, intended = waiting
        self.latencies_ms.append((now - intended) * 1000)
        resolved = 1.0 if action == self.rows[row][1] else 0.0
        self.rewards.append((row, resolved))
        is_late = self.random.random() < AFTER_WINDOW
        self.counts["outcomes_after_window"] += is_late
        delay_s = self.random.uniform(*(LATE_DELAY_S if is_late else OUTCOME_DELAY_S))
        subject = (message.key() or b"").decode()
        outcome = {
            "outcome_id": f"{decision_id}-resolved",
            "decision_id": decision_id,
            "subject": subject,
            "type": "resolved",
            "value": resolved,
        }
        self.untidy(now + delay_s, "outcomes", subject, json.dumps(outcome).encode())

    def run_until_done(self, rate: float, patience_s: float) -> None:
        """Send every request at its time, answer every decision with its outcome."""
        self.subscribe()
        started = time.time() + 0.2
        asked, last_asked = 0, started
        while asked < len(self.rows) or self.due or self.intended:
            now = time.time()
            while asked < len(self.rows) and started + asked / rate <= now + 0.05:
                last_asked = started + asked / rate
                self.ask(asked, last_asked)
                asked += 1
            while self.due and self.due[0][0] <= now:
                _, _, topic, subject, value = heapq.heappop(self.due)
                self.send(topic, subject, value)
            self.producer.poll(0)
            wait_s = min(0.02, max(0.0, self.due[0][0] - time.time())) if self.due else 0.02
            message = self.consumer.poll(wait_s)
            while message is not None:
                if message.error() is None:
                    self.answered(message, time.time())
                message = self.consumer.poll(0)
            if not self.due and asked == len(self.rows) and time.time() > last_asked + patience_s:
                break
        self.counts["unanswered"] = len(self.intended)
        self.producer.flush(10)
        self.consumer.close()

    def report(self) -> dict[str, Any]:
        """What the shop saw, in its own words."""
        ordered = [resolved for _, resolved in sorted(self.rewards)]
        latencies = sorted(self.latencies_ms)
        return {
            "messages": len(self.rows),
            "counts": dict(sorted(self.counts.items())),
            "latency_ms": {name: quantile(latencies, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))},
            "reward_first_1000": mean(ordered[:1000]),
            "reward_last_1000": mean(ordered[-1000:]),
            "reward_mean": mean(ordered),
        }


def mean(values: list[float]) -> float | None:
    """Average, None of nothing."""
    return sum(values) / len(values) if values else None


def quantile(ordered: list[float], q: float) -> float | None:
    """The value at rank q of sorted values."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def stop(number: int, frame: Any) -> None:
    """SIGTERM ends the shop like Ctrl-C: what it saw is still reported."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the shop; exit 1 when a request was never answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--namespace", default="headrace")
    parser.add_argument("--messages", default=str(Path(__file__).with_name("train.csv")))
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--limit", type=int, default=None, help="only the first N messages")
    parser.add_argument("--seed", type=int, default=1, help="order of messages, delays, duplicates")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds to wait for the last answers")
    parser.add_argument("--report", default=None, help="JSON file to write at the end")
    parser.add_argument("--kafka-options", default="{}", help="JSON of librdkafka settings")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    shop = Shop(options)
    try:
        shop.run_until_done(options.rate, options.patience)
    except KeyboardInterrupt:
        print("shop: interrupted", file=sys.stderr)
    report = shop.report()
    text = json.dumps(report, indent=2)
    if options.report:
        Path(options.report).write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if report["counts"].get("unanswered") else 0


if __name__ == "__main__":
    sys.exit(main())
