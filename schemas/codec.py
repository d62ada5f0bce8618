"""Codec: messages ↔ records and blocks.

A message is 0x00, the writer's schema id as four bytes (big-endian), and an Avro body: Confluent's wire format. What
users send may also be JSON (first byte `{`).

    blocks of the current version   → columns (`schemas.column_reader`), no Python object per row
    anything else                   → `bounds.check` walks the bytes first; only then may fastavro have them

Everything that comes from outside fails with BadRecord and nothing else; a fuzz test holds it to that.
"""

from __future__ import annotations

import io
import struct
from typing import Any, cast

import fastavro
import numpy as np

from schemas.arrays import NO_STRINGS, U8, Strings
from schemas.blocks import Block, DecisionBlock, OutcomeBlock, Tick, TransitionBlock
from schemas.bounds import LIMITS, BadRecord, Limits, Payload, bad, check, too_large, view_of
from schemas.column_reader import LayoutFault, read_fields
from schemas.column_writer import write_fields
from schemas.columns import DTYPES, block_of, values_of
from schemas.intake import outcome_of, parse_json, request_of
from schemas.layout import DTYPES as ARRAY_DTYPES
from schemas.layout import STRINGS
from schemas.record_fields import RECORD_TYPES, fields_of_record, record_of
from schemas.records import DecisionRequest, Outcome, Record
from schemas.registered import RegisteredSchema, Registry
from schemas.varints import BAD_MAGIC, EMPTY, TRUNCATED

__all__ = [
    "TYPES",
    "BadRecord",
    "decode",
    "decode_foreign",
    "decode_outcome",
    "decode_request",
    "encode",
    "schema_id_of",
]

Message = Record | Block
TYPES: dict[str, type] = {
    **RECORD_TYPES,
    **{kind.__name__: kind for kind in (DecisionBlock, OutcomeBlock, Tick, TransitionBlock)},
}
_FASTAVRO_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
    fastavro.read.SchemaResolutionError,
)
"""What fastavro raises for bytes that passed `check` but do not resolve to the reader's schema."""
NUM_HEADER = 5
"""Bytes before the first field: magic byte and schema id (Confluent's wire format)."""
_OPEN_BRACE = 0x7B
_FORMAT_OF = {0x00: "avro", _OPEN_BRACE: "json", ord("["): "json"}
"""What someone else's message is, by its first byte."""


def encode(record: Message, registry: Registry, limits: Limits = LIMITS) -> bytes:
    """The message of a record or block, by its type.

    Raises BadRecord ("too-large") when it exceeds what readers read: refuse it here rather than write it for ever.
    """
    name = type(record).__name__
    schema_id = registry.id_of(name)
    prefix = b"\0" + schema_id.to_bytes(4, "big")
    if isinstance(record, DecisionBlock | OutcomeBlock | TransitionBlock):
        layout = registry.reader_of(name).layout
        assert layout is not None, "our own blocks have a layout"
        message = write_fields(prefix, values_of(record, layout.names), layout)
    elif isinstance(record, Tick):
        message = prefix
    else:
        buffer = io.BytesIO()
        buffer.write(prefix)
        fastavro.schemaless_writer(buffer, registry.reader_of(name).avro, fields_of_record(record))
        message = buffer.getvalue()
    if len(message) > limits.message_bytes_max:
        raise too_large(len(message), limits)
    return message


def schema_id_of(view: U8) -> int:
    """Schema id in the header; raises BadRecord: empty, bad-magic, truncated."""
    if not len(view):
        raise bad(EMPTY, "header", 0)
    if view[0] != 0:
        raise bad(BAD_MAGIC, "header", 0)
    if len(view) < NUM_HEADER:
        raise bad(TRUNCATED, "header", len(view))
    return int.from_bytes(view[1:NUM_HEADER].tobytes(), "big")


def _fastavro(view: U8, writer: RegisteredSchema, reader: RegisteredSchema | None) -> Any:
    """Plain values by fastavro. The bytes have passed `check`; what still fails is a schema that does not resolve."""
    try:
        return fastavro.schemaless_reader(
            io.BytesIO(view[NUM_HEADER:].data), writer.avro, None if reader is None else reader.avro
        )
    except _FASTAVRO_ERRORS as error:
        raise BadRecord("unknown-schema", f"schema {writer.id} ({writer.name}) cannot be read: {error!r}") from error


