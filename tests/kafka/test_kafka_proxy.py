"""Real clients and a real broker with the proxy between them: every fault is seen by the client as it is meant."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import broker as local_broker
from deploy import processes
from deploy.torture.kafka_faults import Action, Direction, Fault
from deploy.torture.kafka_frames import Api
from deploy.torture.kafka_proxy import Proxy

WAIT_S = 15.0


@dataclass(frozen=True)
class Proxied:
    """A broker that clients reach only through the proxy, and an empty topic."""

    proxy: Proxy
    topic: str

    def options(self, client_id: str, **more: Any) -> dict[str, Any]:
        fast = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100, "retry.backoff.ms": 20, "log_level": 0}
        return {"bootstrap.servers": self.proxy.bootstrap, "client.id": client_id, **fast, **more}

    def num_records(self) -> int:
        """Asked by a client that no fault of these tests selects."""
        reader = Consumer(self.options("audit", **{"group.id": "audit"}))
        try:
            _, end = reader.get_watermark_offsets(TopicPartition(self.topic, 0), timeout=WAIT_S)
            return int(end)
        finally:
            reader.close()


class Writer:
    """A producer that has a connection, and what became of its records."""

    def __init__(self, proxied: Proxied, client_id: str = "writer", **more: Any) -> None:
        options = {"enable.idempotence": True, "linger.ms": 0, "topic.metadata.refresh.interval.ms": -1, **more}
        self._producer = Producer(proxied.options(client_id, **options))
        self._topic = proxied.topic
        self.errors: list[KafkaError | None] = []
        self.write(WAIT_S)
        assert self.errors == [None]

    def write(self, wait_s: float, value: bytes = b"x") -> int:
        """Records that are not settled `wait_s` after one more was sent."""
        self._producer.produce(self._topic, value, on_delivery=lambda error, _: self.errors.append(error))
        return self.settle(wait_s)

    def settle(self, wait_s: float = WAIT_S) -> int:
        return self._producer.flush(wait_s)


@pytest.fixture
def proxied(proxy: Proxy, namespace: str) -> Iterator[Proxied]:
    admin = AdminClient({"bootstrap.servers": proxy.bootstrap, "client.id": "audit"})
    for future in admin.create_topics([NewTopic(namespace, 1, 1)]).values():
        future.result(WAIT_S)
    yield Proxied(proxy, namespace)
    proxy.heal_all()


def test_clients_go_through_the_proxy_and_are_counted_by_api_and_client_id(proxied: Proxied) -> None:
    Writer(proxied, "writer-1")
    reader = Consumer(proxied.options("reader-1", **{"group.id": proxied.topic, "auto.offset.reset": "earliest"}))
    reader.subscribe([proxied.topic])
    message = reader.poll(WAIT_S)
    assert message is not None
    assert message.value() == b"x"
    told = reader.list_topics(timeout=WAIT_S).brokers
    reader.close()

    assert [each.port for each in told.values()] == list(proxied.proxy.ports)
    counts = proxied.proxy.counts
    assert counts.frames["requests", Api.PRODUCE, "writer-1"] == 1
    assert counts.frames["responses", Api.PRODUCE, "writer-1"] == 1
    assert counts.frames["responses", Api.FETCH, "reader-1"] >= 1
    assert counts.frames["requests", Api.JOIN_GROUP, "reader-1"] >= 1
    assert counts.size_bytes["requests", Api.PRODUCE, "writer-1"] > 60


def test_a_lost_answer_to_a_write_is_retried_and_an_idempotent_writer_leaves_one_record(proxied: Proxied) -> None:
    writer = Writer(proxied)
    fault = Fault(Action.DROP_RESPONSE, ("writer",), frozenset({Api.PRODUCE}), num_bites_max=2)
    injected = proxied.proxy.inject(fault)

    assert writer.write(WAIT_S) == 0

    assert (injected.num_bites, injected.is_spent) == (2, True)
    assert writer.errors == [None, None]
    assert proxied.num_records() == 2


def test_a_lost_answer_to_a_write_was_a_write_as_a_writer_without_idempotence_shows(proxied: Proxied) -> None:
    writer = Writer(proxied, **{"enable.idempotence": False, "retries": 5})
    proxied.proxy.inject(Fault(Action.DROP_RESPONSE, ("writer",), frozenset({Api.PRODUCE}), num_bites_max=2))

    assert writer.write(WAIT_S) == 0

    assert proxied.num_records() == 1 + 3


def test_a_lost_answer_to_a_commit_leaves_the_commit_done(proxied: Proxied) -> None:
    options = proxied.options("committer", **{"group.id": proxied.topic, "enable.auto.commit": False})
    committer = Consumer(options)
    here = TopicPartition(proxied.topic, 0, 0)
    committer.commit(offsets=[here], asynchronous=False)
    proxied.proxy.inject(Fault(Action.DROP_RESPONSE, ("committer",), frozenset({Api.OFFSET_COMMIT})))
    with suppress(KafkaException):  # or the client has tried again by itself
        committer.commit(offsets=[TopicPartition(proxied.topic, 0, 7)], asynchronous=False)

    assert committer.committed([here], timeout=WAIT_S)[0].offset == 7
    committer.close()
    assert proxied.proxy.counts.num_bites(Action.DROP_RESPONSE, Api.OFFSET_COMMIT, "committer") == 1


def test_a_writer_that_is_cut_off_goes_on_when_healed_and_others_notice_nothing(proxied: Proxied) -> None:
    writer, other = Writer(proxied), Writer(proxied, "other")
    injected = proxied.proxy.inject(Fault(Action.CUT, ("writer",)))

    assert writer.write(0.5) == 1
    assert other.write(WAIT_S) == 0
    assert proxied.num_records() == 3
    # the connection, and at least one attempt at a new one
    assert processes.wait_until(lambda: injected.num_bites >= 2, WAIT_S)

    proxied.proxy.heal(injected)

    assert writer.settle() == 0
    assert writer.errors == [None, None]
    assert proxied.num_records() == 4


def test_a_broker_that_is_cut_off_from_all_answers_nobody_until_healed(proxied: Proxied) -> None:
    injected = proxied.proxy.inject(Fault(Action.CUT, brokers=frozenset({0})))
    assert local_broker.answers(proxied.proxy.bootstrap, timeout_s=0.5) == 0
    assert proxied.proxy.counts.connections["refused"] >= 1

    proxied.proxy.heal(injected)

    assert local_broker.answers(proxied.proxy.bootstrap, timeout_s=WAIT_S) == 1


@pytest.mark.parametrize(
    ("lost", "records_while_lost"), [(Direction.RESPONSES, 2), (Direction.REQUESTS, 1), (Direction.BOTH, 1)]
)
def test_when_one_way_is_lost_writes_arrive_or_do_not_and_after_healing_there_is_one_of_each(
    proxied: Proxied, lost: Direction, records_while_lost: int
) -> None:
    writer = Writer(proxied)
    injected = proxied.proxy.inject(Fault(Action.HANG, ("writer",), direction=lost))

    assert writer.write(0.5) == 1
    assert processes.wait_until(lambda: proxied.num_records() == records_while_lost, WAIT_S)
    assert injected.num_bites >= 1

    proxied.proxy.heal(injected)

    assert writer.settle() == 0
    assert writer.errors == [None, None]
    assert proxied.num_records() == 2


def test_half_a_request_is_no_request(proxied: Proxied) -> None:
    writer = Writer(proxied)
    produce = frozenset({Api.PRODUCE})
    injected = proxied.proxy.inject(Fault(Action.CUT_IN_FRAME, ("writer",), produce, direction=Direction.REQUESTS))

    assert writer.write(WAIT_S, b"y" * 500_000) == 0

    assert injected.num_bites == 1
    assert writer.errors == [None, None]
    assert proxied.num_records() == 2


def test_half_an_answer_is_no_answer(proxied: Proxied) -> None:
    writer = Writer(proxied)
    produce = frozenset({Api.PRODUCE})
    injected = proxied.proxy.inject(Fault(Action.CUT_IN_FRAME, ("writer",), produce, direction=Direction.RESPONSES))

    assert writer.write(WAIT_S) == 0

    assert injected.num_bites == 1
    assert proxied.num_records() == 2


def test_a_delayed_write_takes_at_least_the_shortest_delay_of_each_way(proxied: Proxied) -> None:
    writer = Writer(proxied)
    injected = proxied.proxy.inject(Fault(Action.DELAY, ("writer",), delay_ms=(150, 200), seed=1))

    began_s = time.monotonic()
    assert writer.write(WAIT_S) == 0
    took_s = time.monotonic() - began_s

    assert took_s >= 0.3
    assert injected.num_bites == 2


def test_frames_under_a_delay_keep_their_order(proxied: Proxied) -> None:
    writer = Writer(proxied, **{"max.in.flight": 5, "batch.num.messages": 1})
    injected = proxied.proxy.inject(Fault(Action.DELAY, ("writer",), delay_ms=(0, 100), seed=2))

    for _ in range(20):
        writer.write(0)
    assert writer.settle() == 0

    assert writer.errors == [None] * 21
    assert proxied.num_records() == 21
    assert injected.num_bites >= 40


def test_a_broker_that_is_down_looks_like_one() -> None:
    with Proxy([("127.0.0.1", processes.free_ports(1)[0])]) as proxy:
        assert local_broker.answers(proxy.bootstrap, timeout_s=0.5) == 0
        assert proxy.counts.connections["target down"] >= 1


def test_bytes_that_are_no_kafka_end_the_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target, Proxy([target.getsockname()]) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.ports[0]), timeout=WAIT_S) as client:
            client.sendall(b"\x16\x03\x01\x00 a TLS hello")
            assert client.recv(1) == b""
        assert proxy.counts.connections["not Kafka"] == 1
    assert "a frame of 369295616 bytes; expected 0 to 134217728: is this Kafka?" in caplog.text


def test_a_broker_that_takes_nothing_holds_its_sender_up_and_the_proxy_buffers_little() -> None:
    frame = struct.pack(">ihhih", 1_000_000, Api.PRODUCE, 9, 1, 0) + bytes(1_000_000 - 10)
    with socket.create_server(("127.0.0.1", 0)) as target, Proxy([target.getsockname()]) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.ports[0]), timeout=1.0)
        with client, pytest.raises(TimeoutError):
            client.sendall(frame * 100)
        passed_bytes = sum(proxy.counts.size_bytes.values())
    assert passed_bytes < 20 << 20  # what fits into the kernel's socket buffers, and a frame


def test_a_port_that_is_taken_is_told_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            Proxy([("127.0.0.1", 1)], [port]).start()
