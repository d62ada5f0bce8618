"""Compatibility: what makes two schemas the same, and the list of every version ever released.

A released version never changes: readers of old topics must find the writer's schema. `avro/ids.json` lists each
version with its id in the file registry, and the fingerprint pins it; documentation may still be improved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import orjson

NAMESPACE = "headrace"


def without_docs(schema: Any) -> Any:
    """The schema without what readers do not need: its documentation."""
    if isinstance(schema, list):
        return [without_docs(item) for item in schema]
    if isinstance(schema, dict):
        return {key: without_docs(value) for key, value in schema.items() if key != "doc"}
    return schema


def fingerprint(schema: Any) -> str:
    """sha256 of a parsed schema in canonical JSON, documentation left out.

    Not Avro's parsing canonical form: that drops defaults, and a changed default changes what old messages mean.
    """
    return hashlib.sha256(orjson.dumps(without_docs(schema), option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Released:
    """One released version of one schema."""

    id: int
    """Id in the file registry."""
    name: str
    """Name of the record, without namespace."""
    version: int
    """From 1."""
    subject: str
    """Subject in a registry: the full record name, because several records share a topic."""
    fingerprint: str
    """`fingerprint` of the schema as released."""
    text: str
    """The schema file."""
    schema: Any
    """The parsed schema file."""


@lru_cache(maxsize=1)
def released() -> tuple[Released, ...]:
    """Every version of `avro/ids.json`, in the order of release."""
    folder = files("schemas") / "avro"
    versions = []
    for entry in orjson.loads((folder / "ids.json").read_bytes()):
        text = (folder / entry["file"]).read_text("utf-8")
        versions.append(
            Released(
                id=entry["id"],
                name=entry["name"],
                version=entry["version"],
                subject=entry["subject"],
                fingerprint=entry["fingerprint"],
                text=text,
                schema=orjson.loads(text),
            )
        )
    return tuple(versions)


@lru_cache(maxsize=1)
def current() -> dict[str, Released]:
    """The newest version of each schema, by name: what is written, and what everything is read as."""
    newest: dict[str, Released] = {}
    for version in released():
        if version.name not in newest or version.version > newest[version.name].version:
            newest[version.name] = version
    return newest
