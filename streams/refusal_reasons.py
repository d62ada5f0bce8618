"""Every reason of a dead letter and what it means: one catalogue, for docs/reference.md and the counters' label.

What bytes can be wrong with stands in `schemas.varints.REASONS`, as numba needs it. What a request can be wrong with
beside its bytes stands here. Why a snapshot is refused stands in `streams.policy.REFUSALS`, with the checks.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.varints import REASONS

OF_REQUESTS: Mapping[str, str] = {
    "unknown-task": "no task of this name is applied",
    "unknown-action": "a candidate is none of the task's declared catalogue",
    "duplicate-action": "an action is offered twice in one request",
    "too-many-candidates": "more candidates than can each have a probability",
    "bad-slots": "the request asks for another number of actions than the task decides",
    "bad-baseline": "the request's baseline is no index of a candidate",
    "wrong-size": "a vector has another length than the task declares",
    "all-masked": "the guardrails leave no candidate",
    "internal-error": "headrace itself failed on it: a mistake of ours; the worker's log has the traceback",
}
"""A request that can be read and cannot be decided; it is answered all the same (`streams.fallback`)."""

CATALOGUE: Mapping[str, str] = {**{code: meaning for code, meaning in REASONS if code}, **OF_REQUESTS}
"""(reason: meaning) of a dead letter of anything but a snapshot."""
