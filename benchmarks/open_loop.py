"""Open-loop client: sends at intended times whatever the answers do, and measures from the intended time.

A closed loop waits for a slow answer before it sends again and so leaves out exactly the requests that would have been
slow (coordinated omission); this one does not.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

WARM_UP_S = 3.0
_INDEX = re.compile(rb'"decision_id": ?"[^"]*-(\d+)"')


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from intended send time to receipt; the warm-up is left out."""

    sent: int
    received: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def _assigned(bootstrap: str, topic: str, group: str) -> Consumer:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": group, "fetch.wait.max.ms": 10, "fetch.queue.backoff.ms": 5}
    )
    partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign(
        [TopicPartition(topic, p, consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1]) for p in partitions]
    )
    return consumer


def measure(
    bootstrap: str,
    request_topic: str,
    reply_topic: str,
    make: Callable[[int], tuple[bytes, bytes]],
    index_of: Callable[[bytes], int],
    rate: float,
    seconds: float,
) -> Latency:
    """Send `make(i)` (key, value) at `rate` per second for `seconds` after the warm-up; match replies by `index_of`."""
    num = int(rate * (seconds + WARM_UP_S))
    payloads = [make(i) for i in range(num)]
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "acks": "all"})
    consumer = _assigned(bootstrap, reply_topic, f"open-loop-{time.time_ns()}")
    received = np.full(num, np.nan)
    done = threading.Event()

    def read() -> None:
        left = num
        while left and not done.is_set():
            message = consumer.poll(0.05)
            if message is None or message.error():
                continue
            index = index_of(message.value())
            if 0 <= index < num and np.isnan(received[index]):
                received[index] = time.perf_counter()
                left -= 1
        done.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.5)
    start = time.perf_counter() + 0.1
    intended = start + np.arange(num) / rate
    for (key, value), due in zip(payloads, intended, strict=True):
        while (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        producer.produce(request_topic, value, key)
        producer.poll(0)
    producer.flush(10)
    done.wait(10)
    done.set()
    reader.join()
    consumer.close()
    kept = slice(int(rate * WARM_UP_S), num)
    latency_ms = (received[kept] - intended[kept]) * 1e3
    arrived = latency_ms[~np.isnan(latency_ms)]
    if not len(arrived):
        sys.exit(f"open loop: no answer on {reply_topic} for {num} requests on {request_topic}: is the worker running?")
    p50, p90, p99, p999 = np.percentile(arrived, [50, 90, 99, 99.9])
    return Latency(len(latency_ms), len(arrived), *(round(float(x), 3) for x in (p50, p90, p99, p999, arrived.max())))


def decision_index(value: bytes) -> int:
    """Index in the decision id of a JSON decision made from the requests of the benchmark.

    >>> decision_index(b'{"decision_id":"m17-204","task":"offer"}')
    204
    """
    found = _INDEX.search(value)  # the client shares two cores with what it measures: no parsing of ten candidates
    if found is None:
        raise ValueError(f"no decision of this benchmark: {value[:200]!r}")
    return int(found[1])


def as_dict(latency: Latency) -> dict[str, float]:
    """For the result file."""
    return asdict(latency)
