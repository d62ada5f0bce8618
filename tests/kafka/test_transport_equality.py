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
from streams.transport_thread import ISOLATION

NUM_RECORDS = 3000
FIRST_MS = 1_700_000_000_000
SIZES_BYTES = (0, 1, 63, 64, 200, 300, 9000)
Log = dict[int, tuple[bytes | None, int]]
"""offset → (value, timestamp)"""


@pytest.fixture(autouse=True)
def aiokafka_as_it_was() -> Iterator[None]:
    yield
    transport_raw.uninstall()


def fill(broker: str, topic: str, codec: str, times: str = "CreateTime") -> Log:
    """A topic with values of many sizes, nulls, keys and headers; what confluent-kafka reads of it."""
    create(broker, topic, times)
    producer = Producer(
        {"bootstrap.servers": broker, "compression.type": codec, "linger.ms": 20, "batch.num.messages": 777}
    )
    rng = random.Random(5)
    for i in range(NUM_RECORDS):
        value = None if i % 97 == 0 else rng.randbytes(rng.choice(SIZES_BYTES))
        key = None if i % 5 == 0 else rng.randbytes(rng.choice((0, 8, 70)))
        headers: list[tuple[str, bytes]] = [("h", b"x" * rng.randint(0, 80))] * (i % 3)
        producer.produce(topic, value, key=key, headers=headers, timestamp=FIRST_MS + i * 1000)
        producer.poll(0)
    assert producer.flush(20) == 0
    found = expected(broker, topic, NUM_RECORDS)
    assert len(found) == NUM_RECORDS
    return found


def create(broker: str, topic: str, times: str = "CreateTime") -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    # Records say that they are years old: a broker that looks for such, 30 s after its start, would drop them at once.
    config = {"message.timestamp.type": times, "retention.ms": "-1"}
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(10)


def transactional(broker: str, name: str) -> Producer:
    """A producer that sends small batches and begins its first transaction."""
    producer = Producer({"bootstrap.servers": broker, "transactional.id": name, "batch.num.messages": 7})
    producer.init_transactions(20)
    producer.begin_transaction()
    return producer


def fill_in_transactions(broker: str, topic: str) -> int:
    """Transactions of two producers, one after the other and interleaved, and plain records between; its end.

    Values say what became of them.
    """
    first, second = transactional(broker, f"{topic}.1"), transactional(broker, f"{topic}.2")
    plain = Producer({"bootstrap.servers": broker})

    def write(producer: Producer, fate: str, num: int = 30) -> None:
        for i in range(num):
            producer.produce(topic, f"{fate} {i}".encode() * (1 + i % 9), partition=0)
        assert producer.flush(20) == 0

    def end(producer: Producer, fate: str) -> None:
        (producer.commit_transaction if fate == "kept" else producer.abort_transaction)(20)
        producer.begin_transaction()

    for fate in ("kept", "aborted", "kept"):
        write(first, fate)
        end(first, fate)
    for fates in (("aborted", "kept"), ("kept", "aborted"), ("aborted", "aborted"), ("kept", "kept")):
        for _ in range(3):
            write(first, fates[0])
            write(plain, "kept", 3)
            write(second, fates[1])
        end(second, fates[1])
        write(first, fates[0], 5)
        end(first, fates[0])
    write(second, "aborted")
    end(second, "aborted")
    for producer in (first, second):
        producer.abort_transaction(20)
    reader = Consumer({"bootstrap.servers": broker, "group.id": topic})
    _, high = reader.get_watermark_offsets(Assigned(topic, 0), timeout=10)
    reader.close()
    return int(high)


def expected(broker: str, topic: str, end: int) -> Log:
    """What confluent-kafka reads up to offset `end`."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": topic, "enable.auto.commit": False})
    place = Assigned(topic, 0, 0)
    consumer.assign([place])
    found: Log = {}
    while consumer.position([place])[0].offset < end:
        for message in consumer.consume(5000, 0.2):
            offset, value = message.offset(), message.value()
            assert offset is not None
            found[offset] = (value, message.timestamp()[1])
    consumer.close()
    return found


async def read(broker: str, topic: str, start: int, end: int = NUM_RECORDS) -> tuple[Log, int]:
    """Everything from `start` on as aiokafka gives it (batches where installed), and the position after it."""
    tp, found = TopicPartition(topic, 0), {}
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, enable_auto_commit=False, check_crcs=True, isolation_level=ISOLATION
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        consumer.seek(tp, start)
        while await consumer.position(tp) < end:
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


@pytest.mark.parametrize(
    ("codec", "times"),
    [
        *((codec, "CreateTime") for codec in ("none", "gzip", "snappy", "lz4", "zstd")),
        *((codec, "LogAppendTime") for codec in ("none", "lz4", "zstd")),
    ],
)
def test_every_reader_sees_the_same_records_from_any_offset(
    broker: str, namespace: str, codec: str, times: str
) -> None:
    topic = f"{namespace}.{codec}"
    expected = fill(broker, topic, codec, times)
    is_as_sent = {time_ms for _, time_ms in expected.values()} == {FIRST_MS + i * 1000 for i in range(NUM_RECORDS)}
    assert is_as_sent == (times == "CreateTime")
    for in_place in (False, True):
        if in_place:
            assert transport_raw.install([topic]) is None
        for start in (0, 1, 1234, NUM_RECORDS - 1):
            found, position = asyncio.run(read(broker, topic, start))
            assert found == {offset: record for offset, record in expected.items() if offset >= start}
            assert position == NUM_RECORDS


def test_every_reader_sees_what_was_committed_and_nothing_that_was_aborted(broker: str, namespace: str) -> None:
    topic = f"{namespace}.transactions"
    create(broker, topic)
    end = fill_in_transactions(broker, topic)
    committed = expected(broker, topic, end)
    assert {(value or b"").split(b" ")[0] for value, _ in committed.values()} == {b"kept"}
    not_read = [offset for offset in range(end) if offset not in committed]
    starts = (0, 7, *not_read[:3], *not_read[::101], max(committed), max(committed) + 1, end - 2, end - 1)
    for in_place in (False, True):
        if in_place:
            assert transport_raw.install([topic]) is None
        for start in starts:
            found, position = asyncio.run(read(broker, topic, start, end))
            assert found == {offset: record for offset, record in committed.items() if offset >= start}
            assert position == end


def test_topics_that_were_not_named_keep_aiokafkas_records(broker: str, namespace: str) -> None:
    topic = f"{namespace}.other"
    expected = fill(broker, topic, "lz4")
    assert transport_raw.install([f"{namespace}.unrelated"]) is None
    found, _ = asyncio.run(read(broker, topic, 0))
    assert found == expected
