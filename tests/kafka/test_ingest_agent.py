"""Ingest on a real broker: users' topics become the journal, in source order, whatever stands in them."""

from __future__ import annotations

import io
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import lags, reading
from deploy.applying import apply
from schemas.blocks import OutcomeBlock
from schemas.codec import encode
from schemas.compatibility import released
from schemas.keys import partition_of
from schemas.records import Outcome, Progress, Resume, SourcePosition
from schemas.settings import CommonSettings
from schemas.topics import topic
from tests.kafka.workers import REGISTRY, WorkerProcess, producer, project, read_all, set_up, until, worker
from tests.schemas.http_registry import HttpRegistry

PARTITIONS = 4
STOP_S = 5.0
ORDERS = """
[[sources]]
topic = "{topic}"
format = "json"
type = "order"
subject = {{ path = "customer.id" }}
value = {{ path = "total" }}
outcome_id = {{ path = "number" }}
where = "status == 'paid'"
"""


def journal_rows(settings: CommonSettings) -> dict[tuple[str, int, int], int]:
    """(source topic, partition, offset) → how often it stands in the journal; checks order and place of every row."""
    found: dict[tuple[str, int, int], int] = defaultdict(int)
    last: dict[tuple[Any, ...], int] = {}
    for partition, _, _, block in read_all(settings, "journal"):
        if not isinstance(block, OutcomeBlock):
            continue
        for i, offset in enumerate(block.source_offsets.tolist()):
            source = (block.source_topic, block.source_partition)
            found[(*source, offset)] += 1
            assert partition_of(block.subjects[i], PARTITIONS) == partition
            if offset > last.get((partition, *source), -1):
                last[(partition, *source)] = offset
            else:
                assert found[(*source, offset)] > 1, "only a copy may step back"
    return dict(found)


def send(settings: CommonSettings, values: list[bytes | None], name: str = "outcomes") -> None:
    """Spread over the partitions by librdkafka's own partitioner, which is not ours."""
    full = name if "." in name else topic(settings.namespace, name)
    client = producer(settings)
    for i, value in enumerate(values):
        client.produce(full, value, key=f"k{i % 31}".encode())
    assert client.flush(20) == 0


def outcomes(num: int, start: int = 0) -> list[bytes | None]:
    """Half Avro, half JSON."""
    made: list[bytes | None] = []
    for i in range(start, start + num):
        outcome = Outcome(f"s{i % 97}", "resolved", 1.0, f"o{i}", f"d{i}")
        text = json.dumps(
            {"subject": outcome.subject, "type": "resolved", "outcome_id": f"o{i}", "decision_id": f"d{i}"}
        )
        made.append(encode(outcome, REGISTRY) if i % 2 else text.encode())
    return made


def test_outcomes_reach_the_journal_partition_of_their_subject_in_order(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace, PARTITIONS))
    with worker("ingest", settings, tmp_path) as ingest:
        send(settings, outcomes(2000))
        until(lambda: ingest.metric("headrace_ingest_outcomes_total") == 2000, 30, ingest.said)
        rows = journal_rows(settings)
        assert len(rows) == 2000
        assert set(rows.values()) == {1}
        code, took_s = ingest.stop()
        assert (code, took_s < 10) == (0, True), ingest.said()
    with worker("ingest", settings, tmp_path) as again:  # the group's offsets are committed: nothing is copied twice
        send(settings, outcomes(10, 2000))
        until(lambda: again.metric("headrace_ingest_outcomes_total") >= 10, 30, again.said)
        assert set(journal_rows(settings).values()) == {1}


def test_killed_ingest_loses_nothing_and_copies_only_in_order(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace, PARTITIONS))
    with worker("ingest", settings, tmp_path, commit_interval_s=30) as first:
        send(settings, outcomes(3000))
        until(lambda: first.metric("headrace_ingest_outcomes_total") > 0, 30, first.said)
        first.kill()
    with worker("ingest", settings, tmp_path) as second:
        send(settings, outcomes(500, 3000))
        until(lambda: len(journal_rows(settings)) == 3500, 40, second.said)


