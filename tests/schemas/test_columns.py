"""Which rows of a block may be learnt from, and how many Python calls a block takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.bounds import BadRecord
from schemas.columns import sound_rows
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns
from schemas.registry import FileRegistry
from tests.schemas.messages import (
    COLUMNS,
    decision_block,
    decision_columns,
    outcome_block,
    same,
    transition_block,
)

REGISTRY = FileRegistry()


def sound_row_by_row(columns: DecisionColumns) -> list[bool]:
    """The definition, one row at a time."""
    sound = []
    for index in range(len(columns)):
        row = columns.rows(index, index + 1)
        f = row.features
        floats = (f.context, f.actions, f.context_token_values, f.action_token_values, row.values, row.bounds)
        good = all(np.isfinite(part).all() for part in floats)
        good &= all((part >= 0).all() for part in (f.context_tokens, f.action_tokens))
        for slot, integers in enumerate(row.propensities.reshape(row.num_slots, -1)):
            chosen = row.chosen[0, slot]
            empty_slot = slot > 0 and chosen == -1 and not integers.any()
            possible = 0 <= chosen < len(integers) and integers[chosen] > 0
            good &= empty_slot or bool(possible and (integers >= 0).all() and integers.sum() == PROPENSITY_ONE)
        sound.append(bool(good))
    return sound


SPOILT = [np.nan, np.inf, -np.inf]


@given(COLUMNS, st.data())
def test_soundness_equals_its_definition_row_by_row(columns: DecisionColumns, data: st.DataObject) -> None:
    assert sound_rows(columns).all()
    f = columns.features
    floats = [f.context, f.actions, f.context_token_values, f.action_token_values, columns.values, columns.bounds]
    for array in floats:
        if array.size and data.draw(st.booleans()):
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(st.sampled_from(SPOILT))
    for array in (f.context_tokens, f.action_tokens, columns.propensities, columns.chosen):
        if array.size and data.draw(st.booleans()):
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(st.sampled_from([-1, 0, 7, 2**31 - 1]))
    assert sound_rows(columns).tolist() == sound_row_by_row(columns)


def test_a_spoilt_row_does_not_spoil_its_block() -> None:
    block = decision_block(decision_columns(1, 4))
    block.columns.features.context[2, 0] = np.nan
    decoded = codec.decode(codec.encode(block, REGISTRY), REGISTRY)
    assert sound_rows(decoded).tolist() == [True, True, False, True]


def test_an_empty_slot_after_the_first_is_sound() -> None:
    columns = decision_columns(1, 1, num_slots=2, most_candidates=1)
    columns.chosen[0, 1] = -1
    columns.propensities[1] = 0
    assert sound_rows(columns).tolist() == [True]


def test_a_spoilt_row_travels_in_a_transition_only_when_nobody_learns_from_it() -> None:
    block = transition_block(decision_columns(1, 3))
    block.columns.features.context[1, 0] = np.inf
    block.buckets[:] = (0, 4, 1)
    assert same(block, codec.decode(codec.encode(block, REGISTRY), REGISTRY))
    block.buckets[:] = (0, 1, 1)
    with pytest.raises(BadRecord, match="bad-row: row 1 has bucket defaulted"):
        codec.decode(codec.encode(block, REGISTRY), REGISTRY)


@pytest.mark.parametrize("value", SPOILT)
def test_a_reward_or_an_outcome_that_is_not_finite_is_refused(value: float) -> None:
    transitions, outcomes = transition_block(decision_columns(1, 3)), outcome_block(3)
    transitions.rewards[2] = outcomes.values[1] = value
    for block in (transitions, outcomes):
        with pytest.raises(BadRecord, match="not-finite"):
            codec.decode(codec.encode(block, REGISTRY), REGISTRY)


def calls(work: Any) -> int:
    """Python and C functions called by the work."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_python_calls_do_not_grow_with_the_rows() -> None:
    counts = []
    for num_rows in (16, 64, 256):
        blocks = [
            decision_block(decision_columns(1, num_rows)),
            transition_block(decision_columns(1, num_rows)),
            outcome_block(num_rows),
        ]
        messages = [codec.encode(block, REGISTRY) for block in blocks]

        def work(blocks: list[Any] = blocks, messages: list[bytes] = messages) -> None:
            for block, message in zip(blocks, messages, strict=True):
                codec.encode(block, REGISTRY)
                codec.decode(message, REGISTRY)

        work()
        counts.append(calls(work))
    assert max(counts) - min(counts) <= 24, counts  # lengths are cached as varints; a new one takes a few calls


def test_rows_of_another_width_are_refused() -> None:
    block = decision_block(decision_columns(1, 3))
    features = replace(block.columns.features, context=block.columns.features.context[:2])
    spoilt = replace(block, columns=replace(block.columns, features=features))
    with pytest.raises(BadRecord, match="bad-columns: context has 6 elements, expected 9"):
        codec.decode(codec.encode(spoilt, REGISTRY), REGISTRY)
