"""Requests with named features → the columns that a policy scores, the journal keeps and the learner learns from.

Encoded once, here; logged as encoded, learnt as logged (architecture §6). The arithmetic stands in
`schemas.encoding` and `schemas.text`; this file knows requests, candidates and the declared catalogue.

A bad request is left out of the columns and reported; it cannot spoil its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.arrays import I64, empty
from schemas.decision_columns import FeatureColumns
from schemas.encoding import SideColumns, SideEncoder, Values
from schemas.feature_spec import FeatureSpec
from schemas.frozen import frozen
from schemas.hashing import action_keys
from schemas.records import Candidate, DecisionRequest
from schemas.task import NUM_CANDIDATES_MAX, Task

_NO_KEYS = empty(np.uint64)


@frozen
class BadFeatures:
    """Why one request of the batch cannot be encoded."""

    index: int
    """Place in the batch."""
    reason: str
    """wrong-type, wrong-size, not-finite, empty-candidates, too-many-candidates, duplicate-action, unknown-action."""
    detail: str
    """What was expected, what came."""


@frozen
class Encoded:
    """A batch of requests, encoded."""

    columns: FeatureColumns
    """One row per good request."""
    rows: I64
    """(N,) place in the batch of each row; rising."""
    errors: tuple[BadFeatures, ...]
    """The other requests, in order."""
    num_cut: int
    """Texts cut: longer than `schemas.text.LENGTH_MAX` characters, or with more marks on a letter than are read."""
    num_dropped: int
    """Contexts and candidates that had more tokens than their side allows."""


class Encoder:
    """Encodes requests of one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._context = SideEncoder(task.context)
        self._action = SideEncoder(task.action)
        self._ids = frozenset(task.actions)
        self._no_actions = _no_actions(task.action)

    def encode(self, requests: Sequence[DecisionRequest]) -> Encoded:
        """Encode a micro-batch; never raises for what a user sent."""
        errors: dict[int, BadFeatures] = {}
        for index, request in enumerate(requests):
            error = self._refusal(index, request.candidates)
            if error is not None:
                errors[index] = error
        good = [index for index in range(len(requests)) if index not in errors] if errors else range(len(requests))
        context, actions = self._sides([requests[index] for index in good], good, errors)
        if len(errors) > len(requests) - len(good):  # bad values: rare, so encode again without those requests
            good = [index for index in good if index not in errors]
            context, actions = self._sides([requests[index] for index in good], good, errors)
        return Encoded(
            columns=self._columns([requests[index] for index in good], context, actions),
            rows=np.array(good, np.int64) if errors else np.arange(len(good)),
            errors=tuple(errors[index] for index in sorted(errors)),
            num_cut=context.num_cut + (actions.num_cut if actions else 0),
            num_dropped=context.num_dropped + (actions.num_dropped if actions else 0),
        )

    def _refusal(self, index: int, candidates: list[Candidate] | None) -> BadFeatures | None:
        if not self.task.actions:
            if not candidates:
                return BadFeatures(index, "empty-candidates", f"task {self.task.name!r} has no declared catalogue")
            if len(candidates) > NUM_CANDIDATES_MAX:
                return BadFeatures(
                    index, "too-many-candidates", f"expected at most {NUM_CANDIDATES_MAX}, got {len(candidates)}"
                )
        elif candidates is None:
            return None
        elif not candidates:
            return BadFeatures(index, "empty-candidates", "leave candidates out to offer the whole catalogue")
        ids = {candidate.action_id for candidate in candidates}
        if len(ids) == len(candidates) and (not self._ids or self._ids >= ids):
            return None
        seen: set[str] = set()
        for candidate in candidates:
            if candidate.action_id in seen:
                return BadFeatures(index, "duplicate-action", f"action {candidate.action_id!r} is offered twice")
            if self._ids and candidate.action_id not in self._ids:
                return BadFeatures(index, "unknown-action", f"action {candidate.action_id!r} is not in the catalogue")
            seen.add(candidate.action_id)
        return None

    def _sides(
        self, requests: list[DecisionRequest], indices: Sequence[int], errors: dict[int, BadFeatures]
    ) -> tuple[SideColumns, SideColumns | None]:
        """Encode both sides; what is wrong with the request at `indices[i]` goes into `errors`."""
        context = self._context.encode([request.context for request in requests])
        for row, error in context.errors.items():
            errors[indices[row]] = BadFeatures(indices[row], error.reason, f"context: {error.detail}")
        if self.task.actions:
            return context, None
        actions = self._action.encode([c.features for request in requests for c in request.candidates or ()])
        if actions.errors:
            owner = [(row, c) for row, request in enumerate(requests) for c in request.candidates or ()]
            for place, error in actions.errors.items():
                row, candidate = owner[place]
                detail = f"action {candidate.action_id!r}: {error.detail}"
                errors.setdefault(indices[row], BadFeatures(indices[row], error.reason, detail))
        return context, actions

    def _columns(
        self, requests: list[DecisionRequest], context: SideColumns, actions: SideColumns | None
    ) -> FeatureColumns:
        if actions is None:
            num_candidates = np.full(len(requests), len(self.task.actions), np.int32)
            keys = _NO_KEYS
            actions = self._no_actions
        else:
            num_candidates = np.array([len(r.candidates or ()) for r in requests], np.int32)
            keys = action_keys([c.action_id for request in requests for c in request.candidates or ()])
        return FeatureColumns(
            context=context.dense,
            num_candidates=num_candidates,
            actions=actions.dense,
            action_keys=keys,
            context_token_counts=context.token_counts,
            context_tokens=context.tokens,
            context_token_values=context.token_values,
            action_token_counts=actions.token_counts,
            action_tokens=actions.tokens,
            action_token_values=actions.token_values,
        )


def _no_actions(spec: FeatureSpec) -> SideColumns:
    dense = empty(np.float32, 0, spec.width)
    return SideColumns(dense, empty(np.int32), empty(np.int32), empty(np.float32), {})


def undeclared(spec: FeatureSpec, values: Values) -> tuple[str, ...]:
    """Names in `values` that the task does not declare: passed over by the encoder, shown by ``headrace lint``."""
    known = {feature.name for feature in spec.features}
    return tuple(name for name in values if name not in known)
