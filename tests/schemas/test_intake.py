"""Requests whose candidates are checked all at once are read, and refused, as those looked at one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import intake
from schemas.bounds import LIMITS, BadRecord

PLAIN = st.fixed_dictionaries(
    {
        "action_id": st.text("ab€", min_size=1, max_size=6),
        "features": st.dictionaries(st.text("xyz", max_size=3), st.floats(allow_nan=False, allow_infinity=False)),
    }
)
ODD_FEATURES = st.sampled_from(
    [
        {},
        None,
        7,
        {"x": True},
        {"x": 3},
        {"x": "red"},
        {"x": ["red"]},
        {"x": [1.0, 2.0]},
        {"x": float("inf")},
        {"x": float("nan")},
        {"x": 1e308, "y": 1e308},
        {"n" * (LIMITS.name_bytes_max + 1): 1.0},
        {f"x{number}": 1.0 for number in range(LIMITS.num_features_max + 1)},
        {"x": None},
    ]
)
ODD = st.one_of(
    st.sampled_from(
        [
            3,
            "text",
            [],
            {},
            {"features": {"x": 1.0}},
            {"action_id": "a"},
            {"action_id": "", "features": {"x": 1.0}},
            {"action_id": 5, "features": {"x": 1.0}},
            {"action_id": None, "features": {"x": 1.0}},
            {"action_id": "€" * 80, "features": {"x": 1.0}},
            {"action_id": "€" * 90, "features": {"x": 1.0}},
            {"action_id": "a", "features": {"x": 1.0}, "price": 1.0},
            {"action_id": "a", "price": {"x": 1.0}},
        ]
    ),
    st.builds(lambda features: {"action_id": "a", "features": features}, ODD_FEATURES),
)


def _read(candidates: list[Any]) -> Any:
    """The request, or why there is none."""
    try:
        return intake.request_of(
            {"decision_id": "d", "task": "t", "subject": "s", "context": {"x": 1.0}, "candidates": candidates}, LIMITS
        )
    except BadRecord as error:
        return error.args


@given(st.lists(st.one_of(PLAIN, PLAIN, PLAIN, ODD), min_size=1, max_size=5))
def test_candidates_checked_together_are_as_those_checked_one_by_one(candidates: list[Any]) -> None:
    together = _read(candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "_plain_candidates", lambda items, limits: None)
        patch.setattr(intake, "_is_plain", lambda value, limits: False)
        assert together == _read(candidates)


@given(st.lists(PLAIN, min_size=1, max_size=5))
def test_plain_candidates_need_no_second_look(candidates: list[Any]) -> None:
    found = intake._plain_candidates(candidates, LIMITS)
    filled = all(candidate["features"] for candidate in candidates)
    bounded = sum(abs(x) for candidate in candidates for x in candidate["features"].values()) < 1e308
    assert (found is not None) or not (filled and bounded)
