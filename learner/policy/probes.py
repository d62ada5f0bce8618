"""Probes: a few inputs that travel with a snapshot so that a worker can see that it computes what the learner meant.

Owns the bytes of the manifest's field ``probes`` and the check that a worker runs before it swaps policies
(learning.md rule 20). Knows nothing of Kafka, signatures or files.

Format: safetensors (`schemas.weights.pack`). Per task, with its fingerprint in hex as the prefix:

    <hex>/<column>     every column of `FeatureColumns`, N rows, as logged
    <hex>/allowed      (M,) uint8, 0 for a candidate that a guardrail masked
    <hex>/scores       (M,) float64, `network.scores` in numpy on the learner's machine
    <hex>/integers     (M,) int32, `explore.integers` of exactly those scores; sum 2**24 per row

Two separate comparisons, because two BLAS kernels differ by 1e-7 in a score and that changes some integer in one
row of ten: recomputed scores must lie within `SCORE_TOLERANCE` of the reward's range, and integers recomputed from the
*stored* scores must be equal exactly.

Simplification: a task whose single rows exceed the byte budget travels without probes (a catalogue of 30,000 actions
needs 360 kB a row), and so do the last of more than some sixty tasks when the budget is spent; their weights are still
covered by signature, hash, shapes and finiteness.

Shape legend: N probe rows, M candidates of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.policy import explore, network
from schemas import weights as tensors
from schemas.arrays import F64
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.frozen import names_of
from schemas.task import Task
from schemas.task_shape import Shape

Array = npt.NDArray[Any]
Serve = Callable[[FeatureColumns], F64]

NUM_PROBES = 16
"""Rows per task: the newest learnt ones."""
PROBES_BYTES_MAX = 256 * 1024
"""Of all tasks together, header included: the manifest must stay far below the broker's default message limit of 1 MiB.
"""
TASK_BYTES_MIN = 4096
"""A task's share of them, while they last: half of it is header, so with smaller shares none would get a row."""
SCORE_TOLERANCE = 1e-4
"""Times (reward.max - reward.min)."""
COLUMNS = names_of(FeatureColumns)
_ENTRY_BYTES = len(f'"{"0" * 32}/":{{"data_offsets":[{1 << 18},{1 << 18}],"dtype":"F32","shape":[{10**7},{10**7}]}},')
_FRAME_BYTES = 8 + 2 + 7
"""Of safetensors: length, braces, padding."""


@dataclass(frozen=True, slots=True)
class ProbeInputs:
    """Inputs of one task's probes, taken from rows that were learnt."""

    features: FeatureColumns
    """N rows, as logged."""
    allowed: npt.NDArray[np.bool_]
    """(M,) False for a candidate that had propensity 0 when it was logged."""

    def __len__(self) -> int:
        return len(self.features)


def header_size() -> int:
    """Bytes at most that one task takes in the header: name, type, shape and offsets of each of its arrays."""
    computed = ("allowed", "scores", "integers")
    return sum(_ENTRY_BYTES + len(name) for name in (*COLUMNS, *computed))


def row_sizes(features: FeatureColumns) -> npt.NDArray[np.int64]:
    """Bytes that each row takes among the probes, scores and integers included; (N,)."""
    num_candidates = features.num_candidates.astype(np.int64)
    sizes: npt.NDArray[np.int64] = 8 + 4 * features.context.shape[1] + 13 * num_candidates
    if len(features.action_keys) or len(features.actions):
        sizes += num_candidates * (8 + 4 * features.actions.shape[1])
    if len(features.context_token_counts):
        sizes += 4 + 8 * features.context_token_counts.astype(np.int64)
    if len(features.action_token_counts):
        ends = np.cumsum(num_candidates)
        sums = np.concatenate([[0], np.cumsum(features.action_token_counts, dtype=np.int64)])
        sizes += 4 * num_candidates + 8 * (sums[ends] - sums[ends - num_candidates])
    return sizes


def newest(columns: DecisionColumns, before: ProbeInputs | None = None) -> ProbeInputs:
    """The last `NUM_PROBES` rows of `before` followed by `columns`: the same for any split of the rows.

    Slot 0 tells what was allowed: every allowed candidate has a propensity of at least 16 / 2**24.
    """
    n = len(columns)
    tail = columns.rows(max(0, n - NUM_PROBES), n)
    ends = np.cumsum(tail.features.num_candidates, dtype=np.int64) * tail.num_slots
    firsts = ends - tail.features.num_candidates * tail.num_slots
    spans = [
        tail.propensities[first : first + count] > 0
        for first, count in zip(firsts, tail.features.num_candidates, strict=True)
    ]
    allowed = np.concatenate([np.zeros(0, bool), *spans])
    features = tail.features
    if before is not None and len(before) and len(tail) < NUM_PROBES:
        joined = FeatureColumns.concat([before.features, features])
        allowed = np.concatenate([before.allowed, allowed])
        keep_from = max(0, len(joined) - NUM_PROBES)
        skipped = int(joined.num_candidates[:keep_from].sum())
        features, allowed = joined.rows(keep_from, len(joined)), allowed[skipped:]
    return ProbeInputs(_owned(features), allowed.copy())


def _owned(features: FeatureColumns) -> FeatureColumns:
    """Copies: views would keep whole messages alive."""
    return FeatureColumns(**{name: np.array(getattr(features, name)) for name in COLUMNS})


def within(inputs: ProbeInputs, bytes_max: int) -> ProbeInputs | None:
    """The longest tail of rows that fits in `bytes_max`, None when not even the newest row does."""
    sizes = np.cumsum(row_sizes(inputs.features)[::-1])
    count = int(np.searchsorted(sizes, bytes_max, side="right"))
    if count == 0:
        return None
    start = len(inputs) - count
    skipped = int(inputs.features.num_candidates[:start].sum())
    return ProbeInputs(inputs.features.rows(start, len(inputs)), inputs.allowed[skipped:])


