"""Lag is of the namespace that was asked for, whatever others are called."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import Consumer, TopicPartition

from deploy import lags
from schemas.settings import CommonSettings


def test_a_namespace_whose_name_begins_like_another_is_not_counted(
    broker: str, namespace: str, create_topics: Callable[..., None]
) -> None:
    create_topics(partitions=1)
    for number, group in enumerate(("decide", "ingest", "eu.decide", "eu.ingest", "checkout"), 1):
        consumer = Consumer({"bootstrap.servers": broker, "group.id": f"{namespace}.{group}"})
        consumer.commit(offsets=[TopicPartition(f"{namespace}.requests", 0, number)], asynchronous=False)
        consumer.close()

    found = lags.committed(CommonSettings(bootstrap=broker, namespace=namespace))

    assert found == [
        (f"{namespace}.decide", f"{namespace}.requests", {0: 1}),
        (f"{namespace}.ingest", f"{namespace}.requests", {0: 2}),
    ]
