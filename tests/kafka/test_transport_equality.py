"""Three readers see the same log: record batches decoded in place, records packed one by one, and confluent-kafka."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient, NewTopic

from streams import transport_raw
from streams.transport_batch import RecordBatch, pack

NUM_RECORDS = 3000
SIZES_BYTES = (0, 1, 63, 64, 200, 300, 9000)
Log = dict[int, tuple[bytes | None, int]]
"""offset → (value, timestamp)"""


@pytest.fixture(autouse=True)
def aiokafka_as_it_was() -> Iterator[None]:
    yield
    transport_raw.uninstall()


def fill(broker: str, topic: str, codec: str) -> Log:
    """A topic with values of many sizes, nulls, keys and headers; what confluent-kafka reads of it."""
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    producer = Producer(
        {"bootstrap.servers": broker, "compression.type": codec, "linger.ms": 20, "batch.num.messages": 777}
    )
    rng = random.Random(5)
    for i in range(NUM_RECORDS):
        value = None if i % 97 == 0 else rng.randbytes(rng.choice(SIZES_BYTES))
        key = None if i % 5 == 0 else rng.randbytes(rng.choice((0, 8, 70)))
        headers: list[tuple[str, bytes]] = [("h", b"x" * rng.randint(0, 80))] * (i % 3)
        producer.produce(topic, value, key=key, headers=headers, timestamp=1_700_000_000_000 + i * 1000)
        producer.poll(0)
    assert producer.flush(20) == 0
    consumer = Consumer({"bootstrap.servers": broker, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([Assigned(topic, 0, 0)])
    found: Log = {}
    while len(found) < NUM_RECORDS:
        for message in consumer.consume(5000, 1):
            found[message.offset()] = (message.value(), message.timestamp()[1])
    consumer.close()
    return found


async def read(broker: str, topic: str, start: int) -> tuple[Log, int]:
    """Everything from `start` on as aiokafka gives it (batches where installed), and the position after it."""
    tp, found = TopicPartition(topic, 0), {}
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, enable_auto_commit=False, check_crcs=True)
    await consumer.start()
    try:
        consumer.assign([tp])
        consumer.seek(tp, start)
        while len(found) < NUM_RECORDS - start:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for batch in as_batches(topic, records):
                    for i, offset in enumerate(batch.offsets.tolist()):
                        assert offset not in found
                        value = batch.value(i)
                        found[offset] = (None if value is None else bytes(value), int(batch.timestamps_ms[i]))
        return found, await consumer.position(tp)
    finally:
        await consumer.stop()


def as_batches(topic: str, records: list[Any]) -> list[RecordBatch]:
    return records if isinstance(records[0], RecordBatch) else [pack(topic, 0, records)]


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_reader_sees_the_same_records_from_any_offset(broker: str, namespace: str, codec: str) -> None:
    topic = f"{namespace}.{codec}"
    expected = fill(broker, topic, codec)
    for in_place in (False, True):
        if in_place:
            assert transport_raw.install([topic]) is None
        for start in (0, 1, 1234, NUM_RECORDS - 1):
            found, position = asyncio.run(read(broker, topic, start))
            assert found == {offset: record for offset, record in expected.items() if offset >= start}
            assert position == NUM_RECORDS


def test_topics_that_were_not_named_keep_aiokafkas_records(broker: str, namespace: str) -> None:
    topic = f"{namespace}.other"
    expected = fill(broker, topic, "lz4")
    assert transport_raw.install([f"{namespace}.unrelated"]) is None
    found, _ = asyncio.run(read(broker, topic, 0))
    assert found == expected