def test_twelve_malformed_kinds_go_to_the_dead_letters_with_their_reason(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace, PARTITIONS))
    good = encode(Outcome("ada", "resolved", 1.0, "o", "d"), REGISTRY)
    bad: list[tuple[bytes | None, str]] = [
        (None, "empty"),
        (b"", "empty"),
        (b"hello", "bad-magic"),
        (good[:-3], "truncated"),
        (good + b"\0", "trailing-bytes"),
        (b"\0\x00\xff\xff\xff" + good[5:], "unknown-schema"),
        (b'{"subject": "ada", "type": ', "bad-json"),
        (b'{"type": "resolved"}', "missing-field"),
        (b'{"subject": "ada", "type": "resolved", "value": "1"}', "wrong-type"),
        (b'{"subject": "ada", "type": "resolved", "value": 1e400}', "not-finite"),
        (b'{"subject": "ada", "type": "resolved", "desicion_id": "d"}', "unknown-field"),
        (b'{"subject": "' + b"a" * 300 + b'", "type": "resolved"}', "too-large"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "too-deep"),
        (b'{"subject": "\xff\xfe", "type": "resolved"}', "bad-utf8"),
    ]
    mixed: list[bytes | None] = []
    for value, _ in bad:
        mixed += [good, value, b'{"subject": "bob", "type": "resolved"}']
    with worker("ingest", settings, tmp_path) as ingest:
        send(settings, mixed)
        letters = [each[3] for each in read_all(settings, "dead-letters", len(bad))]
        assert sorted(letter.reason for letter in letters) == sorted(reason for _, reason in bad)
        by_bytes = {letter.first_bytes: letter.reason for letter in letters}
        assert all(by_bytes[(value or b"")[:256]] == reason for value, reason in bad)
        until(lambda: len(journal_rows(settings)) == 2 * len(bad), 30, ingest.said)
        assert ingest.metric("headrace_dead_letters_total") == len(bad)
        assert ingest.process.poll() is None


def test_a_foreign_topic_of_any_partition_count_is_mapped_also_when_it_is_applied_later(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    orders = f"{namespace}-shop.orders"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 3, 1)])[orders].result(10)
    settings = set_up(broker, project(namespace, PARTITIONS))
    values: list[bytes | None] = [
        json.dumps({"customer": {"id": i}, "total": 2.5, "number": i, "status": "paid" if i % 2 else "open"}).encode()
        for i in range(100)
    ]
    with worker("ingest", settings, tmp_path) as ingest:
        apply(settings, project(namespace, PARTITIONS, more=ORDERS.format(topic=orders)))
        send(settings, [*values, b"no json"], orders)
        until(lambda: len(journal_rows(settings)) == 50, 60, ingest.said)
        assert {key[0] for key in journal_rows(settings)} == {orders}
        (letter,) = [each[3] for each in read_all(settings, "dead-letters", 1)]
        assert (letter.topic, letter.reason) == (orders, "bad-magic")
        assert ingest.metric("headrace_ingest_passed_over_total") == 50


def test_malformed_records_of_a_foreign_topic_go_to_the_dead_letters_and_the_rest_goes_on(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    def order(**fields: Any) -> bytes:
        return json.dumps({"customer": {"id": 7}, "total": 2.5, "number": 1, "status": "paid", **fields}).encode()

    bad: list[tuple[bytes | None, str]] = [
        (None, "empty"),
        (b"", "empty"),
        (b"no json", "bad-magic"),
        (b"\0\0", "wrong-format"),
        (order()[:-1], "bad-json"),
        (order()[:-1] + b"\xff}", "bad-utf8"),
        (order(total=float("nan")), "bad-json"),
        (order().replace(b"2.5", b"1e999"), "not-finite"),
        (order(total="dear"), "wrong-type"),
        (order(customer={"id": [7]}), "wrong-type"),
        (order(customer={}), "missing-field"),
        (order().replace(b"2.5", b"[" * 200 + b"]" * 200), "too-deep"),
        (b"\0\0\0\0\x07" + order(), "wrong-format"),
    ]
    orders = f"{namespace}-shop.orders"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 3, 1)])[orders].result(10)
    settings = set_up(broker, project(namespace, PARTITIONS, more=ORDERS.format(topic=orders)))
    mixed = [value for number, (each, _) in enumerate(bad) for value in (order(number=number), each)]
    with worker("ingest", settings, tmp_path) as ingest:
        send(settings, mixed, orders)
        letters = [each[3] for each in read_all(settings, "dead-letters", len(bad))]
        assert sorted(letter.reason for letter in letters) == sorted(reason for _, reason in bad)
        assert {letter.topic for letter in letters} == {orders}
        until(lambda: len(journal_rows(settings)) == len(bad), 30, ingest.said)
        assert ingest.process.poll() is None


ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {
            "name": "customer",
            "type": {"type": "record", "name": "Customer", "fields": [{"name": "id", "type": "string"}]},
        },
        {"name": "total", "type": "double"},
        {"name": "number", "type": "long"},
        {"name": "status", "type": "string"},
    ],
}


