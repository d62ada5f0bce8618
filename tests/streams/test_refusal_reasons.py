"""The catalogue of reasons is whole: whatever code the source can put into a dead letter stands in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from schemas.varints import REASONS
from streams.policy import REFUSALS
from streams.refusal_reasons import CATALOGUE, OF_REQUESTS
from streams.transport_batch import _UNREAD

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"BadRecord": 0, "SideError": 0, "_invalid": 0, "BadFeatures": 1, "Refusal": 1, "refused": 3, "letter_of": 3}
"""Where a call of that name has the reason."""


def calls() -> Iterator[tuple[str, ast.expr]]:
    """(where, expression of the reason) of every refusal that the source constructs."""
    for folder in ("schemas", "streams"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                place = PLACES.get(name, len(node.args))
                if place < len(node.args):
                    yield f"{folder}/{path.name}:{node.lineno}", node.args[place]


def codes() -> Iterator[tuple[str, str]]:
    """(where, code) of those that are written where they are used."""
    for where, reason in calls():
        for node in ast.walk(reason):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield where, node.value


def test_every_reason_in_the_source_is_in_the_catalogue() -> None:
    found = {code: where for where, code in codes()}

    assert len(found) > 15
    assert {code: where for code, where in found.items() if code not in CATALOGUE} == {}
    assert {reason for reason, _ in _UNREAD.values()} <= CATALOGUE.keys()


def test_every_reason_of_the_catalogue_can_come_about() -> None:
    assert set(OF_REQUESTS) <= {code for _, code in codes()}
    assert not set(OF_REQUESTS) & {code for code, _ in REASONS}


def test_a_reason_means_something_and_says_it_in_one_line() -> None:
    for code, meaning in {**CATALOGUE, **REFUSALS}.items():
        assert code.replace("-", "").isalnum(), code
        assert meaning, code
        assert "\n" not in meaning