def pack(
    inputs: Mapping[bytes, ProbeInputs],
    tasks: Mapping[bytes, Task],
    weights: Mapping[bytes, Mapping[str, Array]],
) -> bytes:
    """The manifest's ``probes`` for these weights (by fingerprint). Deterministic: tasks in fingerprint order."""
    arrays: dict[str, Array] = {}
    left = PROBES_BYTES_MAX - _FRAME_BYTES
    for index, fingerprint in enumerate(sorted(inputs)):
        share = min(left, max(TASK_BYTES_MIN, left // (len(inputs) - index)))
        fitting = within(inputs[fingerprint], share - header_size())
        if fitting is None:
            continue
        left -= header_size() + int(row_sizes(fitting.features).sum())
        task, task_weights = tasks[fingerprint], weights[fingerprint]
        scores = np.asarray(network.scores(task_weights, task, fitting.features), np.float64)
        integers = explore.integers(scores, fitting.features.num_candidates, fitting.allowed, task_weights, task)
        prefix = fingerprint.hex()
        for name in COLUMNS:
            arrays[f"{prefix}/{name}"] = getattr(fitting.features, name)
        arrays[f"{prefix}/allowed"] = fitting.allowed.astype(np.uint8)
        arrays[f"{prefix}/scores"] = scores
        arrays[f"{prefix}/integers"] = np.asarray(integers, np.int32)
    return tensors.pack(arrays, {})


def check(
    probes: bytes,
    tasks: Mapping[bytes, Task],
    weights: Mapping[bytes, Mapping[str, Array]],
    serving: Mapping[bytes, Serve] | None = None,
) -> str | None:
    """Does this machine compute what the learner computed? None when it does, else one sentence for people.

    `tasks`, `weights` and `serving` (how a worker scores: another implementation of the same pass) by fingerprint.
    Probes of a task that the reader does not know are passed over: its policy is not used there either. Raises nothing
    for malformed probes: they are a reason to refuse.
    """
    try:
        arrays, _ = tensors.unpack(probes)
    except ValueError as error:
        return f"probes cannot be read: {error}"
    for prefix in sorted({name.split("/", 1)[0] for name in arrays}):
        try:
            fingerprint = bytes.fromhex(prefix)
        except ValueError:
            return f"probes cannot be read: {prefix[:40]!r} is no fingerprint"
        if fingerprint not in tasks or fingerprint not in weights:
            continue
        try:
            serve = None if serving is None else serving[fingerprint]
            reason = _check_task(prefix, arrays, tasks[fingerprint], weights[fingerprint], serve)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            reason = f"cannot be computed: {type(error).__name__}: {error}"
        if reason is not None:
            return f"probes of task {tasks[fingerprint].name} ({prefix}): {reason}"
    return None


def _check_task(
    prefix: str, arrays: Mapping[str, Array], task: Task, weights: Mapping[str, Array], serve: Serve | None
) -> str | None:
    features = FeatureColumns(**{name: arrays[f"{prefix}/{name}"] for name in COLUMNS})
    allowed = arrays[f"{prefix}/allowed"] != 0
    stored, integers = arrays[f"{prefix}/scores"], arrays[f"{prefix}/integers"]
    if not _fits(features, task):
        return "features do not fit the task"
    scores = np.asarray(network.scores(weights, task, features), np.float64)
    if scores.shape != stored.shape or stored.dtype != np.float64:
        return f"scores have shape {scores.shape}, expected {stored.shape} {stored.dtype}"
    tolerance = SCORE_TOLERANCE * (task.reward.max - task.reward.min)
    error = float(np.abs(scores - stored).max(initial=0.0))
    if not error <= tolerance:
        return f"scores differ by {error:.3g}, at most {tolerance:.3g} allowed"
    again = explore.integers(stored, features.num_candidates, allowed, weights, task)
    if not np.array_equal(again, integers):
        differing = int((np.asarray(again) != integers).sum())
        return f"{differing} of {len(integers)} integers computed from the stored scores differ"
    if serve is None:
        return None
    error = float(np.abs(serve(_owned(features)) - stored).max(initial=0.0))
    return None if error <= tolerance else f"served scores differ by {error:.3g}, at most {tolerance:.3g} allowed"


def _fits(features: FeatureColumns, task: Task) -> bool:
    """Whether compiled loops, which check no bounds, may read them."""
    num_candidates = features.num_candidates
    if num_candidates.dtype != np.int32 or num_candidates.ndim != 1 or (num_candidates < 0).any():
        return False
    if task.actions and not (num_candidates == len(task.actions)).all():
        return False
    x = features.context_token_counts, features.context_tokens, features.context_token_values
    a = features.action_token_counts, features.action_tokens, features.action_token_values
    return (
        Shape.of(task).fits_features(features, int(num_candidates.sum(dtype=np.int64)))
        and features.context.dtype == features.actions.dtype == np.float32
        and features.action_keys.dtype == np.uint64
        and _tokens_fit(*x)
        and _tokens_fit(*a)
    )


def _tokens_fit(counts: Array, tokens: Array, values: Array) -> bool:
    """Whether the counts name exactly the tokens that are there."""
    num_tokens = int(counts.sum(dtype=np.int64))
    return (
        counts.dtype == tokens.dtype == np.int32
        and values.dtype == np.float32
        and tokens.shape == values.shape == (num_tokens,)
        and bool((counts >= 0).all())
    )
