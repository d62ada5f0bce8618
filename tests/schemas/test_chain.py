from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import empty
from schemas.blocks import KIND_TRANSITION, TransitionBlock
from schemas.chain import Accepted, ChainReader, Fork, Hole
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.records import ChainPosition, Progress, Resume

CHAIN = (b"f" * 16, KIND_TRANSITION)


def block(prev: int, positions: Sequence[int]) -> TransitionBlock:
    n = len(positions)
    features = FeatureColumns(
        context=empty(np.float32, n, 0),
        num_candidates=np.ones(n, np.int32),
        actions=empty(np.float32, 0, 0),
        action_keys=empty(np.uint64),
        context_token_counts=empty(np.int32),
        context_tokens=empty(np.int32),
        context_token_values=empty(np.float32),
        action_token_counts=empty(np.int32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
    )
    columns = DecisionColumns(
        features=features,
        catalogue=b"c" * 16,
        chosen=np.zeros((n, 1), np.int32),
        propensities=np.zeros(n, np.int32),
        reasons=np.zeros(n, np.uint8),
        values=empty(np.float64, 0, 1),
        bounds=empty(np.float64, 0, 2),
        terminal=empty(np.uint8),
        steps=empty(np.int32),
        episode_keys=empty(np.uint64),
    )
    return TransitionBlock(
        partition=0,
        task="t",
        fingerprint=CHAIN[0],
        kind=CHAIN[1],
        prev=prev,
        positions=np.array(positions, np.int64),
        closed_at_ms=np.zeros(n, np.int64),
        buckets=np.zeros(n, np.uint8),
        flags=np.zeros(n, np.uint8),
        rewards=np.zeros((n, 1), np.float32),
        num_outcomes=np.zeros(n, np.int32),
        snapshot_versions=np.zeros(n, np.int64),
        decision_keys=np.zeros((n, 2), np.uint64),
        columns=columns,
    )


def progress(hwm: int) -> Progress:
    return Progress(0, 0, 0, 0, (ChainPosition(*CHAIN, hwm),), Resume(0), {}, {})


@pytest.mark.parametrize(
    ("hwm", "prev", "positions", "expected"),
    [
        (-1, -1, [3, 5], Accepted(0)),
        (3, 3, [5, 8], Accepted(0)),
        (5, 3, [5, 8], Accepted(1)),
        (8, 3, [5, 8], Accepted(2)),
        (9, 3, [5, 8], Accepted(2)),
        (4, -1, [4, 5, 8], Accepted(1)),
        (3, 5, [8], Hole(expected=3, got=5)),
        (-1, 5, [8], Hole(expected=-1, got=5)),
        (6, 3, [5, 8], Fork(6)),
        (4, 3, [5, 8], Fork(4)),
    ],
)
def test_reader_rule_by_example(hwm: int, prev: int, positions: list[int], expected: object) -> None:
    reader = ChainReader({CHAIN: hwm})
    assert reader.offer(block(prev, positions)) == expected
    moved = isinstance(expected, Accepted) and expected.start < len(positions)
    assert reader.hwm[CHAIN] == (positions[-1] if moved else hwm)


@given(st.data())
def test_every_row_is_taken_once_whatever_is_split_repeated_or_lost_and_sent_again(data: st.DataObject) -> None:
    positions = sorted(data.draw(st.sets(st.integers(0, 1000), min_size=1, max_size=30)))
    reader, taken = ChainReader(), []
    for _ in range(data.draw(st.integers(0, 20))):
        start = data.draw(st.integers(0, len(positions) - 1))
        stop = data.draw(st.integers(start + 1, len(positions)))
        judged = reader.offer(block(positions[start - 1] if start else -1, positions[start:stop]))
        assert not isinstance(judged, Fork)
        if isinstance(judged, Accepted):
            taken += positions[start + judged.start : stop]
    last = reader.offer(block(-1, positions))
    assert isinstance(last, Accepted)
    assert taken + positions[last.start :] == positions


def test_progress_is_covered_once_every_chain_has_been_accepted_that_far() -> None:
    reader = ChainReader({CHAIN: 7})
    assert reader.covers(progress(7))
    assert not reader.covers(progress(8))
    assert ChainReader().covers(progress(-1))
    assert not ChainReader().covers(progress(0))


def test_a_reader_may_start_at_any_progress() -> None:
    reader = ChainReader()
    reader.adopt(progress(7))
    assert reader.offer(block(7, [9])) == Accepted(0)
