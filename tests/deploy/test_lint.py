"""`headrace lint`: the line is named, and what would be learnt is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.entry import run
from deploy.lint import lint
from schemas.task import parse

PROJECT = """
[namespace]
name = "n"
partitions = 2
[[tasks]]
name = "offer"
[tasks.context]
price = { kind = "number", scale = 10.0 }
text = { kind = "text" }
[tasks.action]
hot = { kind = "boolean" }
[tasks.reward]
window = "10s"
min = -5.0
max = 5.0
[tasks.reward.outcomes.click]
aggregate = "max"
[tasks.reward.outcomes.order]
aggregate = "sum"
weight = 2.0
"""
REQUEST: dict[str, Any] = {
    "decision_id": "d1",
    "task": "offer",
    "subject": "s",
    "context": {"price": 20, "text": "red shoes"},
    "candidates": [{"action_id": "a", "features": {"hot": True}}, {"action_id": "b", "features": {}}],
}
CLICK = {"decision_id": "d1", "subject": "s", "type": "click"}


CATALOGUE = """
[namespace]
name = "n"
partitions = 2
[[tasks]]
name = "route"
actions = ["card", { id = "refund", features = { weight = 2.0 } }, "other"]
baseline = "refund"
[tasks.context]
x = { kind = "number" }
member = { kind = "boolean" }
country = { kind = "category", values = ["de", "fr"] }
[tasks.action]
weight = { kind = "number" }
[tasks.reward]
window = "10s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""
STOCK = PROJECT.replace(
    "[tasks.reward]", '[[tasks.guardrails]]\nname = "s"\nallow_if = "action.stock > 0"\n[tasks.reward]'
)
CONTEXT = {"x": 1, "member": True, "country": "de"}
ROUTE: dict[str, Any] = {"decision_id": "d1", "task": "route", "subject": "s", "context": CONTEXT}


def lines(*records: Any) -> list[bytes]:
    return [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]


def test_features_are_shown_as_encoded_and_the_reward_as_computed() -> None:
    order = {"decision_id": "d1", "subject": "s", "type": "order", "value": 1.5}

    request, *_ = lint(lines(REQUEST, CLICK, order, order), parse(PROJECT))

    assert request.error is None
    assert "context.price = 2" in request.features
    assert any(each.startswith("context tokens: ") for each in request.features)
    assert "  a: hot = 1" in request.features
    assert "  b: hot = 0" in request.features
    assert request.reward == "5 = 1 × max(1) + 2 × sum(1.5, 1.5)"


def test_an_outcome_with_an_id_counts_once() -> None:
    twice = {"outcome_id": "o", "decision_id": "d1", "subject": "s", "type": "order", "value": 1.0}

    request, *_ = lint(lines(REQUEST, twice, twice), parse(PROJECT))

    assert request.reward == "2 = 2 × sum(1)"


