"""A batch of a users' topic becomes outcome blocks: same keys as one by one, in source order, bad records named."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
import pytest
from confluent_kafka.schema_registry import Schema

from schemas.blocks import OutcomeBlock
from schemas.codec import BadRecord, decode, decode_outcome, encode
from schemas.keys import action_key, decision_key, outcome_key, partition_of, source_outcome_key, subject_key
from schemas.records import DecisionRequest, Outcome
from schemas.registry import ConfluentRegistry, FileRegistry, Registry, RegistryUnavailable
from schemas.task import parse
from streams.ingest import BLOCK_BYTES_MAX, Ingested, ingest
from streams.ingest_fields import SourceMapping
from streams.transport_batch import RecordBatch, pack

REGISTRY = FileRegistry()
NUM_PARTITIONS = 4
TOPIC = "shop.events"


def batch_of(values: Sequence[bytes | None], first: int = 100) -> RecordBatch:
    records = [SimpleNamespace(offset=first + 2 * i, timestamp=5000 + i, value=value) for i, value in enumerate(values)]
    return pack(TOPIC, 3, records)


def native(values: Sequence[bytes | None]) -> Ingested:
    return ingest(batch_of(values), None, REGISTRY, NUM_PARTITIONS)


def mapped(values: Sequence[bytes | None], source: str, registry: Registry = REGISTRY) -> Ingested:
    text = f'[namespace]\nname = "shop"\n[[sources]]\ntopic = "{TOPIC}"\n{source}'
    return ingest(batch_of(values), SourceMapping(parse(text).sources[0]), registry, NUM_PARTITIONS)


def rows_of(found: Ingested) -> dict[int, dict[str, Any]]:
    """Every row by its source offset, from the bytes of its block: as the join will see it."""
    rows: dict[int, dict[str, Any]] = {}
    for partition, block in found.blocks:
        again = decode(encode(block, REGISTRY), REGISTRY, expect=OutcomeBlock)
        for i, offset in enumerate(again.source_offsets.tolist()):
            rows[offset] = {
                "partition": partition,
                "outcome_key": tuple(again.outcome_keys[i].tolist()),
                "subject_key": int(again.subject_keys[i]),
                "decision_key": tuple(again.decision_keys[i].tolist()),
                "action_key": int(again.action_keys[i]),
                "slot": int(again.slots[i]),
                "type": again.type_names[again.types[i]],
                "value": float(again.values[i]),
                "time_ms": int(again.times_ms[i]),
            }
    return rows


def expected_row(outcome: Outcome, offset: int) -> dict[str, Any]:
    """The same by the one-at-a-time functions."""
    own = outcome.outcome_id
    return {
        "partition": partition_of(outcome.subject, NUM_PARTITIONS),
        "outcome_key": outcome_key(own) if own else source_outcome_key(TOPIC, 3, offset),
        "subject_key": subject_key(outcome.subject),
        "decision_key": decision_key(outcome.decision_id) if outcome.decision_id else (0, 0),
        "action_key": action_key(outcome.action_id) if outcome.action_id else 0,
        "slot": -1 if outcome.slot is None else outcome.slot,
        "type": outcome.type,
        "value": outcome.value,
        "time_ms": outcome.time_ms or 0,
    }


OUTCOMES = [
    Outcome("ada", "click"),
    Outcome("ada", "click", 1.0, "o-1", "d-1", "a-1", 0, 1_700_000_000_000),
    Outcome("bob", "order", 12.5, None, "d-2"),
    Outcome("größe", "refund", -3.0, "o-2", None, "a-2"),
    Outcome("eve", "order", 0.0, "o-3", "d-3"),
]


def as_json(outcome: Outcome) -> bytes:
    fields = {name: getattr(outcome, name) for name in Outcome.__slots__}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_avro_and_json_outcomes_get_the_keys_and_partitions_of_the_functions_for_one() -> None:
    values = [encode(outcome, REGISTRY) if i % 2 else as_json(outcome) for i, outcome in enumerate(OUTCOMES * 3)]
    found = native(values)
    assert not found.refused
    rows = rows_of(found)
    assert rows == {100 + 2 * i: expected_row(outcome, 100 + 2 * i) for i, outcome in enumerate(OUTCOMES * 3)}


@pytest.mark.parametrize("form", [as_json, lambda outcome: encode(outcome, REGISTRY)])
def test_a_batch_of_one_form_is_read_alike(form: Any) -> None:
    rows = rows_of(native([form(outcome) for outcome in OUTCOMES]))
    assert rows == {100 + 2 * i: expected_row(outcome, 100 + 2 * i) for i, outcome in enumerate(OUTCOMES)}


def test_rows_of_a_partition_keep_the_order_of_the_source() -> None:
    found = native([encode(OUTCOMES[i % 5], REGISTRY) for i in range(500)])
    last: dict[int, int] = {}
    for partition, block in found.blocks:
        assert (np.diff(block.source_offsets) > 0).all()
        assert int(block.source_offsets[0]) > last.get(partition, -1)
        last[partition] = int(block.source_offsets[-1])
        assert (block.source_topic, block.source_partition) == (TOPIC, 3)


def test_blocks_stay_within_their_bytes() -> None:
    long = Outcome("s" * 256, "click", outcome_id="o" * 256, decision_id="d" * 64)
    found = native([encode(long, REGISTRY)] * 4000)
    assert sum(len(block) for _, block in found.blocks) == 4000
    assert len(found.blocks) > 1
    assert max(len(encode(block, REGISTRY)) for _, block in found.blocks) <= BLOCK_BYTES_MAX


def test_a_bad_record_has_the_codecs_reason_and_spoils_nothing_else() -> None:
    good = encode(OUTCOMES[1], REGISTRY)
    nan = good.replace(np.float64(1.0).tobytes(), np.float64("nan").tobytes())
    bad = [
        None,
        b"",
        b"hello",
        good[:-2],
        good + b"\0",
        b"\0\xff\xff\xff\xff" + good[5:],
        nan,
        b'{"subject": "ada", "type": "click"',
        b'{"subject": "ada"}',
        b'{"subject": "ada", "type": "click", "valeu": 1}',
        b'{"subject": "ada", "type": "click", "value": 1e999}',
        b'{"subject": 7, "type": "click"}',
        b'{"subject": "ada", "type": "click", "context": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"x" * (1 << 20) + b"y",
        encode(DecisionRequest("d", "t", "ada"), REGISTRY),
    ]
    found = native([good, *bad, good])
    assert rows_of(found).keys() == {100, 100 + 2 * (len(bad) + 1)}
    assert [refused.index for refused in found.refused] == list(range(1, len(bad) + 1))
    for refused, value in zip(found.refused, bad, strict=True):
        with pytest.raises(BadRecord) as raised:
            decode_outcome(value or b"", REGISTRY)
        assert (refused.reason, refused.detail) == (raised.value.reason, raised.value.detail)
    assert [refused.reason for refused in found.refused] == [
        "empty", "empty", "bad-magic", "truncated", "trailing-bytes", "unknown-schema", "not-finite", "bad-json",
        "missing-field", "unknown-field", "not-finite", "wrong-type", "too-deep", "too-large", "wrong-type",
    ]  # fmt: skip


ORDERS = """
type = "order"
subject = { path = "customer.id" }
value = { path = "total" }
outcome_id = { path = "number" }
time = { path = "at" }
where = "status == 'paid'"
"""


def order(**fields: Any) -> bytes:
    return json.dumps({"customer": {"id": 7}, "total": 9.5, "number": "n-1", "status": "paid", **fields}).encode()


def test_a_foreign_order_topic_becomes_outcomes_by_field_paths() -> None:
    found = mapped([order(), order(status="open"), order(total=3, number=12, at="yesterday")], ORDERS)
    assert not found.refused
    assert found.num_passed_over == 1
    rows = rows_of(found)
    assert rows[100] == expected_row(Outcome("7", "order", 9.5, "n-1"), 100)
    assert rows[104] == expected_row(Outcome("7", "order", 3.0, "12"), 104)


ORDER_SCHEMA = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {
            "name": "customer",
            "type": {"type": "record", "name": "Customer", "fields": [{"name": "id", "type": "long"}]},
        },
        {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "number", "type": ["null", "string"]},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["open", "paid"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}


class Shop:
    """A shop whose orders are Avro with a schema of its own, in a registry."""

    def __init__(self) -> None:
        self.registry = ConfluentRegistry("mock://shop")
        self.schema = fastavro.parse_schema(ORDER_SCHEMA, named_schemas={})
        text = Schema(json.dumps(ORDER_SCHEMA), "AVRO")
        self.schema_id = self.registry.client.register_schema("shop.events-value", text)

    def order(self, **fields: Any) -> bytes:
        order = {"customer": {"id": 7}, "total": Decimal("9.50"), "number": "n-1", "status": "paid", "at": 1_700}
        body = io.BytesIO()
        fastavro.schemaless_writer(body, self.schema, order | fields)
        return b"\0" + self.schema_id.to_bytes(4, "big") + body.getvalue()


def test_a_foreign_topic_in_avro_becomes_outcomes_by_the_schema_of_its_registry() -> None:
    shop = Shop()
    values = [
        shop.order(),
        shop.order(status="open"),
        shop.order(customer={"id": 8}, total=Decimal("-3.25"), number=None, at=1_800),
        shop.order()[:-1],
        b"\0\x7f\xff\xff\xff" + shop.order()[5:],
        encode(OUTCOMES[0], FileRegistry()),
        shop.order(number="n-2"),
    ]
    found = mapped(values, 'format = "avro"' + ORDERS, shop.registry)
    assert [(refused.index, refused.reason) for refused in found.refused] == [
        (3, "truncated"), (4, "unknown-schema"), (5, "unknown-schema"),
    ]  # fmt: skip
    assert found.num_passed_over == 1
    assert rows_of(found) == {
        100: expected_row(Outcome("7", "order", 9.5, "n-1", time_ms=1_700), 100),
        104: expected_row(Outcome("8", "order", -3.25, None, time_ms=1_800), 104),
        112: expected_row(Outcome("7", "order", 9.5, "n-2", time_ms=1_700), 112),
    }


def test_a_foreign_topic_waits_when_its_registry_is_away() -> None:
    away = ConfluentRegistry("http://127.0.0.1:9", {"max.retries": 0})  # the discard port: nobody listens
    with pytest.raises(RegistryUnavailable):
        mapped([Shop().order()], 'format = "avro"' + ORDERS, away)


@pytest.mark.parametrize(
    ("declared", "detail"),
    [
        ("", 'the record is avro, its source declares format = "json"'),
        ('format = "json"', 'the record is avro, its source declares format = "json"'),
        ('format = "avro"', 'the record is json, its source declares format = "avro"'),
    ],
)
def test_a_record_of_another_format_than_declared_is_refused_whatever_it_holds(declared: str, detail: str) -> None:
    shop = Shop()
    right, wrong = (shop.order(), order()) if "avro" in declared else (order(), shop.order())
    values = [right, wrong, wrong[:6], b"status=paid", None]
    found = mapped(values, declared + ORDERS, shop.registry)
    assert [(refused.index, refused.reason) for refused in found.refused] == [
        (1, "wrong-format"), (2, "wrong-format"), (3, "bad-magic"), (4, "empty"),
    ]  # fmt: skip
    assert found.refused[0].detail == detail
    assert rows_of(found).keys() == {100}


def test_a_flag_may_be_the_value_and_the_type_may_come_from_the_event() -> None:
    source = 'subject = { path = "user" }\ntype = { path = "event" }\nvalue = { path = "ok" }\n'
    rows = rows_of(mapped([b'{"user": "ada", "event": "resolved", "ok": true}'], source))
    assert rows[100] == expected_row(Outcome("ada", "resolved", 1.0), 100)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (order(customer={}), "missing-field"),
        (order(total=None), "missing-field"),
        (order(total="9.5"), "wrong-type"),
        (order(customer={"id": ["ada"]}), "wrong-type"),
        (order(customer={"id": True}), "wrong-type"),
        (b"[" * 40 + b"]" * 40, "too-deep"),
        (b'{"status": ', "bad-json"),
        (b"status=paid", "bad-magic"),
        (None, "empty"),
    ],
)
def test_an_event_that_is_no_outcome_has_a_reason(value: bytes | None, reason: str) -> None:
    found = mapped([order(), value], ORDERS)
    assert [(refused.index, refused.reason) for refused in found.refused] == [(1, reason)]
    assert len(rows_of(found)) == 1


def test_an_event_that_a_path_cannot_be_evaluated_for_is_of_the_wrong_type() -> None:
    source = 'subject = { path = "user" }\ntype = "seen"\nwhere = "contains(page, part)"\n'
    found = mapped(
        [b'{"user": "ada", "page": "home", "part": 1}', b'{"user": "ada", "page": "home", "part": "o"}'], source
    )
    assert [(refused.index, refused.reason) for refused in found.refused] == [(0, "wrong-type")]
    assert rows_of(found).keys() == {102}


def test_a_batch_without_a_good_record_gives_no_block() -> None:
    found = native([b"no", None])
    assert found.blocks == []
    assert len(found.refused) == 2


def test_no_python_call_is_made_per_avro_outcome() -> None:
    import sys

    def calls(num_records: int) -> int:
        batch = batch_of(
            [encode(Outcome(f"s{i % 97}", "click", decision_id=f"d{i}"), REGISTRY) for i in range(num_records)]
        )
        count = 0

        def count_call(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            ingest(batch, None, REGISTRY, NUM_PARTITIONS)
        finally:
            sys.setprofile(None)
        return count

    calls(10)
    assert calls(2000) == calls(500)
