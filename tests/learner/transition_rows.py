"""Made-up transitions for the learner's tests: small ragged rows whose every column tells which row it belongs to."""

from __future__ import annotations

import numpy as np

from schemas.arrays import empty
from schemas.blocks import TransitionBlock
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.records import ChainPosition, DecisionBucket, Progress, Resume

FINGERPRINTS = (b"A" * 16, b"B" * 16)


def features(marks: np.ndarray, width: int = 3) -> FeatureColumns:
    """Row i has 1 + mark % 3 candidates, mark % 4 context tokens and (mark + candidate) % 2 tokens per candidate."""
    marks = marks.astype(np.int64)
    num_candidates = (1 + marks % 3).astype(np.int32)
    of_candidate = np.repeat(marks, num_candidates)
    firsts = np.repeat(np.cumsum(num_candidates) - num_candidates, num_candidates)
    places = np.arange(len(of_candidate)) - firsts
    context_counts = (marks % 4).astype(np.int32)
    action_counts = ((of_candidate + places) % 2).astype(np.int32)
    return FeatureColumns(
        context=np.repeat(marks[:, None], width, 1).astype(np.float32),
        num_candidates=num_candidates,
        actions=np.stack([of_candidate, places], 1).astype(np.float32),
        action_keys=(of_candidate * 10 + places).astype(np.uint64),
        context_token_counts=context_counts,
        context_tokens=np.repeat(marks, context_counts).astype(np.int32),
        context_token_values=np.repeat(marks, context_counts).astype(np.float32),
        action_token_counts=action_counts,
        action_tokens=np.repeat(of_candidate * 10 + places, action_counts).astype(np.int32),
        action_token_values=np.ones(int(action_counts.sum()), np.float32),
    )


def block(
    positions: list[int],
    closed_at_ms: list[int],
    partition: int = 0,
    prev: int = -1,
    fingerprint: bytes = FINGERPRINTS[0],
    buckets: list[int] | None = None,
    kind: int = 0,
) -> TransitionBlock:
    """Rows that carry ``position + 1000 * partition`` in every column that can hold it."""
    n = len(positions)
    marks = np.array(positions, np.int64) + 1000 * partition
    columns = features(marks)
    share = (1 << 24) // columns.num_candidates
    propensities = np.repeat(share, columns.num_candidates).astype(np.int32)
    return TransitionBlock(
        partition=partition,
        task="made-up",
        fingerprint=fingerprint,
        kind=kind,
        prev=prev,
        positions=np.array(positions, np.int64),
        closed_at_ms=np.array(closed_at_ms, np.int64),
        buckets=np.array(buckets or [int(DecisionBucket.JOINED)] * n, np.uint8),
        flags=np.zeros(n, np.uint8),
        rewards=(marks[:, None] % 2).astype(np.float32),
        num_outcomes=np.ones(n, np.int32),
        snapshot_versions=marks,
        decision_keys=np.stack([marks, marks], 1).astype(np.uint64),
        columns=DecisionColumns(
            features=columns,
            catalogue=b"",
            chosen=np.zeros((n, 1), np.int32),
            propensities=propensities,
            reasons=np.zeros(n, np.uint8),
            values=empty(np.float64, 0, 1),
            bounds=empty(np.float64, 0, 2),
            terminal=empty(np.uint8),
            steps=empty(np.int32),
            episode_keys=empty(np.uint64),
        ),
    )


def progress(partition: int, time_ms: int, hwm: dict[bytes, int], transitions_offset: int = 0) -> Progress:
    """Progress that requires `hwm` per fingerprint."""
    chains = tuple(ChainPosition(fingerprint, 0, position) for fingerprint, position in sorted(hwm.items()))
    return Progress(partition, time_ms, 0, transitions_offset, chains, Resume(0), {}, {})