def test_without_outcomes_the_default_reward_is_shown() -> None:
    assert "the default" in (lint(lines(REQUEST), parse(PROJECT))[0].reward or "")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"decision_id": "d", "context": {', "bad-json"),
        ({**REQUEST, "subject": ""}, "missing-field"),
        ({**REQUEST, "task": "offers"}, "unknown-task"),
        ({**REQUEST, "deadline": 5}, "unknown-field"),
        ({**REQUEST, "context": {"price": "dear"}}, "wrong-type"),
        ({**REQUEST, "candidates": []}, "empty-candidates"),
        (b'{"subject": "s", "type": "click", "value": NaN}', "bad-json"),
        ({"type": "click"}, "missing-field"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(bad: Any, reason: str) -> None:
    found = lint(lines(REQUEST, b"", bad), parse(PROJECT))

    assert [each.number for each in found] == [1, 3]
    assert found[0].error is None
    assert (found[1].error or "").startswith(reason), found[1].error


def test_what_would_silently_not_be_learnt_is_a_warning() -> None:
    strange = {**REQUEST, "context": {"prize": 3.0}}
    unknown = {"decision_id": "d1", "subject": "s", "type": "view"}

    request, again, outcome = lint(lines(strange, strange, unknown), parse(PROJECT))

    assert any("'prize' is not declared" in each for each in request.warnings)
    assert any("'price' is missing" in each for each in request.warnings)
    assert any("line 1 already" in each for each in again.warnings)
    assert any("no task counts outcomes of type 'view'" in each for each in outcome.warnings)


def test_an_outcome_of_another_subject_never_meets_its_decision() -> None:
    _, outcome = lint(lines(REQUEST, {**CLICK, "subject": "someone else"}), parse(PROJECT))

    assert "differs from its decision's 's' (line 1)" in (outcome.error or "")


def test_the_command_names_lines_and_exits_with_1_when_one_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "headrace.toml").write_text(PROJECT)
    events = tmp_path / "events.jsonl"
    arguments = ["lint", str(events), "--project", str(tmp_path / "headrace.toml")]

    events.write_bytes(b"\n".join(lines(REQUEST, CLICK)))
    assert run(arguments) == 0
    assert "reward 1 = 1 × max(1)" in capsys.readouterr().out

    events.write_bytes(b"\n".join(lines(REQUEST, b"{broken")))
    assert run(arguments) == 1
    assert "line 2: request: bad-json" in capsys.readouterr().out


def test_a_part_of_the_catalogue_is_shown_with_the_catalogues_own_features() -> None:
    offered = {**ROUTE, "candidates": [{"action_id": "refund"}, {"action_id": "other"}]}

    part, whole = lint(lines(offered, {**ROUTE, "decision_id": "d2"}), parse(CATALOGUE))

    assert (part.error, part.warnings) == (None, [])
    assert part.features[-3:] == ["candidates: 2 of the catalogue's 3", "  refund: weight = 2", "  other: weight = 0"]
    assert whole.features[-1] == "candidates: 3 of the catalogue's 3"


@pytest.mark.parametrize(
    ("project", "request_", "reason"),
    [
        (CATALOGUE, {**ROUTE, "baseline": 7}, "bad-baseline: baseline 7 of 3"),
        (CATALOGUE, {**ROUTE, "slots": 3}, "bad-slots: 3 slots asked"),
        (CATALOGUE, {**ROUTE, "candidates": [{"action_id": "crad"}]}, "unknown-action: action 'crad'"),
        (CATALOGUE, {**ROUTE, "candidates": [{"action_id": "card"}] * 2}, "duplicate-action"),
        (STOCK, REQUEST, "all-masked: the guardrails leave no candidate"),
        (
            PROJECT,
            {**REQUEST, "candidates": [{"action_id": f"{i:0250}", "features": {"hot": True}} for i in range(60_000)]},
            "too-",
        ),
    ],
)
def test_what_a_worker_refuses_is_refused(project: str, request_: dict[str, Any], reason: str) -> None:
    (found,) = lint(lines(request_), parse(project))

    assert (found.error or "").startswith(reason), found.error


def test_a_guardrail_that_leaves_some_is_told() -> None:
    stocked = [{"action_id": "a", "features": {"stock": 1}}, {"action_id": "b", "features": {"stock": 0}}]

    (found,) = lint(lines({**REQUEST, "candidates": stocked}), parse(STOCK))

    assert found.error is None
    assert found.features[-1] == "guardrails leave 1 of 2 candidates"


@pytest.mark.parametrize(
    ("context", "warning"),
    [
        ({"country": "at"}, "context: category 'country' is 'at', declared are de, fr: it counts as none"),
        ({"country": ["de", "it"]}, "context: category 'country' is 'it', declared are de, fr: it counts as none"),
        ({"x": True}, "context: number 'x' is True: it counts as 1; send a number"),
        ({"member": 1}, "context: boolean 'member' is 1.0: it counts as true; send true or false"),
    ],
)
def test_a_slip_that_a_worker_accepts_is_a_warning(context: dict[str, Any], warning: str) -> None:
    (found,) = lint(lines({**ROUTE, "context": {**CONTEXT, **context}}), parse(CATALOGUE))

    assert found.error is None
    assert found.warnings == [warning]
