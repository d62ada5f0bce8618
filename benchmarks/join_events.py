"""The events of the join benchmark: decisions with 32 features and 10 candidates, outcomes for a fifth of them.

The same events in two shapes: blocks in a headrace journal, and one message per event for a hand-written join.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import Strings, empty
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.keys import decision_key, outcome_key, subject_key
from schemas.task import Project, parse

NUM_ACTIONS = 10
NUM_FEATURES = 32
OUTCOME_SHARE = 0.2
ROWS = 256
"""Decisions per block."""

TOML = """
[namespace]
name = "{namespace}"
partitions = {partitions}

[[tasks]]
name = "bench"
kind = "choice"
actions = [{actions}]

[tasks.context]
state = {{ kind = "vector", size = {features} }}

[tasks.reward]
window = "{window}"

[tasks.reward.outcomes.click]
aggregate = "max"
weight = 1.0
binary = true
"""


def project(namespace: str, partitions: int, window: str) -> Project:
    """The benchmark's task."""
    actions = ", ".join(f'"a{i}"' for i in range(NUM_ACTIONS))
    return parse(
        TOML.format(namespace=namespace, partitions=partitions, actions=actions, features=NUM_FEATURES, window=window)
    )


@dataclass(frozen=True, slots=True)
class Slab:
    """Decisions of one block, and the outcomes that follow some blocks later."""

    partition: int
    decisions: DecisionBlock
    outcomes: OutcomeBlock
    decision_names: list[str]
    outcome_rows: np.ndarray
    """Rows of `decisions` that get an outcome."""


def subject_of(partition: int, row: int, subjects: list[list[str]]) -> str:
    """A subject that hashes to `partition`."""
    pool = subjects[partition]
    return pool[row % len(pool)]


def slabs(
    num: int, partitions: int, seed: int, subjects: list[list[str]], fingerprint: bytes, catalogue: bytes
) -> list[Slab]:
    """`num` decisions in blocks of `ROWS`, dealt over the partitions in turn."""
    rng = np.random.default_rng(seed)
    result = []
    offsets = [0] * partitions
    for number in range(num // ROWS):
        partition = number % partitions
        names = [f"d{seed}-{number * ROWS + row}" for row in range(ROWS)]
        keys = np.array([decision_key(name) for name in names], np.uint64)
        subject_keys = np.array([subject_key(subject_of(partition, row, subjects)) for row in range(ROWS)], np.uint64)
        features = FeatureColumns(
            context=rng.standard_normal((ROWS, NUM_FEATURES), np.float32),
            num_candidates=np.full(ROWS, NUM_ACTIONS, np.int32),
            actions=empty(np.float32, 0, 0),
            action_keys=empty(np.uint64),
            context_token_counts=empty(np.int32),
            context_tokens=empty(np.int32),
            context_token_values=empty(np.float32),
            action_token_counts=empty(np.int32),
            action_tokens=empty(np.int32),
            action_token_values=empty(np.float32),
        )
        propensities = np.full((ROWS, NUM_ACTIONS), PROPENSITY_ONE // NUM_ACTIONS, np.int32)
        propensities[:, 0] += PROPENSITY_ONE - propensities.sum(1, dtype=np.int64).astype(np.int32)
        columns = DecisionColumns(
            features=features,
            catalogue=catalogue,
            chosen=rng.integers(0, NUM_ACTIONS, (ROWS, 1), np.int32),
            propensities=propensities.ravel(),
            reasons=np.zeros(ROWS, np.uint8),
            values=empty(np.float64, 0, 1),
            bounds=empty(np.float64, 0, 2),
            terminal=empty(np.uint8),
            steps=empty(np.int32),
            episode_keys=empty(np.uint64),
        )
        decisions = DecisionBlock(
            task="bench",
            fingerprint=fingerprint,
            snapshot_version=0,
            request_topic="bench.requests",
            decision_keys=keys,
            subject_keys=subject_keys,
            request_partitions=np.full(ROWS, partition, np.int32),
            request_offsets=np.arange(number * ROWS, (number + 1) * ROWS),
            columns=columns,
            decision_ids=Strings.of(names),
            subjects=Strings.of([subject_of(partition, row, subjects) for row in range(ROWS)]),
        )
        chosen = np.flatnonzero(rng.random(ROWS) < OUTCOME_SHARE)
        m = len(chosen)
        outcomes = OutcomeBlock(
            source_topic="bench.outcomes",
            source_partition=partition,
            source_offsets=np.arange(offsets[partition], offsets[partition] + m),
            outcome_keys=np.array([outcome_key(f"o-{names[row]}") for row in chosen], np.uint64).reshape(m, 2),
            subject_keys=subject_keys[chosen],
            decision_keys=keys[chosen],
            action_keys=np.zeros(m, np.uint64),
            slots=np.full(m, -1, np.int32),
            types=np.zeros(m, np.int32),
            values=np.ones(m),
            times_ms=np.zeros(m, np.int64),
            type_names=("click",),
            outcome_ids=Strings.of([f"o-{names[row]}" for row in chosen]),
            subjects=Strings.of([subject_of(partition, int(row), subjects) for row in chosen]),
            decision_ids=Strings.of([names[row] for row in chosen]),
        )
        offsets[partition] += m
        result.append(Slab(partition, decisions, outcomes, names, chosen))
    return result
