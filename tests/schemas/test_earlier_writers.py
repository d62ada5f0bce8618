"""What an earlier version wrote is read by the reader of today, value by value: logs outlive versions."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import fastavro
import orjson
import pytest
from confluent_kafka.schema_registry import Schema

from schemas import codec
from schemas.compatibility import Released, current, released
from schemas.records import ChainPosition, DefinitionPosition, Progress, Resume, SourcePosition
from schemas.registry import ConfluentRegistry, FileRegistry
from tests.schemas.messages import same

EARLIER = [version for version in released() if version.version < current()[version.name].version]
PROGRESS_1: dict[str, Any] = {
    "partition": 3,
    "time_ms": 1_700_000_000_123,
    "journal_offset": 1 << 40,
    "transitions_offset": 77,
    "chains": [
        {"fingerprint": b"a" * 16, "kind": 0, "hwm": (9 << 16) | 4},
        {"fingerprint": b"b" * 16, "kind": 1, "hwm": -1},
    ],
    "resume": {
        "offset": 1 << 39,
        "time_ms": -(2**62),
        "sources": [{"topic": "shop.größe", "partition": 2, "offset": 1_234}],
    },
    "decision_counts": {"joined": 5, "open": 0},
    "outcome_counts": {"used": 6, "copies": 2},
}
MEANT_1 = Progress(
    partition=3,
    time_ms=1_700_000_000_123,
    journal_offset=1 << 40,
    transitions_offset=77,
    chains=(ChainPosition(b"a" * 16, 0, (9 << 16) | 4), ChainPosition(b"b" * 16, 1, -1)),
    resume=Resume(1 << 39, -(2**62), (SourcePosition("shop.größe", 2, 1_234),), definitions=None),
    decision_counts={"joined": 5, "open": 0},
    outcome_counts={"used": 6, "copies": 2},
    gaps=(),
)
IN_FORCE = {"definitions": [{"fingerprint": b"a" * 16, "time_ms": 1_700_000_000_000}]}
WRITTEN: dict[tuple[str, int], tuple[dict[str, Any], Any]] = {
    ("Progress", 1): (PROGRESS_1, MEANT_1),
    ("Progress", 2): (
        {**PROGRESS_1, "resume": {**PROGRESS_1["resume"], **IN_FORCE}},
        replace(
            MEANT_1,
            resume=replace(MEANT_1.resume, definitions=(DefinitionPosition(b"a" * 16, 1_700_000_000_000),)),
        ),
    ),
}
"""By name and version: what its writer wrote, and what it means today; who releases a version adds the one before."""


def message_of(schema_id: int, version: Released, fields: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(orjson.loads(version.text), named_schemas={}), fields)
    return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()


@pytest.mark.parametrize("version", EARLIER, ids=lambda version: f"{version.name}-{version.version}")
def test_what_an_earlier_version_wrote_is_read_as_it_was_meant(version: Released) -> None:
    assert (version.name, version.version) in WRITTEN, "an earlier version without a message of its time: add one"
    fields, meant = WRITTEN[version.name, version.version]
    registry = ConfluentRegistry("mock://registry")
    theirs = registry.client.register_schema(version.subject, Schema(version.text, "AVRO"))
    for known, schema_id in ((FileRegistry(), version.id), (registry, theirs)):
        message = message_of(schema_id, version, fields)

        found = codec.decode(message, known, expect=type(meant))

        assert same(found, meant)
        again = codec.encode(found, FileRegistry())
        assert int.from_bytes(again[1:5], "big") == current()[version.name].id, "written on as the version of today"
        assert same(codec.decode(again, FileRegistry()), meant)


def test_a_message_of_its_time_stands_here_for_every_earlier_version_and_no_other() -> None:
    assert EARLIER
    assert WRITTEN.keys() == {(version.name, version.version) for version in EARLIER}
