"""Definitions that no process can use, as an older version may have written them: refused, once, and the rest goes on.

The `tasks` topic is compacted: a record that ended its readers would end them for ever.
"""

from __future__ import annotations

import json
import logging

import pytest

from learner.definitions import Definitions
from schemas.codec import encode
from schemas.records import TaskRecord
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import Project, canonical_json, fingerprint_of, parse
from streams.tasks import TaskFollower
from tests.learner.test_registry_away import message

REGISTRY = FileRegistry()
SETTINGS = CommonSettings(bootstrap="127.0.0.1:1", namespace="unit")
PROJECT = parse("""
[[tasks]]
name = "route"
actions = ["a", "b"]
guardrails = [{ name = "g", allow_if = "subject == 'x'" }]
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
[[sources]]
topic = "orders"
subject = { path = "id" }
type = "order"
""")
TOO_DEEP = ["(" * 3000 + "a" + ")" * 3000, "!" * 900 + "a", "(" * 200 + "a" + ")" * 200, "a" + "[0]" * 400]


def refused(project: Project, expression: str) -> list[TaskRecord]:
    """The task and the source of a project with another expression in them."""
    task = json.loads(project.tasks[0].canonical)
    task["guardrails"][0]["allow_if"] = expression
    source = json.loads(project.sources[0].canonical)
    source["subject"]["path"] = expression
    written = [("route", "task", canonical_json(task)), ("orders", "source", canonical_json(source))]
    return [TaskRecord(fingerprint_of(text), name, kind, text) for name, kind, text in written]


@pytest.mark.parametrize("expression", TOO_DEEP, ids=lambda text: text[:3])
def test_an_expression_that_nobody_can_read_ends_no_follower(expression: str, caplog: pytest.LogCaptureFixture) -> None:
    follower = TaskFollower(SETTINGS, REGISTRY)
    written = [*refused(PROJECT, expression), *PROJECT.records()]
    with caplog.at_level(logging.ERROR):
        follower._records.offer([message(encode(record, REGISTRY), k) for k, record in enumerate(written)])
    assert follower.changes == 3
    assert (follower.table.named("route"), follower.sources) == (PROJECT.tasks[0], PROJECT.sources)
    assert [(letter.reason, letter.offset) for letter in follower.untold] == [
        ("bad-definition", 0),
        ("bad-definition", 1),
    ]
    assert [record.getMessage().count("expected a jmespath expression") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("expression", TOO_DEEP, ids=lambda text: text[:3])
def test_an_expression_that_nobody_can_read_ends_no_learner(expression: str, caplog: pytest.LogCaptureFixture) -> None:
    definitions = Definitions(SETTINGS, REGISTRY)
    bad, task = refused(PROJECT, expression)[0], PROJECT.tasks[0]
    written = [bad, PROJECT.namespace.record(), task.record()]
    with caplog.at_level(logging.ERROR):
        definitions._records.offer([message(encode(record, REGISTRY), k) for k, record in enumerate(written)])
    found = definitions.find(task.fingerprint)
    assert found is not None
    assert (found.task, definitions.find(bad.fingerprint)) == (task, None)
    assert [record.getMessage().count("expected a jmespath expression") for record in caplog.records] == [1]


def test_a_definition_of_many_brackets_ends_no_follower() -> None:
    follower = TaskFollower(SETTINGS, REGISTRY)
    written = [
        TaskRecord(bytes(16), "route", "task", f'{{"name":{"[" * depth}{"]" * depth}}}')
        for depth in range(20, 1200, 20)
    ]

    def at_depth(depth: int) -> None:
        if depth:
            return at_depth(depth - 1)
        follower._records.offer([message(encode(record, REGISTRY), k) for k, record in enumerate(written)])
        return None

    at_depth(300)
    assert {letter.reason for letter in follower.untold} == {"bad-definition"}