def _resolved_columns(fields: dict[str, Any], reader: RegisteredSchema) -> dict[str, Any]:
    """Fields of a block as columns, from the plain values of an earlier version."""
    layout = reader.layout
    assert layout is not None, "our own blocks have a layout"
    for name, kind in zip(layout.names, layout.kinds, strict=True):
        if kind == STRINGS:
            fields[name] = Strings.of(fields[name]) if fields[name] else NO_STRINGS
        elif kind in ARRAY_DTYPES:
            fields[name] = np.array(fields[name], ARRAY_DTYPES[kind])
        elif name in DTYPES:
            size = DTYPES[name].itemsize
            if len(fields[name]) % size:
                raise BadRecord("bad-columns", f"{name} has {len(fields[name])} bytes, not a multiple of {size}")
            fields[name] = np.frombuffer(fields[name], DTYPES[name]).copy()
    return fields


def _decode_block(view: U8, writer: RegisteredSchema, registry: Registry, limits: Limits, strings: bool) -> Block:
    layout = writer.layout if strings else writer.layout_of_numbers
    if layout is not None:
        try:
            fields = read_fields(view, NUM_HEADER, layout, DTYPES, limits.num_items_max)
        except LayoutFault as fault:
            raise bad(fault.code, f"{writer.name}.{fault.field}", fault.byte) from None
    else:
        check(view, NUM_HEADER, writer.program, limits, finite=False, as_objects=False)
        reader = registry.reader_of(writer.name)
        fields = _resolved_columns(_fastavro(view, writer, reader), reader)
    return block_of(writer.name, fields, limits)


def decode(
    payload: Payload,
    registry: Registry,
    limits: Limits = LIMITS,
    expect: type | tuple[type, ...] | None = None,
    *,
    strings: bool = True,
) -> Any:
    """The record or block of a message.

    `expect` names the types that may stand here. Without `strings` the ids of a block are checked but left out: the
    join needs none, and they take as long as all numbers. Arrays of blocks are owned, aligned and writable. A
    DecisionBlock may hold rows with unusable numbers: ask `columns.sound_rows`.

    Raises BadRecord with reason and detail, or RegistryUnavailable when the writer's schema cannot be fetched now.
    """
    view = view_of(payload)
    if len(view) > limits.message_bytes_max:
        raise too_large(len(view), limits)
    writer = registry.schema_of(schema_id_of(view))
    kind = TYPES.get(writer.name)
    if kind is None:
        raise BadRecord("wrong-type", f"schema {writer.id} ({writer.name}) is none of ours")
    if expect is not None and not issubclass(kind, expect):
        raise BadRecord("wrong-type", f"a {writer.name} stands here, expected {_names(expect)}")
    if kind in (DecisionBlock, OutcomeBlock, TransitionBlock):
        return _decode_block(view, writer, registry, limits, strings)
    check(view, NUM_HEADER, writer.program, limits)
    if kind is Tick:
        return Tick()
    fields = _fastavro(view, writer, None if writer.is_current else registry.reader_of(writer.name))
    return record_of(writer.name, fields, limits)


def _names(expect: type | tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in (expect if isinstance(expect, tuple) else (expect,)))


def decode_request(payload: Payload, registry: Registry, limits: Limits = LIMITS) -> DecisionRequest:
    """A DecisionRequest in Avro or JSON; raises as `decode` does."""
    view = view_of(payload)
    if len(view) and view[0] == _OPEN_BRACE:
        return request_of(parse_json(view, limits), limits)
    return cast(DecisionRequest, decode(view, registry, limits, DecisionRequest))


def decode_outcome(payload: Payload, registry: Registry, limits: Limits = LIMITS) -> Outcome:
    """An Outcome in Avro or JSON; raises as `decode` does."""
    view = view_of(payload)
    if len(view) and view[0] == _OPEN_BRACE:
        return outcome_of(parse_json(view, limits), limits)
    return cast(Outcome, decode(view, registry, limits, Outcome))


def decode_foreign(payload: Payload, registry: Registry, limits: Limits = LIMITS, expect: str | None = None) -> Any:
    """A message of someone else's topic as plain Python values: JSON, or Avro of any schema the registry has.

    `expect` names the format that must stand here, "json" or "avro"; the first byte says which one does. Numbers may
    be NaN or infinite here: only the field that is mapped must be finite. Raises as `decode` does, and wrong-format.
    """
    view = view_of(payload)
    found = _FORMAT_OF.get(int(view[0])) if len(view) else None
    if expect is not None and found not in (None, expect):
        raise BadRecord("wrong-format", f'the record is {found}, its source declares format = "{expect}"')
    if found == "json":
        return parse_json(view, limits)
    if len(view) > limits.message_bytes_max:
        raise too_large(len(view), limits)
    writer = registry.schema_of(schema_id_of(view))
    check(view, NUM_HEADER, writer.program, limits, finite=False)
    return _fastavro(view, writer, None)
