"""The forward pass: numpy and torch agree, prepared and published arrays agree, what is trained is what serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numba import njit

from learner.chosen import chosen_of
from learner.experts import deep_rows
from learner.policy import explain, network, serving_kernels, shapes
from learner.policy.serving import Forward
from schemas.blocks import TransitionBlock
from schemas.decision_columns import FeatureColumns
from schemas.records import DecisionRequest, Vector
from schemas.task import Task
from streams.features import Encoder
from tests.learner.learner_worlds import (
    block_of,
    catalogue_features,
    catalogue_rows,
    catalogue_task,
    dense_features,
    dense_rows,
    dense_task,
    learnt,
    task_of,
)

VECTOR = "{{ kind = 'vector', size = {} }}"


def tokens_task() -> Task:
    """Tokens and vectors on both sides, candidates with the request."""
    return task_of(
        f"x = {VECTOR.format(3)}\nt = {{ kind = 'text' }}",
        f"a = {VECTOR.format(2)}\ns = {{ kind = 'category' }}",
        learner="cross_bits = 12",
    )


def tokens_rows(task: Task, n: int, seed: int) -> TransitionBlock:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, n).astype(np.int32)
    x_counts, a_counts = (rng.integers(0, 4, size).astype(np.int32) for size in (n, int(counts.sum())))
    num = int(counts.sum())
    features = FeatureColumns(
        context=rng.standard_normal((n, 3)).astype(np.float32),
        num_candidates=counts,
        actions=rng.standard_normal((num, 2)).astype(np.float32),
        action_keys=np.arange(1, num + 1).astype(np.uint64),
        context_token_counts=x_counts,
        context_tokens=(rng.integers(0, 30, x_counts.sum()) + (1 << 30)).astype(np.int32),
        context_token_values=np.ones(x_counts.sum(), np.float32),
        action_token_counts=a_counts,
        action_tokens=rng.integers(0, 30, a_counts.sum()).astype(np.int32),
        action_token_values=np.ones(a_counts.sum(), np.float32),
    )
    return block_of(task, features, rng.integers(0, counts), (rng.random(n) < 0.4).astype(float))


def blocks_task() -> Task:
    return catalogue_task(width=60, num_actions=50)


def vast_task() -> Task:
    return catalogue_task(width=120, num_actions=500)


def projected_task() -> Task:
    return dense_task(width=48, learner="deep = false")


CASES: dict[str, tuple[Callable[[], Task], Callable[[Task, int, int], TransitionBlock]]] = {
    "dense": (dense_task, dense_rows),
    "catalogue": (catalogue_task, catalogue_rows),
    "tokens": (tokens_task, tokens_rows),
    "blocks": (blocks_task, catalogue_rows),
    "projected": (projected_task, dense_rows),
    "projected blocks": (vast_task, catalogue_rows),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Task, dict[str, np.ndarray], TransitionBlock]:
    return _case(request.param)


@cache
def _case(name: str) -> tuple[Task, dict[str, np.ndarray], TransitionBlock]:
    make_task, make_rows = CASES[name]
    task = make_task()
    return task, learnt(task, make_rows(task, 600, 1)).weights(), make_rows(task, 40, 2)


def test_numpy_and_torch_agree(case: tuple[Task, dict[str, np.ndarray], TransitionBlock]) -> None:
    task, weights, rows = case
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    features = rows.columns.features
    ours, theirs = network.scores(weights, task, features), network.scores(tensors, task, features)
    assert isinstance(theirs, torch.Tensor)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_one_decision_at_a_time_gives_the_same_scores(
    case: tuple[Task, dict[str, np.ndarray], TransitionBlock],
) -> None:
    task, weights, rows = case
    features = rows.columns.features
    ready = network.prepare(weights, task)
    assert network.prepare(ready, task) is ready
    single = [network.scores(ready, task, features.rows(i, i + 1)) for i in range(len(features))]
    np.testing.assert_allclose(np.concatenate(single), network.scores(weights, task, features), atol=1e-6)


def _noisy(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with noise in every array, so that no term is zero."""
    rng = np.random.default_rng(4)
    return {name: (array + rng.standard_normal(array.shape)).astype(array.dtype) for name, array in weights.items()}


def _wild(features: FeatureColumns) -> FeatureColumns:
    """Features up to the clip."""
    return replace(features, context=features.context * np.float32(100), actions=features.actions * np.float32(100))


def test_a_worker_scores_as_the_forward_pass(case: tuple[Task, dict[str, np.ndarray], TransitionBlock]) -> None:
    task, weights, rows = case
    features = rows.columns.features
    for arrays in (weights, _noisy(weights)):
        forward, ready = Forward.of(arrays, task), network.prepare(arrays, task)
        for batch in (features, _wild(features)):
            ours, theirs = forward.scores(batch), network.scores(ready, task, batch)
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(theirs).max()))


def test_the_scores_of_a_row_are_the_same_bits_in_any_batch(
    case: tuple[Task, dict[str, np.ndarray], TransitionBlock],
) -> None:
    task, weights, rows = case
    features = rows.columns.features
    for arrays in (weights, _noisy(weights)):
        forward = Forward.of(arrays, task)
        for batch in (features, _wild(features)):
            whole = forward.scores(batch).tobytes()
            for size in (1, 3, 16):
                cuts = [batch.rows(i, min(i + size, len(batch))) for i in range(0, len(batch), size)]
                assert b"".join(forward.scores(cut).tobytes() for cut in cuts) == whole


