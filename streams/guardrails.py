"""Guardrails: which candidates may be chosen at all, before any probability is given out.

A guardrail is a condition ``allow_if`` over what the shop sent, not over encoded columns: a comparison
(`schemas.comparison`), or a jmespath over ``{context, action, action_id, subject}`` that must yield true. Features
that only guardrails need, such as stock, do not have to be declared: the policy never sees them.

What cannot be judged is not allowed: a missing feature, text compared with a number, a jmespath that fails.

A row may come out with no candidate left. Then no propensity exists: `streams.decide` answers with the fallback and
the reason "all-masked".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jmespath
import numpy as np
import numpy.typing as npt

from schemas.comparison import Comparison, Operand, parse_comparison
from schemas.decision_columns import FeatureColumns
from schemas.expressions import FAILURES
from schemas.records import DecisionRequest, Vector
from schemas.task import Guardrail, Task

Mask = npt.NDArray[np.bool_]
Named = Mapping[str, Any]
Judge = Callable[[DecisionRequest, str, Named], bool]
"""(request, action id, action features) → whether the candidate may be chosen."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def mask(task: Task, requests: Sequence[DecisionRequest], features: FeatureColumns) -> Mask:
    """(M,) whether each candidate of each request meets all guardrails of the task, row after row.

    `features` are the requests encoded, for the number of candidates; a row may have none left.
    """
    allowed = np.ones(int(features.num_candidates.sum()), np.bool_)
    for guardrail in task.guardrails:
        allowed &= _one(task, guardrail, requests)
    return allowed


def _one(task: Task, guardrail: Guardrail, requests: Sequence[DecisionRequest]) -> Mask:
    if not task.actions:
        judge = _judge(guardrail.allow_if)
        return np.array(
            [judge(request, c.action_id, c.features) for request in requests for c in request.candidates or ()],
            np.bool_,
        )
    if "context" not in guardrail.allow_if and "subject" not in guardrail.allow_if:
        return np.tile(_of_catalogue(task, guardrail.allow_if), len(requests))
    judge = _judge(guardrail.allow_if)
    actions = list(zip(task.actions, task.action_values, strict=True))
    return np.array([judge(request, *action) for request in requests for action in actions], np.bool_)


@lru_cache(maxsize=1024)
def _of_catalogue(task: Task, allow_if: str) -> Mask:
    """(K,) verdict on a declared catalogue when the request has no say in it."""
    judge = _judge(allow_if)
    nobody = DecisionRequest("", task.name, "")
    return np.array([judge(nobody, *action) for action in zip(task.actions, task.action_values, strict=True)], np.bool_)


@lru_cache(maxsize=1024)
def _judge(allow_if: str) -> Judge:
    comparison = parse_comparison(allow_if)
    return _by_comparison(comparison) if comparison is not None else _by_expression(allow_if)


def _by_comparison(comparison: Comparison) -> Judge:
    left, right = _reader(comparison.left), _reader(comparison.right)
    if not comparison.operator:
        return lambda request, _, action: left(request, action) is True
    compare = _OPERATORS[comparison.operator]

    def judge(request: DecisionRequest, _: str, action: Named) -> bool:
        low, high = left(request, action), right(request, action)
        return isinstance(low, int | float) and isinstance(high, int | float) and compare(low, high)

    return judge


def _reader(operand: Operand | float) -> Callable[[DecisionRequest, Named], Any]:
    if isinstance(operand, float):
        return lambda _request, _action: operand
    name = operand.name
    if operand.side == "context":
        return lambda request, _action: request.context.get(name)
    return lambda _request, action: action.get(name)


def _by_expression(text: str) -> Judge:
    expression = jmespath.compile(text)

    def judge(request: DecisionRequest, action_id: str, action: Named) -> bool:
        document = {
            "context": _plain(request.context),
            "action": _plain(action),
            "action_id": action_id,
            "subject": request.subject,
        }
        try:
            return expression.search(document) is True
        except FAILURES:
            return False

    return judge


def _plain(features: Named) -> Named:
    return {name: v.values.tolist() if isinstance(v, Vector) else v for name, v in features.items()}
