"""Answers without a decision: what a shop hears when its request cannot be journaled.

Pure. A shop never gets silence; but a decision that nobody will learn from needs no exploration either: the baseline if
the request or the task names one, else a uniform draw by the same key as any other.

Simplification: guardrails are not asked here. Whoever has some should send a baseline: it is the shop's own choice.
With guardrails and no baseline the answer names no action rather than perhaps a forbidden one.
"""

from __future__ import annotations

from functools import lru_cache

from schemas.decision_columns import PROPENSITY_ONE
from schemas.frozen import frozen
from schemas.keys import DRAW_ACTION, draw
from schemas.records import Decision, DecisionRequest, Reason
from schemas.task import Task


@frozen
class Refusal:
    """Why a request is answered without a decision in the log."""

    reason: Reason
    code: str = ""
    """Reason of the dead letter, "" for none."""
    detail: str = ""
    """A sentence for people."""


def problem_of(request: DecisionRequest, task: Task) -> Refusal | None:
    """What is wrong with a request beside its features and candidates (those are the encoder's to check)."""
    num_offered = len(task.actions) if request.candidates is None else len(request.candidates)
    if request.slots is not None and request.slots != task.num_slots:
        return _invalid("bad-slots", f"{request.slots} slots asked, task {task.name} has {task.num_slots}")
    if request.baseline is not None and not 0 <= request.baseline < num_offered:
        return _invalid("bad-baseline", f"baseline {request.baseline} of {num_offered} candidates")
    return None


def _invalid(code: str, detail: str) -> Refusal:
    return Refusal(Reason.INVALID, code, detail)


@lru_cache(maxsize=1024)
def action_places(task: Task) -> dict[str, int]:
    """Place of each action id in the task's declared catalogue."""
    return {action_id: place for place, action_id in enumerate(task.actions)}


def baseline_of(request: DecisionRequest, task: Task) -> int:
    """Index of the baseline among the row's candidates, -1 for none: the request's own, else the task's.

    With a declared catalogue the row's candidates are the whole catalogue, whatever part of it the request offers.
    """
    offered = request.candidates
    if request.baseline is not None:
        if offered is None or not task.actions:
            return request.baseline
        return action_places(task)[offered[request.baseline].action_id]
    if task.baseline is None:
        return -1
    if task.actions:
        return action_places(task).get(task.baseline, -1)
    return next((k for k, candidate in enumerate(offered or ()) if candidate.action_id == task.baseline), -1)


def fallback(request: DecisionRequest, task: Task | None, reason: Reason, draw_key: bytes, now_ms: int) -> Decision:
    """The answer: baseline (propensity 1), else uniform, else no action at all when there is nothing to choose from."""
    offered = [candidate.action_id for candidate in request.candidates or ()]
    if not offered and task is not None:
        offered = list(task.actions)
    chosen, propensity = -1, 1.0
    if request.baseline is not None and 0 <= request.baseline < len(offered):
        chosen = request.baseline
    elif task is not None and task.baseline in offered:
        chosen = offered.index(task.baseline)
    elif offered and not (task is not None and task.guardrails):
        number = draw(draw_key, DRAW_ACTION, 0, request.task, request.decision_id)
        chosen, propensity = number * len(offered) // PROPENSITY_ONE, 1.0 / len(offered)
    return Decision(
        decision_id=request.decision_id,
        task=request.task,
        subject=request.subject,
        actions=[offered[chosen]] if chosen >= 0 else [],
        propensities=[propensity] if chosen >= 0 else [],
        snapshot_version=0,
        reason=reason.label,
        time_ms=now_ms,
    )
