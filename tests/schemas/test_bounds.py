"""What `bounds.check` lets through to other decoders, and what it does not."""

from __future__ import annotations

import io
import time
import tracemalloc
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bounds import LIMITS, REASONS, BadRecord, Limits, check, compile_schema, view_of

NESTED: dict[str, Any] = {
    "type": "record",
    "name": "Nested",
    "fields": [{"name": "next", "type": ["null", "Nested"]}, {"name": "x", "type": "double"}],
}


def written(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, named_schemas={}), value)
    return stream.getvalue()


def refused(schema: Any, body: bytes, **options: Any) -> str:
    with pytest.raises(BadRecord) as caught:
        check(view_of(body), 0, compile_schema(schema), **options)
    return caught.value.reason


def test_fifty_million_nulls_in_five_bytes_are_refused_before_any_exists() -> None:
    body = written("long", 50_000_000) + b"\0"
    refused({"type": "array", "items": "null"}, body)  # numba compiles
    tracemalloc.start()
    assert refused({"type": "array", "items": "null"}, body) == "too-many-items"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_nulls_are_counted_over_all_blocks_of_a_message() -> None:
    block = written("long", LIMITS.num_record_items_max // 2)
    assert refused({"type": "array", "items": "null"}, block * 3 + b"\0") == "too-many-items"


def test_a_record_nested_a_hundred_thousand_times_is_refused_at_the_limit() -> None:
    body = b"\x02" * 100_000 + b"\0" + b"\0" * 8 * 100_001
    assert refused(NESTED, body) == "too-deep"


def test_nesting_up_to_the_limit_is_read() -> None:
    value: Any = {"next": None, "x": 1.0}
    for _ in range(LIMITS.depth_max - 1):
        value = {"next": value, "x": 1.0}
    check(view_of(written(NESTED, value)), 0, compile_schema(NESTED))
    assert refused(NESTED, written(NESTED, {"next": value, "x": 1.0})) == "too-deep"


def test_a_record_that_contains_itself_without_a_choice_ends_at_the_limit() -> None:
    schema = {"type": "record", "name": "Self", "fields": [{"name": "again", "type": "Self"}]}
    assert refused(schema, b"") == "too-deep"


def record(name: str, *types: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": f"f{i}", "type": each} for i, each in enumerate(types)]}


def rows_of(*types: Any) -> dict[str, Any]:
    return {"type": "array", "items": record("Row", *types)}


def test_records_that_multiply_without_a_byte_are_counted() -> None:
    schema = record("R0")
    for depth in range(1, 15):
        schema = record(f"R{depth}", schema, *[f"R{depth - 1}"] * 3)
    assert refused(schema, b"") == "too-many-items"


def test_records_behind_a_choice_are_counted() -> None:
    tree = record("Tree", ["null", "Tree"], ["null", "Tree"])
    body = b"\0\0"
    for _ in range(18):
        body = b"\2" + body + b"\2" + body  # 2**19 - 1 records in twice as many bytes
    assert refused(tree, body) == "too-many-items"


def test_fields_without_a_byte_are_counted() -> None:
    schema = rows_of(*["null"] * 60)
    check(view_of(written("long", 4000) + b"\0"), 0, compile_schema(schema))
    assert refused(schema, written("long", 5000) + b"\0") == "too-many-items"


def test_a_record_that_is_an_item_counts_once() -> None:
    num = LIMITS.num_record_items_max
    check(view_of(written("long", num) + b"\2" * num + b"\0"), 0, compile_schema(record("Rows", rows_of("int"))))


def test_fields_that_have_bytes_are_limited_by_the_message_alone() -> None:
    schema = rows_of(*[["null", "string"], "string", {"type": "array", "items": "int"}] * 100)
    check(view_of(written("long", 3000) + b"\0" * 900_000 + b"\0"), 0, compile_schema(schema))


def test_a_schema_nested_too_deep_is_refused_itself() -> None:
    schema: Any = "null"
    for _ in range(1000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(BadRecord, match="too-deep"):
        compile_schema(schema)


def test_a_schema_that_names_nothing_known_is_refused() -> None:
    for schema in ("decimal", {"type": "record", "name": "x"}, {"fields": []}, 7, {"type": "fixed", "name": "f"}):
        with pytest.raises(BadRecord, match="unknown-schema"):
            compile_schema(schema)


CASES: list[tuple[Any, bytes, str]] = [
    ("int", written("long", 2**31), "out-of-range"),
    ("long", b"\xff" * 9 + b"\x02", "bad-varint"),
    ("long", b"\xff" * 11, "bad-varint"),
    ("long", b"\x80", "truncated"),
    ("float", b"\0\0\x80", "truncated"),
    ("float", b"\0\0\x80\x7f", "not-finite"),
    ("double", b"\0\0\0\0\0\0\xf8\x7f", "not-finite"),
    ("boolean", b"\2", "bad-boolean"),
    ("bytes", b"\1", "negative-length"),
    ("string", b"\x06ab", "truncated"),
    ("string", written("long", 2**40), "too-large"),
    ("string", b"\4\xc0\xaf", "bad-utf8"),
    ("string", b"\6\xed\xa0\x80", "bad-utf8"),
    ("string", b"\x08\xf4\x90\x80\x80", "bad-utf8"),
    (["null", "int"], b"\4", "bad-union"),
    (["null", "int"], b"\1", "bad-union"),
    ({"type": "enum", "name": "e", "symbols": ["a"]}, b"\2", "bad-enum"),
    ({"type": "fixed", "name": "f", "size": 4}, b"abc", "truncated"),
    ({"type": "array", "items": "int"}, b"\2\2", "truncated"),
    ({"type": "array", "items": "int"}, b"\1\1\2\0", "negative-length"),
    ({"type": "array", "items": "int"}, b"\1\4\2\0\0", "bad-block"),
    ({"type": "array", "items": "int"}, b"\1\x7f\2\0", "negative-length"),
    ({"type": "array", "items": "int"}, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\0", "too-many-items"),
    ({"type": "array", "items": "double"}, b"\4" + b"\0" * 9, "truncated"),
    ({"type": "map", "values": "int"}, b"\2\4\xff\xff\2\0", "bad-utf8"),
    ("int", b"\0\0", "trailing-bytes"),
]


@pytest.mark.parametrize(("schema", "body", "reason"), CASES, ids=[f"{i}-{case[2]}" for i, case in enumerate(CASES)])
def test_each_fault_has_its_own_reason(schema: Any, body: bytes, reason: str) -> None:
    assert refused(schema, body) == reason


def test_a_fault_is_reported_with_its_field_and_byte() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "string"}]}
    with pytest.raises(BadRecord, match=r"truncated: R\.b at byte 1: the message ends before the value does"):
        check(view_of(b"\0\x08ab"), 0, compile_schema(schema))


def test_numbers_that_are_not_finite_pass_where_only_one_field_is_used() -> None:
    check(view_of(b"\0\0\xc0\x7f"), 0, compile_schema("float"), finite=False)


def test_a_decimal_that_takes_long_to_read_is_refused() -> None:
    schema = {"type": "bytes", "logicalType": "decimal", "precision": 9}
    assert refused(schema, written("bytes", b"1" * 65)) == "too-large"


def test_a_large_message_is_refused_without_looking_at_it() -> None:
    assert refused("bytes", b"\xff" * (LIMITS.message_bytes_max + 1)) == "too-large"


def test_the_worst_message_is_refused_in_a_moment() -> None:
    blocks = b"\x01\x00" * (LIMITS.message_bytes_max // 2 - 8)  # count -1, size 0: half a million empty blocks
    started = time.monotonic()
    assert refused({"type": "array", "items": "null"}, blocks, limits=Limits(num_record_items_max=1000)) in (
        "too-many-items",
        "truncated",
    )
    assert time.monotonic() - started < 30, "numba may have to compile first"


def test_every_reason_is_named_once() -> None:
    names = [reason for reason, _ in REASONS]
    assert len(set(names)) == len(names)


SCHEMAS = st.recursive(
    st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string"]),
    lambda inner: st.one_of(
        inner.map(lambda item: {"type": "array", "items": item}),
        inner.map(lambda item: {"type": "map", "values": item}),
        inner.filter(lambda item: item != "null" and not isinstance(item, list)).map(lambda item: ["null", item]),
    ),
    max_leaves=6,
)


@given(SCHEMAS, st.binary(max_size=60))
def test_what_passes_the_check_is_read_by_fastavro_to_the_last_byte(schema: Any, body: bytes) -> None:
    try:
        check(view_of(body), 0, compile_schema(schema), finite=False)
    except BadRecord:
        return
    stream = io.BytesIO(body)
    fastavro.schemaless_reader(stream, fastavro.parse_schema(schema, named_schemas={}), None)
    assert not stream.read()
