"""Released schemas never change, and every reader reads every earlier writer."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from schemas.blocks import DecisionBlock, OutcomeBlock, TransitionBlock
from schemas.compatibility import current, fingerprint, released
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.frozen import names_of
from schemas.record_fields import RECORD_TYPES

VERSIONS = [pytest.param(version, id=f"{version.name}-{version.version}") for version in released()]
RELEASED_1 = {
    "TaskRecord": "be215f6b",
    "DecisionRequest": "4b8849fd",
    "Decision": "250178b5",
    "Outcome": "82992222",
    "DecisionBlock": "2a6c1ff8",
    "OutcomeBlock": "030f1c51",
    "Tick": "7ef3b7b3",
    "TransitionBlock": "ee15d45a",
    "Progress": "fffe2d14",
    "SnapshotManifest": "df1d32b6",
    "DeadLetter": "84323e3c",
}
"""First eight digits of the first versions, written down a second time: whoever edits a schema and `ids.json`
together still meets this table."""


def reads(reader: Any, writer: Any) -> bool:
    checked = ReaderWriterCompatibilityChecker().get_compatibility(
        parse(orjson.dumps(reader).decode()), parse(orjson.dumps(writer).decode())
    )
    return bool(checked.compatibility is SchemaCompatibilityType.compatible)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_schema_is_as_it_was_released(version: Any) -> None:
    assert fingerprint(version.schema) == version.fingerprint, (
        f"{version.name}.avsc changed: keep the released file under another name, list it in ids.json as it is, "
        "and add the new version with the next id"
    )


def test_the_first_versions_are_the_first_versions() -> None:
    assert {v.name: v.fingerprint[:8] for v in released() if v.version == 1} == RELEASED_1


def test_ids_and_versions_are_used_once() -> None:
    ids = [version.id for version in released()]
    assert len(set(ids)) == len(ids)
    for name in current():
        versions = [version.version for version in released() if version.name == name]
        assert versions == list(range(1, len(versions) + 1))


@pytest.mark.parametrize("writer", VERSIONS)
def test_the_reader_of_today_reads_every_earlier_writer(writer: Any) -> None:
    assert reads(current()[writer.name].schema, writer.schema)


@pytest.mark.parametrize("reader", VERSIONS)
def test_every_earlier_reader_reads_the_writer_of_today(reader: Any) -> None:
    assert reads(reader.schema, current()[reader.name].schema), "workers are replaced one by one"


def without(schema: Any, name: str) -> Any:
    changed = copy.deepcopy(schema)
    changed["fields"] = [field for field in changed["fields"] if field["name"] != name]
    return changed


def test_the_checker_notices_what_would_break_readers() -> None:
    schema = current()["TransitionBlock"].schema
    assert not reads(schema, without(schema, "positions"))
    retyped = copy.deepcopy(schema)
    next(field for field in retyped["fields"] if field["name"] == "prev")["type"] = "string"
    assert not reads(schema, retyped)


def documented(schema: Any) -> list[str]:
    """Names of fields without documentation, at any depth."""
    if isinstance(schema, list):
        return [name for item in schema for name in documented(item)]
    if not isinstance(schema, dict):
        return []
    missing = [field["name"] for field in schema.get("fields", ()) if not field.get("doc")]
    return missing + [name for value in schema.values() for name in documented(value)]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_is_documented(version: Any) -> None:
    assert documented(version.schema) == []
    assert version.schema["doc"]


def test_schemas_and_dataclasses_have_the_same_fields() -> None:
    columns = {*names_of(DecisionColumns), *names_of(FeatureColumns)} - {"features"}
    shape = {"num_rows", "num_slots", "context_width", "action_width"}
    for name, kind in RECORD_TYPES.items():
        assert {field["name"] for field in current()[name].schema["fields"]} == {*kind.__slots__}
    for kind in (DecisionBlock, TransitionBlock):
        wanted = ({*kind.__slots__} - {"columns"}) | columns | shape
        assert {field["name"] for field in current()[kind.__name__].schema["fields"]} == wanted
    names = {field["name"] for field in current()["OutcomeBlock"].schema["fields"]}
    assert names == {*OutcomeBlock.__slots__, "num_rows"}


@pytest.mark.parametrize("name", ["DecisionBlock", "TransitionBlock", "OutcomeBlock"])
def test_blocks_hold_numbers_before_strings(name: str) -> None:
    kinds = [field["type"]["items"] for field in current()[name].schema["fields"] if isinstance(field["type"], dict)
             and field["type"]["type"] == "array"]  # fmt: skip
    order = {"float": 0, "double": 0, "int": 1, "long": 1, "string": 2}
    assert [order[kind] for kind in kinds] == sorted(order[kind] for kind in kinds)
