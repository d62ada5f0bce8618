"""One request for `headrace lint`: decided as a worker would, then shown as the policy sees it.

What is refused is what `streams.decide` refuses: nothing of its rules is repeated here. Only a snapshot is missing, so
what depends on its scores is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from schemas.codec import encode
from schemas.feature_spec import Feature, FeatureSpec
from schemas.records import DecisionRequest, FeatureValue
from schemas.registry import FileRegistry
from schemas.task import Project, Task, TaskTable
from streams import guardrails
from streams.decide import Asked, Decide, Situation
from streams.fallback import action_places
from streams.features import Encoded, Encoder, undeclared

TOKENS_SHOWN = 5
VALUES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """What a worker makes of one request."""

    error: str | None = None
    """``reason: detail`` of its dead letter."""
    features: list[str] = field(default_factory=list)
    """The request as the policy sees it, in words."""
    warnings: list[str] = field(default_factory=list)


class Requests:
    """Judges the requests of one project."""

    def __init__(self, project: Project) -> None:
        registry = FileRegistry()
        self._table = TaskTable(project.tasks)
        self._decide = Decide(project.namespace, self._table, lambda block: len(encode(block, registry)))

    def judge(self, request: DecisionRequest) -> Judged:
        """Decide it alone, at the moment it came in and without a snapshot."""
        task = self._table.named(request.task)
        if task is None:
            known = ", ".join(each.name for each in self._table.current)
            return Judged(f"unknown-task: no task {request.task!r} in the file, it has {known}")
        decided = self._decide.batch([Asked(request, 0, 0, 0)], Situation(now_ms=0))
        for each in decided.unjournaled:
            return Judged(f"{each.refusal.code}: {each.refusal.detail}")
        encoded = Encoder(task).encode([request])
        return Judged(None, list(_features(task, request, encoded)), list(_warnings(task, request)))


def _features(task: Task, request: DecisionRequest, encoded: Encoded) -> Iterator[str]:
    """What the policy sees, in words."""
    columns = encoded.columns
    for name, value in zip(task.context.columns(), columns.context[0].tolist(), strict=True):
        yield f"context.{name} = {value:g}"
    if len(columns.context_token_counts):
        tokens = columns.context_tokens.tolist()
        shown = ", ".join(map(str, tokens[:TOKENS_SHOWN])) + (", …" if len(tokens) > TOKENS_SHOWN else "")
        yield f"context tokens: {len(tokens)} ({shown})"
    if encoded.num_dropped:
        yield "some tokens were dropped: the texts are longer than the task's token budget"
    offered = [candidate.action_id for candidate in request.candidates or ()] or list(task.actions)
    places = [action_places(task)[each] for each in offered] if task.actions else list(range(len(offered)))
    yield f"candidates: {len(offered)}" + (f" of the catalogue's {len(task.actions)}" if task.actions else "")
    matrix = columns.actions if task.catalogue_features is None else task.catalogue_features.actions
    for action_id, place in zip(offered, places, strict=True) if request.candidates else ():
        cells = zip(task.action.columns(), matrix[place].tolist(), strict=True)
        yield f"  {action_id}: " + (", ".join(f"{name} = {value:g}" for name, value in cells) or "(id only)")
    allowed = guardrails.mask(task, [request], columns)[places]
    if not allowed.all():
        yield f"guardrails leave {int(allowed.sum())} of {len(allowed)} candidates"


def _warnings(task: Task, request: DecisionRequest) -> Iterator[str]:
    """What is accepted and may not be meant."""
    for name in undeclared(task.context, request.context):
        yield f"context feature {name!r} is not declared and not used"
    for feature in task.context.features:
        if feature.name not in request.context:
            yield f"context feature {feature.name!r} is missing: it counts as zero"
    yield from _slips("context", task.context, request.context)
    candidates = request.candidates or ()
    if task.actions:
        if any(candidate.features for candidate in candidates):
            yield "features of candidates are not used: those of the catalogue count"
        return
    names = {name for each in candidates for name in undeclared(task.action, each.features)}
    yield from (f"action feature {name!r} is not declared and not used" for name in sorted(names))
    for candidate in candidates:
        yield from _slips(f"action {candidate.action_id!r}", task.action, candidate.features)


def _slips(whose: str, spec: FeatureSpec, values: Mapping[str, FeatureValue]) -> Iterator[str]:
    """Values of another type than declared that count all the same, and categories that nobody declared."""
    for feature in spec.features:
        value = values.get(feature.name)
        what = f"{whose}: {feature.kind} {feature.name!r} is {value!r}"
        if feature.kind == "number" and isinstance(value, bool):
            yield f"{what}: it counts as {value:g}; send a number"
        elif feature.kind == "boolean" and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{what}: it counts as {str(bool(value)).lower()}; send true or false"
        elif feature.kind == "category" and feature.values:
            yield from (f"{whose}: {each}" for each in _undeclared_values(feature, value))


def _undeclared_values(feature: Feature, value: FeatureValue | None) -> Iterator[str]:
    known = frozenset(feature.values)
    named = ", ".join(feature.values[:VALUES_SHOWN]) + (", …" if len(feature.values) > VALUES_SHOWN else "")
    effect = "it is hashed like any other" if feature.is_token else "it counts as none"
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
        if item not in known:
            yield f"category {feature.name!r} is {item!r}, declared are {named}: {effect}"
