from __future__ import annotations

import pytest

from schemas import task as tasks
from schemas.records import Candidate, DecisionRequest, Vector
from schemas.task import Task
from streams.features import Encoder
from streams.guardrails import mask

REWARD = """
[tasks.reward]
window = "1h"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""


def task_with(*rules: str, catalogue: str = "") -> Task:
    listed = ", ".join(f'{{ name = "g{n}", allow_if = """{rule}""" }}' for n, rule in enumerate(rules))
    return tasks.parse(
        f'[[tasks]]\nname = "t"\nguardrails = [{listed}]\n{catalogue}\n'
        f'[tasks.action]\nprice = {{ kind = "number" }}\n{REWARD}'
    ).task("t")


def allowed(task: Task, *requests: DecisionRequest) -> list[bool]:
    return mask(task, requests, Encoder(task).encode(requests).columns).tolist()


def request(*candidates: Candidate, **context: object) -> DecisionRequest:
    return DecisionRequest("d", "t", "s-1", context, list(candidates) or None)  # type: ignore[arg-type]


A = Candidate("a", {"price": 5.0, "stock": 3.0, "fresh": True, "tags": ["x"]})
B = Candidate("b", {"price": 50.0, "stock": 0.0, "fresh": False})
C = Candidate("c", {})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("action.stock > 0", [True, False, False]),
        ("action.stock >= 0", [True, True, False]),
        ("action.stock != 3", [False, True, False]),
        ("action.fresh", [True, False, False]),
        ("action.price <= context.budget", [True, False, False]),
        ("context.budget > 1e1", [False, False, False]),
        ("action.price > context.nothing", [False, False, False]),
        ("action.tags > 0", [False, False, False]),
        ("action_id != 'a'", [False, True, True]),
        ("subject == 's-1' && action.stock", [False, False, False]),
        ("action.stock > `0` || action_id == 'c'", [True, False, True]),
        ("contains(action.tags || `[]`, 'x')", [True, False, False]),
        ("length(action.tags) > `0`", [True, False, False]),
        ("context.embedding[0] > `0.5` && action.price < `9`", [True, False, False]),
    ],
)
def test_a_guardrail_allows_what_its_condition_yields_true_for(rule: str, expected: list[bool]) -> None:
    assert allowed(task_with(rule), request(A, B, C, budget=10.0, embedding=Vector.of(1.0))) == expected


@pytest.mark.parametrize(
    "rule", ["contains(subject, context.n)", "context.list[0:1:0] == `1`", "ceil(context.n) > `1`"]
)
def test_what_python_cannot_evaluate_is_not_allowed(rule: str) -> None:
    assert allowed(task_with(rule), request(A, B, n=float("inf"), list=["x"])) == [False, False]


def test_all_guardrails_must_be_met() -> None:
    task = task_with("action.stock >= 0", "action.price > 10")
    assert allowed(task, request(A, B, C)) == [False, True, False]


def test_verdicts_stand_row_after_row() -> None:
    assert allowed(task_with("action.stock > 0"), request(A, B), request(C), request(B, A)) == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_without_guardrails_everything_is_allowed() -> None:
    assert allowed(task_with(), request(A, B, C)) == [True, True, True]


CATALOGUE = 'actions = [{ id = "a", features = { price = 5, stock = 2 } }, { id = "b", features = { price = 9 } }]'


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("action.stock > 0", [True, False, True, False]),
        ("action.price < context.budget", [True, False, True, True]),
        ("action_id == context.only", [False, False, False, True]),
    ],
)
def test_a_declared_catalogue_is_judged_by_its_declared_features(rule: str, expected: list[bool]) -> None:
    task = task_with(rule, "action.stock > `0` || `true`", catalogue=CATALOGUE)  # knows stock, allows everything
    assert allowed(task, request(budget=6.0), request(budget=10.0, only="b")) == expected
