"""Messages ↔ records and blocks."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import fastavro
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.blocks import DecisionBlock, OutcomeBlock, Tick, TransitionBlock
from schemas.bounds import LIMITS, BadRecord
from schemas.records import Candidate, DecisionRequest, Outcome, Vector
from schemas.registry import FileRegistry
from tests.schemas.messages import (
    BLOCKS,
    OUTCOMES,
    RECORDS,
    REQUESTS,
    decision_block,
    decision_columns,
    example_outcome,
    example_request,
    outcome_block,
    same,
    transition_block,
)

REGISTRY = FileRegistry()


def plain(message: bytes) -> Any:
    """What a standard Avro library makes of a message."""
    schema = REGISTRY.schema_of(int.from_bytes(message[1:5], "big"))
    stream = io.BytesIO(message[5:])
    value = fastavro.schemaless_reader(stream, schema.avro, None)
    assert not stream.read(), "nothing is left"
    return value


@given(BLOCKS)
def test_a_block_comes_back_bit_for_bit(block: Any) -> None:
    assert same(block, codec.decode(codec.encode(block, REGISTRY), REGISTRY))


@given(RECORDS)
def test_a_record_comes_back_equal(record: Any) -> None:
    assert codec.decode(codec.encode(record, REGISTRY), REGISTRY) == record


@given(BLOCKS | RECORDS)
def test_a_standard_avro_library_reads_every_message(message: Any) -> None:
    fields = plain(codec.encode(message, REGISTRY))
    assert list(fields) == [field["name"] for field in REGISTRY.reader_of(type(message).__name__).avro["fields"]]
    if isinstance(message, DecisionBlock | TransitionBlock):
        assert fields["context"] == message.columns.features.context.reshape(-1).tolist()
        assert fields["propensities"] == message.columns.propensities.tolist()
        assert fields["decision_keys"] == message.decision_keys.tobytes()
    if isinstance(message, DecisionBlock | OutcomeBlock):
        assert fields["subjects"] == message.subjects.tolist()


@given(BLOCKS)
def test_what_a_standard_avro_library_writes_is_read_as_the_same_block(block: Any) -> None:
    message = codec.encode(block, REGISTRY)
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, REGISTRY.reader_of(type(block).__name__).avro, plain(message))
    assert same(block, codec.decode(message[:5] + stream.getvalue(), REGISTRY))


def avro(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, value)
    return stream.getvalue()


def in_several_blocks(values: list[int], sizes: list[int]) -> bytes:
    """An Avro array<long> cut into blocks, every other one with a negative count and its size in bytes."""
    out, first = b"", 0
    for index, size in enumerate(sizes):
        items = b"".join(avro("long", value) for value in values[first : first + size])
        head = avro("long", size) if index % 2 else avro("long", -size) + avro("long", len(items))
        out, first = out + head + items, first + size
    return out + b"\0"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_an_array_in_several_blocks_with_sizes_is_read_like_one(sizes: list[int]) -> None:
    block = outcome_block(sum(sizes), with_ids=False)
    offsets = block.source_offsets.tolist()
    in_one = avro({"type": "array", "items": "long"}, offsets)
    message = codec.encode(block, REGISTRY)
    assert message.count(in_one) == 1
    assert same(block, codec.decode(message.replace(in_one, in_several_blocks(offsets, sizes)), REGISTRY))


def test_arrays_of_a_decoded_block_are_owned_aligned_and_writable() -> None:
    message = bytearray(codec.encode(decision_block(decision_columns(1, 5)), REGISTRY))
    block = codec.decode(message, REGISTRY)
    before = block.columns.features.context.copy()
    message[:] = bytes(len(message))
    features = block.columns.features
    for array in (features.context, features.actions, block.decision_keys, block.columns.propensities):
        assert array.flags.aligned
        assert array.flags.writeable
        assert array.flags.c_contiguous
    assert np.array_equal(before, features.context)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda raw: np.frombuffer(raw, np.uint8)])
def test_a_message_may_be_any_buffer(kind: Any) -> None:
    outcome = example_outcome()
    assert codec.decode_outcome(kind(codec.encode(outcome, REGISTRY)), REGISTRY) == outcome


def test_unread_strings_leave_the_numbers_and_the_type_names() -> None:
    block = outcome_block(4)
    numbers = codec.decode(codec.encode(block, REGISTRY), REGISTRY, strings=False)
    assert same(numbers.values, block.values)
    assert numbers.type_names == block.type_names
    assert len(numbers.subjects) == 0


def test_unread_strings_are_checked_all_the_same() -> None:
    message = codec.encode(outcome_block(2), REGISTRY)
    spoilt = message.replace("ß".encode(), b"\xc3\xff", 1)
    for strings in (True, False):
        with pytest.raises(BadRecord, match="bad-utf8"):
            codec.decode(spoilt, REGISTRY, strings=strings)


def test_another_type_than_expected_is_refused() -> None:
    message = codec.encode(Tick(), REGISTRY)
    assert codec.decode(message, REGISTRY, expect=(Tick, DecisionBlock)) == Tick()
    with pytest.raises(BadRecord, match="wrong-type: a Tick stands here, expected TransitionBlock or DecisionBlock"):
        codec.decode(message, REGISTRY, expect=(TransitionBlock, DecisionBlock))


def test_a_message_that_no_reader_would_read_is_not_written() -> None:
    with pytest.raises(BadRecord, match="too-large"):
        codec.encode(example_request(context={"text": "x" * LIMITS.message_bytes_max}), REGISTRY)


def as_json(record: DecisionRequest | Outcome) -> bytes:
    """The record as a shop would write it by hand."""

    def value_of(value: Any) -> Any:
        if isinstance(value, Vector):
            return [float(number) for number in value.values]
        if isinstance(value, Candidate):
            return {"action_id": value.action_id, "features": value_of(value.features)}
        if isinstance(value, dict):
            return {name: value_of(item) for name, item in value.items()}
        return [value_of(item) for item in value] if isinstance(value, list | tuple) else value

    fields = {name: value_of(getattr(record, name)) for name in type(record).__slots__}
    return orjson.dumps({name: value for name, value in fields.items() if value is not None})


@given(REQUESTS)
def test_a_request_in_json_equals_the_one_in_avro(request: DecisionRequest) -> None:
    assert codec.decode_request(as_json(request), REGISTRY) == request


@given(OUTCOMES)
def test_an_outcome_in_json_equals_the_one_in_avro(outcome: Outcome) -> None:
    assert codec.decode_outcome(as_json(outcome), REGISTRY) == outcome


def test_json_needs_the_required_fields_only() -> None:
    request = codec.decode_request(b'{"decision_id":"d","task":"t","subject":"s"}', REGISTRY)
    assert request == DecisionRequest("d", "t", "s")
    outcome = codec.decode_outcome(b'{"subject":"s","type":"click"}', REGISTRY)
    assert outcome == Outcome(subject="s", type="click", value=1.0)


def test_a_whole_number_in_json_is_a_number_feature() -> None:
    request = codec.decode_request(
        b'{"decision_id":"d","task":"t","subject":"s","context":{"age":41,"v":[1,2.5]}}', REGISTRY
    )
    assert request.context == {"age": 41.0, "v": Vector.of(1, 2.5)}


def test_a_task_with_a_catalogue_and_one_without_differ_on_the_wire_only_where_they_must() -> None:
    columns = decision_columns(3, 4, catalogue=True)
    block = transition_block(columns)
    decoded = codec.decode(codec.encode(block, REGISTRY), REGISTRY)
    assert decoded.columns.catalogue == b"c" * 16
    assert decoded.columns.features.actions.shape == (0, 2)


def test_rows_of_a_block_can_be_written_without_copying_them_first() -> None:
    block = transition_block(decision_columns(5, 9))
    assert same(block.rows(3, 7), codec.decode(codec.encode(block.rows(3, 7), REGISTRY), REGISTRY))


def test_a_column_of_the_wrong_length_is_refused() -> None:
    block = transition_block(decision_columns(5, 3))
    message = codec.encode(replace(block, flags=block.flags[:2]), REGISTRY)
    with pytest.raises(BadRecord, match="bad-columns: flags has 2 elements, expected 3"):
        codec.decode(message, REGISTRY)
