"""The token × token expert against its equations written out, one row at a time."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest

from learner.chosen import Chosen, chosen_of
from learner.cross import CURVATURE_MIN, PRECISION_LOGISTIC, SHARE, Cross
from learner.experts import chosen_cross
from learner.policy import token_crosses
from tests.learner.learner_worlds import catalogue_rows, catalogue_task

BITS = 10


def rows_of(n: int, seed: int) -> Chosen:
    task = catalogue_task(width=1, num_actions=3)
    return chosen_of(catalogue_rows(task, n, seed), task)


def by_hand(rows: Chosen, default: float) -> dict[str, np.ndarray]:
    """Plain Python, dictionaries by slot."""
    weights = {0: {}, 1: {}}
    precision = {0: {}, 1: {}}
    df: dict[int, float] = {}
    num, total = 0, 0.0
    for i in range(len(rows)):
        tokens = rows.x_tokens[rows.x_bounds[i] : rows.x_bounds[i + 1]].tolist()
        values = [max(log((num + 1.0) / (df.get(token_crosses.idf_slot(t), 0.0) + 0.5)), 0.0) for t in tokens]
        values = [float(np.float32(value)) for value in values]
        norm = sqrt(sum(value * value for value in values))
        values = [value / norm if norm else 0.0 for value in values]
        action = np.uint64(token_crosses.action_hash(int(rows.id_tokens[i])))
        shift = np.uint64(64 - BITS)
        hashes = [np.uint64(token_crosses.context_hash(t)) for t in tokens]
        slots = [int(token_crosses.slot_of(h, action, shift)) for h in hashes]
        base = (total + default) / (num + 1.0)
        for link, prior in ((0, 1.0 / SHARE), (1, PRECISION_LOGISTIC)):
            w, p = weights[link], precision[link]
            score = sum(w.get(slot, 0.0) * value for slot, value in zip(slots, values, strict=True))
            spread = sum(v * v / p.get(slot, prior) for slot, v in zip(slots, values, strict=True))
            curvature, error = 1.0, rows.y[i] - base - score
            if link:
                probability = 1.0 / (1.0 + exp(-score))
                curvature, error = max(probability * (1 - probability), CURVATURE_MIN), rows.y[i] - probability
            gain = error / (1.0 + curvature * spread)
            for slot, value in zip(slots, values, strict=True):
                w[slot] = w.get(slot, 0.0) + value / p.get(slot, prior) * gain
            for slot, value in zip(slots, values, strict=True):
                p[slot] = p.get(slot, prior) + curvature * value * value
        num, total = num + 1, total + rows.y[i]
        for token in tokens:
            df[token_crosses.idf_slot(token)] = df.get(token_crosses.idf_slot(token), 0.0) + 1.0
    table = np.zeros((1 << BITS, 2))
    for link in (0, 1):
        for slot, value in weights[link].items():
            table[slot, link] = value
    return {"cross": table, "base": np.array((total + default) / (num + 1.0))}


def test_tables_follow_the_sequential_equations() -> None:
    rows = rows_of(300, seed=1)
    cross = Cross(BITS, logistic=True, has_text=True)
    cross.learn(rows, 0.25)
    ours, theirs = cross.weights(0.25), by_hand(rows, 0.25)
    np.testing.assert_allclose(ours["cross"], theirs["cross"], atol=1e-5)
    assert float(ours["base"]) == pytest.approx(float(theirs["base"]))


def test_any_split_of_rows_gives_the_same_tables() -> None:
    rows = rows_of(200, seed=2)
    whole, split = (Cross(BITS, logistic=True, has_text=True) for _ in range(2))
    whole.learn(rows, 0.0)
    for start in range(0, 200, 7):
        split.learn(rows.rows(start, min(200, start + 7)), 0.0)
    for name, array in whole.state().items():
        assert array.tobytes() == split.state()[name].tobytes(), name


def test_idf_counts_a_row_only_after_it_was_learnt() -> None:
    cross = Cross(BITS, logistic=False, has_text=True)
    row = rows_of(1, seed=3)
    before = cross.weights(0.0)["cross_idf"]
    cross.learn(row, 0.0)
    after = cross.weights(0.0)["cross_idf"]
    slot = token_crosses.idf_slot(int(row.x_tokens[0]))
    assert before[slot] == pytest.approx(log(1.0 / 0.5))
    assert after[slot] <= log(2.0 / 1.5) + 1e-6


def test_progressive_predictions_do_not_see_rows_of_their_own_step() -> None:
    rows = rows_of(600, seed=4)
    cross = Cross(BITS, logistic=True, has_text=True)
    first, second = rows.rows(0, 256), rows.rows(256, 512)
    cross.learn(first, 0.0)
    cross.freeze(first)
    before = chosen_cross(second, cross.progressive(0.0))
    cross.learn(second, 0.0)
    for left, right in zip(before, chosen_cross(second, cross.progressive(0.0)), strict=True):
        assert left.tobytes() == right.tobytes()
    cross.freeze(second)
    now = cross.progressive(0.0)
    np.testing.assert_array_equal(now["cross"].astype(np.float32), cross.weights(0.0)["cross"])
    np.testing.assert_array_equal(now["cross_idf"], cross.weights(0.0)["cross_idf"])


def test_each_side_has_norm_one_and_the_id_shares_it_with_the_actions_own_tokens() -> None:
    bounds = np.array([0, 3, 3])
    tokens, values = np.array([1, 2, 3], np.int32), np.array([3.0, 4.0, 12.0], np.float32)
    ids, none = np.array([7, 8]), np.zeros(0, np.float32)
    out_bounds, _, weights = token_crosses.weigh_side(bounds, tokens, values, none, ids, True)
    assert out_bounds.tolist() == [0, 4, 5]
    np.testing.assert_allclose(weights[:4], np.array([3, 4, 12, 13]) / 13 * sqrt(0.5))
    assert weights[4] == 1.0


def test_sums_over_the_table_equal_the_crosses_written_out() -> None:
    rng = np.random.default_rng(5)
    table = rng.standard_normal((1 << BITS, 2)).astype(np.float32)
    counts = np.array([2, 3], np.int32)
    none_f, none_i = np.zeros(0, np.float32), np.zeros(0, np.int64)

    def side(owners: int, is_action: bool) -> token_crosses.Tokens:
        bounds = token_crosses.bounds_of(rng.integers(0, 4, owners).astype(np.int32))
        tokens = rng.integers(0, 99, bounds[-1]).astype(np.int32)
        return token_crosses.weigh_side(bounds, tokens, np.ones(bounds[-1], np.float32), none_f, none_i, is_action)

    x, a = side(2, False), side(5, True)
    ours = token_crosses.sums(table, counts, False, *x, *a)
    owners, slots, values = token_crosses.places(BITS, counts, False, *x, *a)
    theirs = np.zeros((5, 2))
    np.add.at(theirs, owners, table[slots] * values[:, None])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_drift_widens_the_posterior_and_keeps_the_weights() -> None:
    cross = Cross(BITS, logistic=True, has_text=True)
    cross.learn(rows_of(100, seed=6), 0.0)
    before = cross.state()
    cross.forget()
    after = cross.state()
    prior = np.array([1 / SHARE, PRECISION_LOGISTIC])
    np.testing.assert_allclose(after["precision"] - prior, (before["precision"] - prior) * 0.1, atol=1e-15)
    np.testing.assert_array_equal(after["w"], before["w"])


def test_drift_however_often_leaves_what_no_row_has_shown_at_the_prior() -> None:
    cross = Cross(BITS, logistic=True, has_text=True)
    cross.learn(rows_of(100, seed=6), 0.0)
    for _ in range(400):
        cross.forget()
    np.testing.assert_allclose(cross.state()["precision"], np.tile([1 / SHARE, PRECISION_LOGISTIC], (1 << BITS, 1)))

    cross.learn(rows_of(100, seed=7), 0.0)

    assert np.isfinite(cross.state()["w"]).all()
