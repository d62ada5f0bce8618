from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import task as tasks
from schemas.decision_columns import TEXT_TOKEN, FeatureColumns
from schemas.keys import action_key
from schemas.records import Candidate, DecisionRequest, Features, Vector
from schemas.text import tokens_of_text
from streams.features import Encoder, undeclared

OFFER = tasks.parse(
    """
[[tasks]]
name = "offer"
[tasks.context]
age = { kind = "number" }
country = { kind = "category", values = ["de", "fr"] }
embedding = { kind = "vector", size = 2 }
member = { kind = "boolean" }
note = { kind = "text" }
sku = { kind = "category" }
[tasks.action]
price = { kind = "number", log = true, scale = 10.0 }
stars = { kind = "number" }
title = { kind = "text" }
[tasks.reward]
window = "1h"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""
).task("offer")

SUPPORT = tasks.parse(
    """
[[tasks]]
name = "support"
actions = ["card", "refund"]
[tasks.context]
text = { kind = "text" }
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
"""
).task("support")


def request(context: Features | None = None, candidates: list[Candidate] | None = None) -> DecisionRequest:
    return DecisionRequest("d", "offer", "s", context or {}, candidates or [Candidate("a")])


def context_of(**context: object) -> list[float]:
    encoded = Encoder(OFFER).encode([request(context)])  # type: ignore[arg-type]  # wrong types are the point
    assert not encoded.errors
    return encoded.columns.context[0].tolist()


def reason_of(context: Features | None = None, candidates: list[Candidate] | None = None) -> tuple[str, str]:
    encoded = Encoder(OFFER).encode([DecisionRequest("d", "offer", "s", context or {}, candidates)])
    assert len(encoded.columns) == 0
    return encoded.errors[0].reason, encoded.errors[0].detail


def same(left: FeatureColumns, right: FeatureColumns) -> bool:
    return all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(FeatureColumns))


def test_dense_columns_follow_the_order_of_names() -> None:
    assert OFFER.context.columns() == ("age", "country=de", "country=fr", "embedding[0]", "embedding[1]", "member")
    assert context_of(member=True, age=7.0, country="fr", embedding=Vector.of(1, 2)) == [7, 0, 1, 1, 2, 1]


def test_what_is_missing_or_undeclared_is_zero() -> None:
    assert context_of() == [0] * 6
    assert context_of(country="es", colour="red") == [0] * 6
    assert undeclared(OFFER.context, {"age": 1.0, "colour": "red"}) == ("colour",)


def test_a_category_may_hold_several_values() -> None:
    assert context_of(country=["de", "fr", "es"])[1:3] == [1, 1]


def test_numbers_are_scaled_then_their_logarithm_taken_with_the_sign_kept() -> None:
    candidates = [Candidate("a", {"price": 30.0}), Candidate("b", {"price": -30.0}), Candidate("c", {"price": 0.0})]
    columns = Encoder(OFFER).encode([request(candidates=candidates)]).columns
    assert columns.actions[:, 0].tolist() == [np.float32(math.log1p(3)), np.float32(-math.log1p(3)), 0]


def test_whole_numbers_and_booleans_are_numbers_and_0_and_1_are_booleans() -> None:
    assert context_of(age=3)[0] == 3
    assert context_of(age=True)[0] == 1
    assert context_of(member=1.0)[5] == 1


def test_a_hashed_category_and_a_text_become_tokens_categories_first() -> None:
    columns = Encoder(OFFER).encode([request({"note": "hello", "sku": ["x", "y"]})]).columns
    ids = columns.context_tokens.tolist()
    assert columns.context_token_counts.tolist() == [len(ids)] == [2 + 5]
    assert [bool(token & TEXT_TOKEN) for token in ids] == [False] * 2 + [True] * 5
    assert set(ids[2:]) == set(tokens_of_text("note", "hello"))
    assert columns.context_token_values.tolist() == [1.0] * 7


def test_candidates_stand_row_after_row_with_their_keys() -> None:
    batch = [
        request(candidates=[Candidate("a", {"stars": 1.0}), Candidate("ü", {"stars": 2.0})]),
        request(candidates=[Candidate("c", {"stars": 3.0, "title": "red car"})]),
    ]
    columns = Encoder(OFFER).encode(batch).columns
    assert columns.num_candidates.tolist() == [2, 1]
    assert columns.actions[:, 1].tolist() == [1, 2, 3]
    assert columns.action_keys.tolist() == [action_key("a"), action_key("ü"), action_key("c")]
    assert columns.action_token_counts.tolist() == [0, 0, 9]


def test_a_declared_catalogue_is_not_repeated_in_the_columns() -> None:
    batch = [DecisionRequest("d", "support", "s", {"text": "where is my card"})] * 3
    columns = Encoder(SUPPORT).encode(batch).columns
    assert columns.num_candidates.tolist() == [2, 2, 2]
    assert columns.actions.shape == (0, 0)
    assert len(columns.action_keys) == len(columns.action_token_counts) == 0


def test_candidates_of_a_catalogue_must_be_of_it() -> None:
    known = DecisionRequest("d", "support", "s", {}, [Candidate("card")])
    unknown = DecisionRequest("d", "support", "s", {}, [Candidate("crd")])
    encoded = Encoder(SUPPORT).encode([known, unknown])
    assert encoded.columns.num_candidates.tolist() == [2]
    assert [(error.index, error.reason) for error in encoded.errors] == [(1, "unknown-action")]


@pytest.mark.parametrize(
    ("context", "reason", "detail"),
    [
        ({"age": "7"}, "wrong-type", "context: feature 'age': expected a number, got str '7'"),
        ({"age": ["7"]}, "wrong-type", "feature 'age': expected a number"),
        ({"age": math.nan}, "not-finite", "feature 'age' is not finite as float32"),
        ({"age": 1e39}, "not-finite", "feature 'age' is not finite as float32"),
        ({"age": 10**400}, "not-finite", "feature 'age'"),
        ({"member": 0.5}, "wrong-type", "feature 'member': expected true or false"),
        ({"country": 7.0}, "wrong-type", "feature 'country': expected text"),
        ({"sku": True}, "wrong-type", "feature 'sku': expected text"),
        ({"note": 1.0}, "wrong-type", "feature 'note': expected text"),
        ({"embedding": Vector.of(1, 2, 3)}, "wrong-size", "expected a vector of 2 numbers, got 3"),
        ({"embedding": "x"}, "wrong-type", "expected a vector of 2 numbers, got str"),
        ({"embedding": Vector.of(1, math.inf)}, "not-finite", "feature 'embedding[1]'"),
    ],
)
def test_a_bad_feature_is_named(context: Features, reason: str, detail: str) -> None:
    found = reason_of(context, [Candidate("a")])
    assert found[0] == reason
    assert detail in found[1]


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (None, "empty-candidates"),
        ([], "empty-candidates"),
        ([Candidate("a"), Candidate("a")], "duplicate-action"),
        ([Candidate(str(n)) for n in range((1 << 16) + 1)], "too-many-candidates"),
        ([Candidate("a", {"price": math.inf})], "not-finite"),
        ([Candidate("a"), Candidate("b", {"price": "x"})], "wrong-type"),
    ],
)
def test_bad_candidates_are_named(candidates: list[Candidate] | None, reason: str) -> None:
    assert reason_of({}, candidates)[0] == reason


numbers = st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(1e300) | st.just("x") | st.integers(-9, 9)
words = st.text("ab éü", max_size=10)
contexts = st.fixed_dictionaries({}, optional={"age": numbers, "note": words | st.just(3.0), "sku": words})
offers = st.none() | st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcdef"),
        st.fixed_dictionaries({}, optional={"price": numbers, "stars": st.floats(-9, 9), "title": words}),
    ),
    max_size=4,
)
batches = st.lists(st.builds(lambda c, o: DecisionRequest("d", "offer", "s", c, o), contexts, offers), max_size=6)


@given(batches)
def test_every_request_is_a_row_or_an_error_and_no_other_changes_it(batch: list[DecisionRequest]) -> None:
    encoder = Encoder(OFFER)
    together = encoder.encode(batch)
    assert sorted([*together.rows.tolist(), *(error.index for error in together.errors)]) == list(range(len(batch)))
    for place, index in enumerate(together.rows.tolist()):
        alone = encoder.encode([batch[index]])
        assert not alone.errors
        assert same(together.columns.rows(place, place + 1), alone.columns)
    for error in together.errors:
        (alone_error,) = encoder.encode([batch[error.index]]).errors
        assert (alone_error.reason, alone_error.detail) == (error.reason, error.detail)


@given(batches)
def test_encoded_columns_are_finite(batch: list[DecisionRequest]) -> None:
    columns = Encoder(OFFER).encode(batch).columns
    assert np.isfinite(columns.context).all()
    assert np.isfinite(columns.actions).all()


def test_encoding_is_pinned() -> None:
    row = request(
        {"age": 41.5, "country": "de", "note": "Größe XL?", "sku": "A-17", "embedding": Vector.of(0.1, -2)},
        [Candidate("a", {"price": 12.34, "title": "Red car"}), Candidate("b", {"stars": 4.5})],
    )
    columns = Encoder(OFFER).encode([row]).columns
    assert columns.context.tobytes().hex() == "000026420000803f00000000cdcccc3d000000c000000000"
    assert columns.actions.tobytes().hex() == "6dc54d3f000000000000000000009040"
    assert columns.context_tokens.tolist() == [
        1006819053,
        1369721938,
        1917938874,
        2007963399,
        1335278041,
        1394797064,
        1182319047,
        1751655065,
        1673769924,
        1710111291,
        1319266063,
    ]
    assert columns.action_tokens.tolist() == [
        2137216092,
        1833135368,
        1609550283,
        1950842503,
        1803213786,
        1384636462,
        1319834459,
        1820791727,
        1457990995,
    ]


def test_an_empty_batch_is_encoded() -> None:
    assert len(Encoder(OFFER).encode([]).columns) == 0
    assert len(Encoder(SUPPORT).encode([]).columns) == 0


def test_long_texts_and_too_many_tokens_are_counted() -> None:
    encoded = Encoder(SUPPORT).encode([DecisionRequest("d", "support", "s", {"text": "abcdefg " * 1000})])
    assert (encoded.num_cut, encoded.num_dropped) == (1, 0)
    many = " ".join(str(n) for n in range(900))
    assert Encoder(SUPPORT).encode([DecisionRequest("d", "support", "s", {"text": many})]).num_dropped == 1
