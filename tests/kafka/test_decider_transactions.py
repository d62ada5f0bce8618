"""Requests that a shop writes in Kafka transactions: what it aborted was never asked."""

from __future__ import annotations

import json
from pathlib import Path

from confluent_kafka import Producer

from deploy import lags, reading
from schemas.settings import CommonSettings
from schemas.topics import topic
from tests.kafka.decider_process import Shop, decider, journaled, project, route
from tests.kafka.workers import producer, set_up, until

PARTITIONS = 4


def transactional(settings: CommonSettings) -> Producer:
    client = producer(settings, **{"transactional.id": settings.namespace})
    client.init_transactions(20)
    return client


def ask(client: Producer, settings: CommonSettings, first: int, num: int) -> None:
    """In a new transaction, over all partitions."""
    client.begin_transaction()
    for number in range(first, first + num):
        payload = json.dumps(route(number)).encode()
        client.produce(topic(settings.namespace, "requests"), payload, partition=number % PARTITIONS)
    assert client.flush(20) == 0


def is_committed_to_the_end(settings: CommonSettings) -> bool:
    name = topic(settings.namespace, "requests")
    found = next((offsets for _, full, offsets in lags.committed(settings) if full == name), {})
    return found == {p: reading.span_of(settings, name, p)[1] for p in range(PARTITIONS)}


def test_aborted_requests_are_not_answered_and_are_no_lag_also_for_who_takes_over(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace))
    client, shop = transactional(settings), Shop(settings)
    ask(client, settings, 0, 8)
    client.commit_transaction(20)
    ask(client, settings, 100, 8)
    client.abort_transaction(20)
    with decider(settings, tmp_path) as decide:
        shop.collect(8)
        until(lambda: is_committed_to_the_end(settings), 20, decide.said)
        ask(client, settings, 108, 8)  # while nothing else comes
        client.abort_transaction(20)
        until(lambda: is_committed_to_the_end(settings), 20, decide.said)
        until(lambda: decide.metric("headrace_decide_lag_records") == 0, 10, decide.said)
        code, _ = decide.stop()
        assert code == 0, decide.said()
    with decider(settings, tmp_path):
        ask(client, settings, 8, 8)
        client.commit_transaction(20)
        shop.collect(16)
    shop.close()
    asked = sorted(f"r-{number}" for number in range(16))
    assert sorted(shop.decided()) == asked
    assert sorted(block.decision_ids[row] for _, block, row in journaled(settings)) == asked
