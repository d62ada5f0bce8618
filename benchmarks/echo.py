"""A bare confluent-kafka echo: the floor under every decision over Kafka: python -m benchmarks.echo BOOTSTRAP IN OUT"""

from __future__ import annotations

import signal
import sys

from confluent_kafka import Consumer, Producer


def main(bootstrap: str, source: str, target: str) -> None:
    """Poll one, send one, until SIGTERM."""
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "echo", "auto.offset.reset": "latest", "fetch.queue.backoff.ms": 5}
    )
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "acks": "all"})
    consumer.subscribe([source])
    while running:
        message = consumer.poll(0.1)
        producer.poll(0)
        if message is not None and not message.error():
            producer.produce(target, message.value(), message.key())
            producer.poll(0)
    producer.flush(5)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