@pytest.mark.parametrize("name", CASES)
def test_what_is_judged_is_what_serves(name: str) -> None:
    """Wide and deep predictions of the chosen action by the learner's own code equal the published forward pass."""
    make_task, make_rows = CASES[name]
    task = make_task()
    learner, rows = learnt(task, make_rows(task, 512, 3)), make_rows(task, 40, 2)
    last_solve = learner._wide._published(learner._wide._wide.weights, learner._wide.scalings)
    ready = network.prepare(learner.weights() | last_solve, task)
    features = rows.columns.features
    by_expert = network.expert_scores(ready, features)
    firsts = np.cumsum(features.num_candidates) - features.num_candidates
    taken = firsts + rows.columns.chosen[:, 0]
    step = chosen_of(rows, task)
    np.testing.assert_allclose(learner._wide.predict(step), by_expert[taken, 0], atol=1e-9)
    if learner._deep is not None:
        judged = learner._deep.predict(deep_rows(step, ready.get("cross_idf"), task), *learner._wide.scalings)
        np.testing.assert_allclose(judged, by_expert[taken, 1], atol=1e-5)


def test_published_arrays_have_documented_dtypes(case: tuple[Task, dict[str, np.ndarray], TransitionBlock]) -> None:
    task, weights, _ = case
    assert shapes.fault_of(weights, task) is None
    assert network.__doc__ is not None
    for name, array in weights.items():
        assert name in network.__doc__
        assert array.dtype in (np.float32, np.float64, np.int64)
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()


def test_the_compiled_silu_is_as_near_as_it_says() -> None:
    @njit(error_model="numpy")
    def silu_of(values: np.ndarray) -> np.ndarray:
        out = np.empty_like(values)
        for i in range(len(values)):
            out[i] = serving_kernels._silu(values[i])
        return out

    x = np.linspace(-60, 60, 200_001).astype(np.float32)
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    assert (np.abs(silu_of(x) - exact) / np.maximum(1, np.abs(x))).max() <= 4e-7


@pytest.mark.parametrize("name", ["x_projection", "a_projection", "deep_w2"])
def test_empty_arrays_that_the_compiled_pass_would_take_for_none_are_refused(name: str) -> None:
    task, weights, _ = _case("projected" if "projection" in name else "dense")
    assert shapes.fault_of(weights, task) is None
    empty = {
        "x_projection": {"x_projection": np.zeros((task.context.width, 0)), "wide": weights["wide"][:1]},
        "a_projection": {"a_projection": np.zeros((task.action.width, 0)), "wide": weights["wide"][:, :1]},
        "deep_w2": {each: array[..., :0] for each, array in weights.items() if each.startswith("deep_")}
        | {"deep_w2": np.zeros((0, 0), np.float32), "deep_norm": weights.get("deep_norm")},
    }
    assert shapes.fault_of(weights | empty[name], task) == f"array {name} is empty: leave it out"


def test_an_explanation_adds_up_to_the_scores(case: tuple[Task, dict[str, np.ndarray], TransitionBlock]) -> None:
    task, weights, rows = case
    features = rows.columns.features.rows(3, 4)
    explained = explain.explain(weights, task, features)
    scores = network.scores(weights, task, features)
    np.testing.assert_allclose(explained.scores, scores, atol=1e-12)
    assert explained.by_expert.shape == (len(scores), len(explained.experts))
    terms = explain.candidate_terms(weights, task, features, 0)
    if "cross" in weights:
        ready = network.prepare(weights, task)
        linear = network.expert_scores(ready, features)[0, explained.experts.index("cross linear")]
        share = weights["stack"][explained.experts.index("cross linear")]
        base = weights["stats"][network.CROSS_BASE]
        assert terms.linear.sum() == pytest.approx(share * (linear - base), abs=1e-9)
    if "x_projection" not in weights:
        assert len(terms.wide) == task.context.width


@pytest.mark.parametrize("text", ["", " ?! "])
def test_a_context_without_a_token_explains_with_zeros(text: str) -> None:
    task = catalogue_task()
    weights = learnt(task, catalogue_rows(task, 300, 4)).weights()
    request = DecisionRequest("d", task.name, "s", {"words": text, "x": Vector(np.zeros(4, np.float32))})
    terms = explain.candidate_terms(weights, task, Encoder(task).encode([request]).columns, 0)
    assert (terms.tokens.size, terms.linear.size, terms.logistic.size) == (0, 0, 0)


def test_explaining_asks_for_one_decision_and_one_of_its_candidates() -> None:
    task = dense_task()
    weights = learnt(task, dense_rows(task, 300, 4)).weights()
    rng = np.random.default_rng(5)
    features = dense_features(rng.standard_normal((2, 6)), rng.standard_normal((2, 3, 6)))
    with pytest.raises(ValueError, match="expected one decision, got 2"):
        explain.explain(weights, task, features)
    with pytest.raises(ValueError, match="candidate below 3, got 3"):
        explain.candidate_terms(weights, task, features.rows(0, 1), 3)


def test_a_context_without_tokens_gets_the_base() -> None:
    task = catalogue_task()
    weights = learnt(task, catalogue_rows(task, 600, 6)).weights()
    features = catalogue_features(np.zeros((2, 4)), np.zeros((2, 0)), 5)
    ready = network.prepare(weights, task)
    by_expert = network.expert_scores(ready, features)
    np.testing.assert_allclose(by_expert[:, 2], weights["stats"][network.CROSS_BASE])
    np.testing.assert_allclose(by_expert[:, 3], 0.5)


def test_values_beyond_ten_deviations_end_there() -> None:
    task = dense_task()
    weights = learnt(task, dense_rows(task, 1_024, 7)).weights()
    z = network.standardised(weights, "x", np.full((1, 6), 1e30, np.float32))
    assert np.array_equal(z, np.full((1, 6), 10.0))
