"""Make the cache from which Kafka's Java starts fast: a broker of its own does what brokers do, and is stopped.

Costs about 25 s and 70 MB, once per machine, Java and Kafka. Whoever starts brokers by the dozen gains: tests, torture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy import broker, broker_cache, broker_java, kafka_jars
from schemas.errors import UserError

NUM_RECORDS = 2_000
WRITE_S_MAX = 180.0
"""Java writes the cache when the broker ends; 10 s on a small machine that is idle."""


def prepare() -> Path | None:
    """The cache of this machine's broker, made if there is none; None when this Java is too old for one.

    Raises UserError: no jars, no Java, a folder that cannot be written, a broker that does not start.
    """
    command = broker_java.command()
    cache = broker_cache.path(command)
    if cache.exists():
        return cache
    if kafka_jars.major(Path(command[0])) < broker_cache.JAVA_MIN:
        return None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix="training-") as folder:
            made = Path(folder) / "kafka.aot"
            _train(Path(folder) / "broker", made)
            made.replace(cache)
    except OSError as error:
        raise UserError(
            f"the cache for Kafka's Java could not be written to {cache.parent}: {error.strerror or error}",
            "Free some space or set XDG_CACHE_HOME to a folder that you can write; brokers start without it, slower",
        ) from error
    return cache


def _train(folder: Path, made: Path) -> None:
    running = broker.start(folder, 0, tied=True, java_flags=broker_cache.training_flags(made))
    try:
        _work(running.bootstrap)
    finally:
        broker.stop_node(folder, 1, timeout_s=WRITE_S_MAX)


def _work(bootstrap: str) -> None:
    """Topics, compressed records, a group that reads and commits."""
    client: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap, "log_level": 2}
    admin = AdminClient(client)
    for created in admin.create_topics([NewTopic("training", 4, 1)]).values():
        created.result(30)
    producer = Producer({**client, "compression.type": "lz4", "enable.idempotence": True, "linger.ms": 5})
    for number in range(NUM_RECORDS):
        producer.produce("training", b"x" * 200, key=str(number % 50))
    producer.flush(30)
    consumer = Consumer({**client, "group.id": "training", "auto.offset.reset": "earliest"})
    consumer.subscribe(["training"])
    num_read = 0
    while num_read < NUM_RECORDS:
        messages = consumer.consume(500, 10)
        if not messages:
            break  # a cache of less than everything is a cache, too
        num_read += len(messages)
    consumer.close()
