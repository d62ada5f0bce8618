"""The keys of headrace.toml in the reference: all of them, each with its meaning."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from deploy import reference, reference_file
from deploy.cli.entry import _sentence
from schemas.errors import UserError
from schemas.file_values import Table
from schemas.task import parse
from schemas.task_file import ProjectTable

KEYS = [(header, *row) for header, _, rows in reference_file.tables() for row in rows]


def tables_within(annotation: Any) -> set[type[Table]]:
    """Every table that a type is made of, or that one of its tables has."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        parts = [field.annotation for field in annotation.model_fields.values()]
        return {annotation}.union(*map(tables_within, parts))
    return set[type[Table]]().union(*map(tables_within, get_args(annotation)))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]} {key[1]}")
def test_every_key_has_a_type_a_default_and_a_meaning(key: tuple[str, ...]) -> None:
    _, name, kind, default, _, meaning = key

    assert kind, name
    assert default, name
    assert meaning.endswith("."), f"{name}: write what it means as a docstring under it"


def test_every_table_of_the_file_has_its_section() -> None:
    listed = {table for _, table in reference_file.SECTIONS}

    assert tables_within(ProjectTable) - {ProjectTable} == listed


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("[namespace]", ("`tick`", "duration", "`250ms`", "at least 10ms, at most 10s")),
        ("[namespace]", ("`partitions`", "whole number", "`12`", "at least 1, at most 4096")),
        ("[[tasks]]", ("`reply`", '"journal-first" or "immediate"', '`"journal-first"`', "")),
        ("[tasks.reward]", ("`outcomes`", "table by name", "required", "at least 1 entry, at most 64 entries")),
        ("[[sources]]", ("`value`", '`{ path = "…" }` or number', "`1.0`", "")),
        ("[[sources]]", ("`where`", "jmespath", "none", "")),
    ],
)
def test_type_default_and_range_are_those_that_the_file_is_held_to(header: str, row: tuple[str, ...]) -> None:
    assert (header, *row) in [key[:5] for key in KEYS]


def test_the_page_that_an_error_names_has_the_keys() -> None:
    with pytest.raises(UserError) as refused:
        parse("[namespace]\npartitions = 0")

    assert "docs/reference.md" in _sentence(refused.value.remedy)
    assert "| `partitions` |" in reference.page()
