"""What can still be read of a request that cannot: enough to answer it.

Pure. A request whose features are broken (NaN is what Python's own json.dumps writes for a missing price) still says
who asks, about what, and what the shop would do by itself. It is a dead letter with its exact reason, and its shop gets
the baseline.
"""

from __future__ import annotations

import json
from typing import Any

from schemas.codec import decode_foreign
from schemas.records import Candidate, DecisionRequest
from schemas.registry import Registry, RegistryUnavailable

BYTES_MAX = 1 << 16
"""Larger ones are not worth reading again."""
ID_BYTES_MAX = 64
NAME_BYTES_MAX = 256
NAMES = ("decision_id", "task", "subject")
"""Without these nobody can be answered."""


def salvage(payload: bytes, registry: Registry) -> DecisionRequest | None:
    """The request without its features, or None when nobody could be answered. Raises nothing, whatever the bytes."""
    if len(payload) > BYTES_MAX:
        return None
    try:
        fields = json.loads(payload) if payload.startswith(b"{") else decode_foreign(payload, registry)
    except (ValueError, RecursionError, RegistryUnavailable):  # BadRecord is a ValueError
        return None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in NAMES):
        return None
    decision_id, task, subject = (str(fields[name]) for name in NAMES)
    if not (_is_name(decision_id, ID_BYTES_MAX) and _is_name(task) and _is_name(subject)):
        return None
    baseline = fields.get("baseline")
    return DecisionRequest(
        decision_id=decision_id,
        task=task,
        subject=subject,
        candidates=_candidates(fields.get("candidates")),
        baseline=baseline if type(baseline) is int else None,
    )


def _is_name(value: Any, bytes_max: int = NAME_BYTES_MAX) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= bytes_max
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _candidates(values: Any) -> list[Candidate] | None:
    """The candidates' ids if every one has one, else None: an index into a part of them would mean another action."""
    if not isinstance(values, list) or not values:
        return None
    ids: list[Any] = [value.get("action_id") if isinstance(value, dict) else None for value in values]
    return [Candidate(action_id) for action_id in ids] if all(map(_is_name, ids)) else None
