"""`headrace lint`: read a file of requests and outcomes as headrace would, and show what would be learnt from it.

Pure: lines in, findings out. Requests are decided by the worker's own code (`deploy.lint_request`); the reward is
recomputed by the audit's reading of the rules, as if every outcome came within its window.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from deploy import audit_rules
from deploy.lint_request import Requests
from schemas.codec import BadRecord, decode_outcome, decode_request
from schemas.records import DecisionRequest, Outcome
from schemas.registry import FileRegistry
from schemas.task import Project, Task

REQUEST_FIELDS = frozenset({"context", "candidates", "task", "deadline_ms", "baseline", "episode_id"})


@dataclass(slots=True)
class Line:
    """One line of the file and what headrace makes of it."""

    number: int
    kind: str
    """request or outcome."""
    identity: str = ""
    error: str | None = None
    """``reason: detail`` when it would go to the dead letters (or get a baseline answer)."""
    warnings: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    """The request as the policy sees it, in words."""
    reward: str | None = None
    """The request's reward by the file's own outcomes, in words."""


def lint(lines: Iterable[bytes], project: Project) -> list[Line]:
    """Findings for every line that is not blank, in order."""
    registry = FileRegistry()
    tasks = {task.name: task for task in project.tasks}
    judges = Requests(project)
    found: list[Line] = []
    requests: dict[str, tuple[Line, DecisionRequest]] = {}
    outcomes: dict[str, list[tuple[Line, Outcome]]] = defaultdict(list)
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if not text:
            continue
        line = Line(number, _kind(text))
        found.append(line)
        try:
            if line.kind == "request":
                request = decode_request(text, registry)
                line.identity = request.decision_id
                _judge_request(line, request, judges)
                if request.decision_id in requests:
                    first = requests[request.decision_id][0].number
                    line.warnings.append(f"decision_id stands in line {first} already: this one is a duplicate")
                else:
                    requests[request.decision_id] = (line, request)
            else:
                outcome = decode_outcome(text, registry)
                line.identity = outcome.outcome_id or ""
                outcomes[outcome.decision_id or ""].append((line, outcome))
        except BadRecord as error:
            line.error = f"{error.reason}: {error.detail}"
    _judge_outcomes(outcomes, requests, tasks)
    return found


def _kind(text: bytes) -> str:
    """A request has a context or candidates or names its task; everything else must be an outcome."""
    try:
        fields = json.loads(text)
    except ValueError:
        return "outcome" if b'"type"' in text else "request"
    return "request" if isinstance(fields, dict) and fields.keys() & REQUEST_FIELDS else "outcome"


def _judge_request(line: Line, request: DecisionRequest, judges: Requests) -> None:
    judged = judges.judge(request)
    line.error, line.features = judged.error, judged.features
    line.warnings += judged.warnings


def _judge_outcomes(
    outcomes: dict[str, list[tuple[Line, Outcome]]],
    requests: dict[str, tuple[Line, DecisionRequest]],
    tasks: dict[str, Task],
) -> None:
    """Types that nobody counts, subjects that do not match, and the reward of each request of the file."""
    counted = {kind.name for task in tasks.values() for kind in task.reward.types}
    for decision_id, told in outcomes.items():
        for line, outcome in told:
            if outcome.type not in counted:
                line.warnings.append(f"no task counts outcomes of type {outcome.type!r} ({', '.join(sorted(counted))})")
            asked = requests.get(decision_id)
            if asked is not None and asked[1].subject != outcome.subject:
                line.error = (
                    f"subject {outcome.subject!r} differs from its decision's {asked[1].subject!r} "
                    f"(line {asked[0].number}): they would never meet"
                )
    for decision_id, (line, request) in requests.items():
        task = tasks.get(request.task)
        if task is not None and line.error is None:
            mine = [outcome for each, outcome in outcomes.get(decision_id, ()) if each.error is None]
            line.reward = reward_in_words(task, mine)


def reward_in_words(task: Task, outcomes: list[Outcome]) -> str:
    """The reward that these outcomes give, each counted once per key, and how it came about."""
    seen: set[str] = set()
    values: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.outcome_id is None or outcome.outcome_id not in seen:
            values[outcome.type].append(outcome.value)
        seen |= {outcome.outcome_id} if outcome.outcome_id else set()
    reward = audit_rules.reward_of(task.reward, values)
    terms = [f"{kind.weight:g} × {kind.aggregate}({', '.join(f'{v:g}' for v in values[kind.name])})"
             for kind in task.reward.types if values.get(kind.name)]  # fmt: skip
    return f"{reward:g} = {' + '.join(terms)}" if terms else f"{reward:g}, the default: no outcome counts"
