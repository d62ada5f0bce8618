"""What a good engineer writes by hand: confluent-kafka, a dict, one message per transition. The floor to compare with.

Exactly the join's job without its guarantees: no duplicates of decisions, no conflicts, no restart, no audit.
Run: python -m benchmarks.dict_join BOOTSTRAP DECISIONS OUTCOMES TRANSITIONS WINDOW_MS
Decision: id[16] + payload; outcome: decision_id[16] + outcome_id[16] + float32 value. Stops on SIGTERM.
"""

from __future__ import annotations

import signal
import struct
import sys
from collections import deque

from confluent_kafka import Consumer, Producer, TopicPartition


def main(bootstrap: str, decisions: str, outcomes: str, transitions: str, window: str) -> None:
    """Join until SIGTERM."""
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    window_ms = int(window)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "dict-join",
            "auto.offset.reset": "earliest",
            "check.crcs": False,
            "fetch.min.bytes": 100_000,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 5,
            "enable.auto.commit": False,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    partitions = range(len(consumer.list_topics(decisions, 10).topics[decisions].partitions))
    consumer.assign([TopicPartition(t, p, 0) for t in (decisions, outcomes) for p in partitions])
    open_rows: list[dict[bytes, list]] = [{} for _ in partitions]
    due: list[deque] = [deque() for _ in partitions]
    early: list[dict[bytes, list]] = [{} for _ in partitions]
    last = {(t, p): 0 for t in (decisions, outcomes) for p in partitions}
    pack = struct.Struct("<fi").pack
    unpack = struct.Struct("<f").unpack_from
    while running:
        touched = set()
        for message in consumer.consume(10_000, 0.05):
            if message.error():
                continue
            value, p, time_ms = message.value(), message.partition(), message.timestamp()[1]
            topic = message.topic()
            last[topic, p] = time_ms
            touched.add(p)
            if topic == decisions:
                key = value[:16]
                row = [value, 0.0, 0, set()]
                open_rows[p][key] = row
                due[p].append((time_ms, key))
                for outcome in early[p].pop(key, ()):
                    _count(row, outcome, unpack)
            else:
                row = open_rows[p].get(value[:16])
                if row is None:
                    early[p].setdefault(value[:16], []).append(value)
                else:
                    _count(row, value, unpack)
        for p in touched:
            now = min(last[decisions, p], last[outcomes, p])
            queue, rows = due[p], open_rows[p]
            while queue and queue[0][0] + window_ms < now:
                row = rows.pop(queue.popleft()[1])
                while True:
                    try:
                        producer.produce(transitions, row[0] + pack(row[1], row[2]), row[0][:16], p)
                        break
                    except BufferError:
                        producer.poll(0.1)
            producer.poll(0)
    producer.flush(20)


def _count(row: list, outcome: bytes, unpack: struct.Struct) -> None:
    identity = outcome[16:32]
    if identity not in row[3]:
        row[3].add(identity)
        row[1] += unpack(outcome, 32)[0]
        row[2] += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