def test_a_foreign_topic_in_avro_is_mapped_by_the_schema_of_its_registry(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    orders = f"{namespace}-shop.orders"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 3, 1)])[orders].result(10)
    source = ORDERS.format(topic=orders).replace('format = "json"', 'format = "avro"')
    settings = set_up(broker, project(namespace, PARTITIONS, more=source))
    schema = fastavro.parse_schema(ORDER, named_schemas={})

    def avro(schema_id: int, number: int) -> bytes:
        fields = {"customer": {"id": f"c{number}"}, "total": 0.5 * number, "number": number}
        body = io.BytesIO()
        fastavro.schemaless_writer(body, schema, {**fields, "status": "paid" if number % 2 else "open"})
        return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()

    with HttpRegistry() as registry:
        for version in released():  # what `headrace apply` wrote by the file
            registry.register(version.schema)
        theirs = registry.register(ORDER)
        stray = [b'{"customer": {"id": "c1"}, "total": 1, "number": 1, "status": "paid"}', avro(9_999, 1)]
        with worker("ingest", settings, tmp_path, schema_registry_url=registry.url) as ingest:
            send(settings, [*(avro(theirs, number) for number in range(100)), *stray], orders)
            until(lambda: len(journal_rows(settings)) == 50, 60, ingest.said)
            letters = [each[3] for each in read_all(settings, "dead-letters", 2)]
            assert sorted(letter.reason for letter in letters) == ["unknown-schema", "wrong-format"]
            assert ingest.metric("headrace_ingest_passed_over_total") == 50
    found = {}
    for _, _, _, block in read_all(settings, "journal"):
        for subject, outcome_id, value in zip(block.subjects, block.outcome_ids, block.values.tolist(), strict=True):
            found[subject] = (outcome_id, value)
    assert found == {f"c{number}": (str(number), 0.5 * number) for number in range(1, 100, 2)}


def committed(settings: CommonSettings, name: str) -> dict[int, int]:
    """Next offset of each partition of a topic that the ingest group has committed."""
    found = lags.committed(settings)
    return next(
        (offsets for group, full, offsets in found if (group, full) == (f"{settings.namespace}.ingest", name)), {}
    )


def ends(settings: CommonSettings, name: str, partitions: int) -> dict[int, int]:
    return {p: reading.span_of(settings, name, p)[1] for p in range(partitions)}


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "packed"])
def test_what_a_shop_aborted_is_not_learnt_and_the_lag_is_none_also_where_nothing_else_comes(
    broker: str, namespace: str, tmp_path: Path, in_place: bool
) -> None:
    orders = f"{namespace}-shop.orders"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 2, 1)])[orders].result(10)
    settings = set_up(broker, project(namespace, PARTITIONS, more=ORDERS.format(topic=orders)))
    shop = producer(settings, **{"transactional.id": orders})
    shop.init_transactions(20)
    num_kept = 0

    def transact(first: int, num: int, *, is_kept: bool) -> None:
        nonlocal num_kept
        shop.begin_transaction()
        for number in range(first, first + num):
            order = {"customer": {"id": number}, "total": float(is_kept), "number": number, "status": "paid"}
            shop.produce(orders, json.dumps(order).encode(), partition=number % 2)
        assert shop.flush(20) == 0
        (shop.commit_transaction if is_kept else shop.abort_transaction)(20)
        num_kept += num * is_kept

    def is_read_to_the_end() -> bool:
        return committed(settings, orders) == ends(settings, orders, 2) and (
            ingest.metric("headrace_ingest_lag_records") == 0
        )

    transact(0, 40, is_kept=True)
    transact(40, 40, is_kept=False)
    transact(80, 40, is_kept=True)
    transact(120, 10, is_kept=False)
    with worker("ingest", settings, tmp_path, decode_in_place=in_place) as ingest:
        until(is_read_to_the_end, 30, ingest.said)
        transact(130, 40, is_kept=False)  # while nothing else comes
        until(is_read_to_the_end, 30, ingest.said)
        transact(170, 20, is_kept=True)
        until(lambda: ingest.metric("headrace_ingest_outcomes_total") == num_kept, 30, ingest.said)
        until(is_read_to_the_end, 30, ingest.said)
    blocks = [block for *_, block in read_all(settings, "journal") if isinstance(block, OutcomeBlock)]
    kept = [*range(40), *range(80, 120), *range(170, 190)]
    assert sorted(int(subject) for block in blocks for subject in block.subjects) == kept
    assert set(journal_rows(settings).values()) == {1}


