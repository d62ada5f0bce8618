"""Schema ids: from the packaged file, or from a registry with Confluent's API."""

from __future__ import annotations

import copy
import io
from typing import Any

import fastavro
import orjson
import pytest
from confluent_kafka.schema_registry import Schema

from schemas import codec
from schemas.blocks import TransitionBlock
from schemas.bounds import BadRecord
from schemas.compatibility import current
from schemas.registry import ConfluentRegistry, FileRegistry, RegistryUnavailable, open_registry
from tests.schemas.messages import (
    decision_block,
    decision_columns,
    example_outcome,
    outcome_block,
    same,
    transition_block,
)


@pytest.fixture
def confluent() -> ConfluentRegistry:
    return ConfluentRegistry("mock://registry")


def message_of(schema_id: int, schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(copy.deepcopy(schema), named_schemas={}), value)
    return b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue()


def registered(registry: ConfluentRegistry, schema: Any, subject: str = "theirs") -> int:
    return int(registry.client.register_schema(subject, Schema(orjson.dumps(schema).decode(), "AVRO")))


def test_without_an_address_ids_come_from_the_file() -> None:
    assert isinstance(open_registry(None), FileRegistry)
    assert isinstance(open_registry("mock://registry"), ConfluentRegistry)


def test_every_record_has_an_id_and_the_id_has_the_record() -> None:
    registry = FileRegistry()
    for name in current():
        assert registry.schema_of(registry.id_of(name)).name == name


def test_an_id_of_nobody_is_refused_by_both(confluent: ConfluentRegistry) -> None:
    for registry in (FileRegistry(), confluent):
        with pytest.raises(BadRecord, match="unknown-schema: schema id 999999"):
            registry.schema_of(999_999)


def test_an_id_of_nobody_is_not_asked_for_again_and_again(confluent: ConfluentRegistry) -> None:
    asked = []
    confluent.client.get_schema = lambda schema_id: asked.append(schema_id) or {}["nothing"]  # type: ignore[method-assign]
    with pytest.raises(RegistryUnavailable):
        confluent.schema_of(5)
    confluent._unknown_until_s[6] = float("inf")
    with pytest.raises(BadRecord):
        confluent.schema_of(6)
    assert asked == [5], "a registry that fails is asked again, one that knows nothing is not"


def test_messages_travel_the_same_through_a_registry(confluent: ConfluentRegistry) -> None:
    for message in (decision_block(decision_columns(1, 3)), transition_block(decision_columns(2, 3)), outcome_block(2)):
        decoded = codec.decode(codec.encode(message, confluent), confluent)
        assert same(message, decoded)
    outcome = example_outcome()
    assert codec.decode_outcome(codec.encode(outcome, confluent), confluent) == outcome
    assert confluent.schema_of(confluent.id_of("TransitionBlock")).layout is not None, "read as columns"


def test_subjects_in_the_registry_are_the_full_record_names(confluent: ConfluentRegistry) -> None:
    confluent.id_of("Outcome")
    assert confluent.client.get_subjects() == ["headrace.Outcome"]


def evolved(name: str) -> Any:
    """A version that we never released: a field more at the head, another in the middle, the rest in another order."""
    schema = copy.deepcopy(current()[name].schema)
    first, *rest = schema["fields"]
    schema["fields"] = [
        {"name": "weather", "type": ["null", "string"], "default": None},
        first,
        {"name": "ranks", "type": {"type": "array", "items": "int"}, "default": []},
        *rest,
    ]
    return schema


@pytest.mark.parametrize("block", [transition_block(decision_columns(4, 5)), outcome_block(3)])
def test_a_block_of_a_writer_with_more_fields_is_read_as_ours(confluent: ConfluentRegistry, block: Any) -> None:
    name = type(block).__name__
    known = FileRegistry()
    fields = fastavro.schemaless_reader(io.BytesIO(codec.encode(block, known)[5:]), known.reader_of(name).avro, None)
    schema = evolved(name)
    schema_id = registered(confluent, schema, f"headrace.{name}")
    assert not confluent.schema_of(schema_id).is_current
    message = message_of(schema_id, schema, {**fields, "weather": "wet", "ranks": [1, 2]})
    assert same(block, codec.decode(message, confluent, expect=type(block)))


def test_an_outcome_of_a_writer_with_fewer_fields_gets_the_defaults(confluent: ConfluentRegistry) -> None:
    schema = copy.deepcopy(current()["Outcome"].schema)
    schema["fields"] = [field for field in schema["fields"] if field["name"] in ("subject", "type")]
    schema_id = registered(confluent, schema, "headrace.Outcome")
    outcome = codec.decode_outcome(message_of(schema_id, schema, {"subject": "s", "type": "click"}), confluent)
    assert (outcome.subject, outcome.type, outcome.value, outcome.outcome_id) == ("s", "click", 1.0, None)


def test_a_writer_that_lacks_what_we_need_is_refused_with_the_field(confluent: ConfluentRegistry) -> None:
    schema = copy.deepcopy(current()["TransitionBlock"].schema)
    schema["fields"] = [field for field in schema["fields"] if field["name"] != "positions"]
    known = FileRegistry()
    body = codec.encode(transition_block(decision_columns(1, 1)), known)[5:]
    fields = fastavro.schemaless_reader(io.BytesIO(body), known.reader_of("TransitionBlock").avro, None)
    del fields["positions"]
    schema_id = registered(confluent, schema, "headrace.TransitionBlock")
    with pytest.raises(BadRecord, match=r"unknown-schema: .*positions"):
        codec.decode(message_of(schema_id, schema, fields), confluent, expect=TransitionBlock)


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
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}


def test_an_order_of_a_shop_is_read_as_plain_values(confluent: ConfluentRegistry) -> None:
    order = {"customer": {"id": "u1"}, "total": 9.5, "at": 1_700_000_000_000}
    message = message_of(registered(confluent, ORDER), ORDER, order)
    assert codec.decode_foreign(message, confluent) == order
    assert codec.decode_foreign(orjson.dumps(order), confluent) == order
    with pytest.raises(BadRecord, match=r"wrong-type: .*shop\.Order"):
        codec.decode(message, confluent)


def test_a_bomb_of_a_shop_reaches_no_decoder(confluent: ConfluentRegistry) -> None:
    nulls = {"type": "array", "items": "null"}
    message = b"\0" + registered(confluent, nulls).to_bytes(4, "big") + b"\x80\xe1\xeb\x17\0"
    with pytest.raises(BadRecord, match="too-many-items"):
        codec.decode_foreign(message, confluent)
    nested = {
        "type": "record",
        "name": "Nested",
        "fields": [{"name": "next", "type": ["null", "Nested"]}],
    }
    message = b"\0" + registered(confluent, nested, "nested").to_bytes(4, "big") + b"\x02" * 500_000 + b"\0"
    with pytest.raises(BadRecord, match="too-deep"):
        codec.decode_foreign(message, confluent)


def test_a_schema_that_is_no_avro_is_refused(confluent: ConfluentRegistry) -> None:
    confluent.client.get_schema = lambda schema_id: Schema("message X {}", "PROTOBUF")  # type: ignore[method-assign]
    with pytest.raises(BadRecord, match="unknown-schema: schema 77 is PROTOBUF"):
        confluent.schema_of(77)


def test_a_registry_that_does_not_answer_is_no_fault_of_the_message() -> None:
    registry = ConfluentRegistry("http://127.0.0.1:9", {"max.retries": 0})  # the discard port: nobody listens
    with pytest.raises(RegistryUnavailable, match="SCHEMA_REGISTRY_URL"):
        registry.schema_of(1)
