"""Records and blocks for the tests of the wire: strategies for any of them, and one plain example of each.

Hypothesis draws the shape of a block and a seed; numpy fills the columns. Drawing every number would take minutes
and shrink no better.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from schemas.arrays import NO_STRINGS, Strings, empty
from schemas.blocks import DecisionBlock, OutcomeBlock, Tick, TransitionBlock
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.records import (
    Candidate,
    ChainPosition,
    DeadLetter,
    Decision,
    DecisionRequest,
    DefinitionPosition,
    JournalGap,
    Outcome,
    Progress,
    Resume,
    SnapshotManifest,
    SourcePosition,
    TaskRecord,
    TrainedPosition,
    Vector,
)

ALPHABET = "aß1 √😀"
INT64 = st.integers(-(2**63), 2**63 - 1)


def same(left: Any, right: Any) -> bool:
    """Equality of records and blocks down to the bits, NaN included."""
    if isinstance(left, Strings):
        return left.tolist() == right.tolist()
    if isinstance(left, np.ndarray):
        return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if hasattr(type(left), "__slots__") and type(left) is type(right):
        return all(same(getattr(left, name), getattr(right, name)) for name in type(left).__slots__)
    return bool(left == right)


def strings(rng: np.random.Generator, num: int) -> Strings:
    return Strings.of(["".join(rng.choice(list(ALPHABET), rng.integers(1, 80))) for _ in range(num)])


def sampled(rng: np.random.Generator, num_candidates: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(chosen (N, S), propensities) that sum to one exactly, each chosen one possible."""
    chosen = np.empty((len(num_candidates), num_slots), np.int32)
    parts = []
    for row, count in enumerate(num_candidates):
        for slot in range(num_slots):
            integers = rng.integers(1, 1000, count)
            chosen[row, slot] = rng.integers(0, count)
            integers[chosen[row, slot]] += PROPENSITY_ONE - integers.sum()
            parts.append(integers.astype(np.int32))
    return chosen, np.concatenate(parts)


def decision_columns(
    seed: int,
    num_rows: int,
    *,
    num_slots: int = 1,
    widths: tuple[int, int] = (3, 2),
    catalogue: bool = False,
    tokens: bool = True,
    sequence: bool = False,
    continuous: bool = False,
    most_candidates: int = 5,
) -> DecisionColumns:
    """Sound columns of any shape that the contract allows."""
    rng = np.random.default_rng(seed)
    num_candidates = (
        np.full(num_rows, most_candidates, np.int32)
        if catalogue
        else rng.integers(1, most_candidates + 1, num_rows).astype(np.int32)
    )
    total = int(num_candidates.sum())
    context_counts = rng.integers(0, 4, num_rows).astype(np.int32) if tokens else empty(np.int32)
    action_counts = rng.integers(0, 4, total).astype(np.int32) if tokens and not catalogue else empty(np.int32)
    num_actions = 0 if catalogue else total
    chosen, propensities = sampled(rng, num_candidates, num_slots)
    features = FeatureColumns(
        context=rng.normal(size=(num_rows, widths[0])).astype(np.float32),
        num_candidates=num_candidates,
        actions=rng.normal(size=(num_actions, widths[1])).astype(np.float32),
        action_keys=rng.integers(0, 2**64, num_actions, np.uint64),
        context_token_counts=context_counts,
        context_tokens=rng.integers(0, 2**31, context_counts.sum()).astype(np.int32),
        context_token_values=rng.random(context_counts.sum()).astype(np.float32),
        action_token_counts=action_counts,
        action_tokens=rng.integers(0, 2**31, action_counts.sum()).astype(np.int32),
        action_token_values=rng.random(action_counts.sum()).astype(np.float32),
    )
    return DecisionColumns(
        features=features,
        catalogue=b"c" * 16 if catalogue else b"",
        chosen=chosen,
        propensities=propensities,
        reasons=rng.integers(0, 5, num_rows).astype(np.uint8),
        values=rng.normal(size=(num_rows if continuous else 0, num_slots)),
        bounds=rng.normal(size=(num_rows if continuous else 0, 2)),
        terminal=rng.integers(0, 2, num_rows if sequence else 0).astype(np.uint8),
        steps=rng.integers(0, 99, num_rows if sequence else 0).astype(np.int32),
        episode_keys=rng.integers(0, 2**64, num_rows if sequence else 0, np.uint64),
    )