def test_an_open_transaction_is_no_reason_to_restart_the_worker(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace, PARTITIONS))
    shop = producer(settings, **{"transactional.id": namespace})
    shop.init_transactions(20)
    with worker("ingest", settings, tmp_path, stall_s_max=2) as ingest:
        send(settings, outcomes(100))
        shop.begin_transaction()
        shop.produce(topic(namespace, "outcomes"), outcomes(1)[0], partition=0)
        assert shop.flush(20) == 0
        send(settings, outcomes(100, 100))
        end = time.monotonic() + 6
        while time.monotonic() < end:
            assert ingest.get("/live")[0] == 200
            time.sleep(0.2)
        assert ingest.metric("headrace_ingest_outcomes_total") < 200
        shop.commit_transaction(20)
        until(lambda: ingest.metric("headrace_ingest_outcomes_total") == 201, 30, ingest.said)


def test_a_worker_that_begins_anew_with_other_sources_is_not_ended_for_having_stopped(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    orders = f"{namespace}-shop.orders"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 1, 1)])[orders].result(10)
    settings = set_up(broker, project(namespace, PARTITIONS))
    with worker("ingest", settings, tmp_path, stop_s_max=STOP_S) as ingest:
        apply(settings, project(namespace, PARTITIONS, more=ORDERS.format(topic=orders)))
        until(lambda: "starting again with the new ones" in ingest.said(), 60, ingest.said)
        time.sleep(STOP_S + 2.0)
        assert ingest.process.poll() is None, ingest.said()


def test_a_source_topic_that_is_missing_is_said_once_and_read_once_it_is_there(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    orders = f"{namespace}-shop.orders"
    settings = set_up(broker, project(namespace, PARTITIONS, more=ORDERS.format(topic=orders)))
    with worker("ingest", settings, tmp_path) as ingest:
        until(lambda: "--retire" in ingest.said(), 10, ingest.said)
        assert f"the source topic {orders} is missing at {broker}" in ingest.said()
        send(settings, [json.dumps({"subject": "s", "type": "order"}).encode()])
        until(lambda: len(journal_rows(settings)) == 1, 30, ingest.said)

        admin = AdminClient({"bootstrap.servers": broker})
        admin.create_topics([NewTopic(orders, 1, 1)])[orders].result(10)
        paid = {"customer": {"id": "s"}, "total": 3.0, "number": "1", "status": "paid"}
        send(settings, [json.dumps(paid).encode()], orders)

        until(lambda: (orders, 0, 0) in journal_rows(settings), 60, ingest.said)
        assert ingest.said().count("is missing") == 1


def test_a_write_that_the_broker_refuses_ends_the_process_and_nothing_is_skipped(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    settings = set_up(broker, project(namespace, PARTITIONS))
    admin = AdminClient({"bootstrap.servers": broker})

    def limit(size_bytes: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(size_bytes), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic(namespace, "journal"), incremental_configs=[entry])
        admin.incremental_alter_configs([resource])[resource].result(10)
        time.sleep(0.5)

    limit(200)
    refused = WorkerProcess("ingest", settings, tmp_path)
    try:
        refused.wait_ready()
        send(settings, outcomes(200))
        assert refused.process.wait(40) == 1
        assert "cannot write to" in refused.said()
        assert "Remedy: mend the cause" in refused.said()
    finally:
        refused.end()
    limit(1_048_588)
    with worker("ingest", settings, tmp_path) as ingest:
        until(lambda: len(journal_rows(settings)) == 200, 40, ingest.said)


def test_a_source_topic_made_again_under_its_name_is_told_and_not_ready(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings, name = set_up(broker, project(namespace, PARTITIONS)), topic(namespace, "outcomes")
    marks = tuple(SourcePosition(name, partition, 1_000_000) for partition in range(PARTITIONS))
    progress = Progress(3, 0, 9, 0, (), Resume(7, 0, marks, ()), {}, {})  # as the join left it for the old topic
    client = producer(settings)
    client.produce(topic(namespace, "transitions"), encode(progress, REGISTRY), partition=3)
    assert client.flush(20) == 0
    with worker("ingest", settings, tmp_path) as ingest:
        send(settings, outcomes(100))
        until(lambda: ingest.metric("headrace_ingest_source_made_anew") == PARTITIONS, 30, ingest.said)
        status, reason = ingest.get("/ready")
        assert status == 503
        assert "was read up to 1000000" in reason