def decision_block(columns: DecisionColumns, seed: int = 0, *, with_ids: bool = True) -> DecisionBlock:
    rng = np.random.default_rng(seed)
    num_rows, num_actions = len(columns), len(columns.features.action_keys)
    return DecisionBlock(
        task="support",
        fingerprint=rng.bytes(16),
        snapshot_version=int(rng.integers(0, 2**40)),
        request_topic="headrace.requests",
        decision_keys=rng.integers(0, 2**64, (num_rows, 2), np.uint64),
        subject_keys=rng.integers(0, 2**64, num_rows, np.uint64),
        request_partitions=rng.integers(0, 12, num_rows).astype(np.int32),
        request_offsets=rng.integers(0, 2**62, num_rows),
        columns=columns,
        decision_ids=strings(rng, num_rows) if with_ids else NO_STRINGS,
        subjects=strings(rng, num_rows) if with_ids else NO_STRINGS,
        action_ids=strings(rng, num_actions) if with_ids and num_actions else NO_STRINGS,
        episode_ids=strings(rng, num_rows) if with_ids and len(columns.steps) else NO_STRINGS,
    )


def transition_block(columns: DecisionColumns, seed: int = 0) -> TransitionBlock:
    rng = np.random.default_rng(seed)
    num_rows = len(columns)
    positions = np.cumsum(rng.integers(1, 2**30, num_rows))
    return TransitionBlock(
        partition=int(rng.integers(0, 12)),
        task="support",
        fingerprint=rng.bytes(16),
        kind=int(rng.integers(0, 2)),
        prev=int(positions[0]) - int(rng.integers(1, 9)),
        positions=positions,
        closed_at_ms=np.cumsum(rng.integers(0, 2**40, num_rows)),
        buckets=rng.integers(0, 5, num_rows).astype(np.uint8),
        flags=rng.integers(0, 4, num_rows).astype(np.uint8),
        rewards=rng.normal(size=(num_rows, columns.num_slots)).astype(np.float32),
        num_outcomes=rng.integers(0, 2**31, num_rows).astype(np.int32),
        snapshot_versions=rng.integers(0, 2**62, num_rows),
        decision_keys=rng.integers(0, 2**64, (num_rows, 2), np.uint64),
        columns=columns,
    )


def outcome_block(num_rows: int, seed: int = 0, *, with_ids: bool = True) -> OutcomeBlock:
    rng = np.random.default_rng(seed)
    return OutcomeBlock(
        source_topic="shop.orders",
        source_partition=int(rng.integers(0, 99)),
        source_offsets=np.cumsum(rng.integers(1, 2**40, num_rows)),
        outcome_keys=rng.integers(0, 2**64, (num_rows, 2), np.uint64),
        subject_keys=rng.integers(0, 2**64, num_rows, np.uint64),
        decision_keys=rng.integers(0, 2**64, (num_rows, 2), np.uint64),
        action_keys=rng.integers(0, 2**64, num_rows, np.uint64),
        slots=rng.integers(-1, 9, num_rows).astype(np.int32),
        types=rng.integers(0, 3, num_rows).astype(np.int32),
        values=rng.normal(size=num_rows),
        times_ms=rng.integers(-(2**62), 2**62, num_rows),
        type_names=("click", "order", "refund"),
        outcome_ids=strings(rng, num_rows) if with_ids else NO_STRINGS,
        subjects=strings(rng, num_rows) if with_ids else NO_STRINGS,
        decision_ids=strings(rng, num_rows) if with_ids else NO_STRINGS,
    )


SEEDS = st.integers(0, 2**32 - 1)
COLUMNS = st.builds(
    decision_columns,
    SEEDS,
    st.integers(1, 9),
    num_slots=st.integers(1, 3),
    widths=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    catalogue=st.booleans(),
    tokens=st.booleans(),
    sequence=st.booleans(),
    continuous=st.booleans(),
)
BLOCKS = st.one_of(
    st.builds(decision_block, COLUMNS, SEEDS, with_ids=st.booleans()),
    st.builds(transition_block, COLUMNS, SEEDS),
    st.builds(outcome_block, st.integers(1, 9), SEEDS, with_ids=st.booleans()),
    st.just(Tick()),
)

_IDS = st.text(ALPHABET, min_size=1, max_size=16)
_NAMES = st.text(ALPHABET, min_size=1, max_size=60)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
_FEATURES = st.dictionaries(
    _NAMES,
    _FINITE
    | st.text(ALPHABET, max_size=300)
    | st.booleans()
    | st.lists(_NAMES, max_size=4)
    | st.lists(_FLOAT32, min_size=1, max_size=4).map(lambda values: Vector.of(*values)),
    max_size=4,
)
REQUESTS = st.builds(
    DecisionRequest,
    decision_id=_IDS,
    task=_NAMES,
    subject=_NAMES,
    context=_FEATURES,
    candidates=st.none() | st.lists(st.builds(Candidate, _NAMES, _FEATURES), min_size=1, max_size=3),
    slots=st.none() | st.integers(1, 1024),
    bounds=st.none() | st.tuples(st.floats(-1e9, 0), st.floats(0.5, 1e9)),
    episode_id=st.none() | _NAMES,
    step=st.none() | st.integers(0, 2**31 - 1),
    baseline=st.none() | st.just(0),
    deadline_ms=st.none() | st.integers(0, 2**63 - 1),
    time_ms=st.none() | INT64,
)
OUTCOMES = st.builds(
    Outcome,
    outcome_id=st.none() | _NAMES,
    subject=_NAMES,
    decision_id=st.none() | _IDS,
    action_id=st.none() | _NAMES,
    slot=st.none() | st.integers(0, 1023),
    type=_IDS,
    value=_FINITE,
    time_ms=st.none() | INT64,
)
_FINGERPRINTS = st.binary(min_size=16, max_size=16)
_CHAINS = st.lists(st.builds(ChainPosition, _FINGERPRINTS, st.integers(0, 1), INT64), max_size=3).map(tuple)
_COUNTS = st.dictionaries(_NAMES, INT64, max_size=3)
RECORDS = st.one_of(
    REQUESTS,
    OUTCOMES,
    st.builds(
        Decision,
        decision_id=_IDS,
        task=_NAMES,
        subject=_NAMES,
        actions=st.lists(_NAMES, max_size=3),
        propensities=st.lists(_FINITE, max_size=3),
        snapshot_version=INT64,
        reason=_IDS,
        values=st.lists(_FINITE, max_size=3),
        token=st.binary(max_size=9),
        time_ms=INT64,
    ),
    st.builds(TaskRecord, _FINGERPRINTS, _NAMES, _IDS, st.text(ALPHABET, max_size=999), st.booleans()),
    st.builds(
        Progress,
        partition=st.integers(0, 2**31 - 1),
        time_ms=INT64,
        journal_offset=INT64,
        transitions_offset=INT64,
        chains=_CHAINS,
        resume=st.builds(
            Resume,
            INT64,
            INT64,
            st.lists(st.builds(SourcePosition, _NAMES, st.integers(0, 9), INT64)).map(tuple),
            st.none() | st.lists(st.builds(DefinitionPosition, _FINGERPRINTS, INT64)).map(tuple),
        ),
        decision_counts=_COUNTS,
        outcome_counts=_COUNTS,
        gaps=st.lists(st.builds(JournalGap, INT64, INT64), max_size=2).map(tuple),
    ),
    st.builds(
        SnapshotManifest,
        version=INT64,
        parent_sha256=st.binary(max_size=32),
        sha256=st.binary(max_size=32),
        size_bytes=INT64,
        chunk_offsets=st.lists(INT64, max_size=3).map(tuple),
        cut_ms=INT64,
        trained=st.lists(st.builds(TrainedPosition, st.integers(0, 9), INT64, INT64, _CHAINS), max_size=2).map(tuple),
        chain_hash=st.binary(max_size=32),
        cut_number=INT64,
        tasks=st.lists(_FINGERPRINTS, max_size=2).map(tuple),
        environment=st.dictionaries(_NAMES, _NAMES, max_size=2),
        rows_learnt=_COUNTS,
        probes=st.binary(max_size=99),
        channel=_NAMES,
        signature=st.binary(max_size=64),
    ),
    st.builds(
        DeadLetter,
        _NAMES,
        st.integers(0, 9),
        INT64,
        _IDS,
        _NAMES,
        st.binary(max_size=256),
        st.binary(max_size=32),
        INT64,
    ),
)


def example_request(**changes: Any) -> DecisionRequest:
    request = DecisionRequest(
        decision_id="d-1",
        task="support",
        subject="user-1",
        context={"text": "where is my card", "age": 41.0, "member": True, "tags": ["a", "b"], "face": Vector.of(1, 2)},
        candidates=[Candidate("left", {"price": 2.0}), Candidate("right", {"price": 3.0})],
        slots=1,
        bounds=(0.0, 1.0),
        episode_id="e-1",
        step=3,
        baseline=1,
        deadline_ms=50,
        time_ms=1_700_000_000_000,
    )
    return replace(request, **changes)


def example_outcome(**changes: Any) -> Outcome:
    outcome = Outcome(
        outcome_id="o-1",
        subject="user-1",
        decision_id="d-1",
        action_id="left",
        slot=0,
        type="click",
        value=1.0,
        time_ms=1_700_000_000_000,
    )
    return replace(outcome, **changes)
