"""Probes: what travels with a snapshot so that a worker can see that it computes what the learner meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.policy import network, probes
from learner.policy.serving import Forward
from schemas import weights as tensors
from schemas.task import Task, parse
from tests.learner.transition_rows import block

TOML = """
[namespace]
name = "made-up"
[[tasks]]
name = "one"
[tasks.context]
x = { kind = "vector", size = 3 }
[tasks.action]
a = { kind = "vector", size = 2 }
[tasks.learner]
deep = false
cross = false
[tasks.reward]
window = "1s"
min = -1.0
max = 3.0
[tasks.reward.outcomes.order]
aggregate = "sum"
"""
TASK: Task = parse(TOML).tasks[0]
FINGERPRINT = TASK.fingerprint
TASKS = {FINGERPRINT: TASK}
Arrays = dict[str, np.ndarray[Any, Any]]


def policy(seed: int = 1) -> Arrays:
    generator = np.random.Generator(np.random.PCG64(seed))
    return {
        "stats": np.array([500.0, 0.2, 0.25, 1e-6, 0.0, 0.0]),
        "stack": np.ones(1),
        "action_rows": np.zeros(0, np.int64),
        "x_mean": np.zeros(3),
        "x_scale": np.full(3, 0.1),
        "a_mean": np.zeros(2),
        "a_scale": np.full(2, 0.1),
        "wide": generator.normal(size=(4, 3)) * 0.1,
    }


def rows(count: int) -> Any:
    """Decisions of `TASK`, which has no tokens."""
    columns = block(list(range(count)), list(range(count))).columns
    none: dict[str, Any] = {name: getattr(columns.features, name)[:0] for name in probes.COLUMNS if "token" in name}
    return replace(columns, features=replace(columns.features, **none))


def packed(count: int = 40, weights: Arrays | None = None) -> bytes:
    return probes.pack({FINGERPRINT: probes.newest(rows(count))}, TASKS, {FINGERPRINT: weights or policy()})


def test_same_policy_on_the_same_machine_passes() -> None:
    assert probes.check(packed(), TASKS, {FINGERPRINT: policy()}) is None


def test_what_serves_is_held_to_the_learners_scores_too() -> None:
    task = TASKS[FINGERPRINT]
    right, wrong = (Forward.of(policy(seed), task).scores for seed in (1, 2))
    assert probes.check(packed(), TASKS, {FINGERPRINT: policy()}, {FINGERPRINT: right}) is None
    reason = probes.check(packed(), TASKS, {FINGERPRINT: policy()}, {FINGERPRINT: wrong})
    assert reason is not None
    assert "served scores differ by" in reason


def test_probes_whose_token_counts_are_too_high_are_not_computed() -> None:
    arrays, _ = tensors.unpack(packed())
    changed = {name: np.array(array) for name, array in arrays.items()}
    changed[f"{FINGERPRINT.hex()}/context_token_counts"] = np.full(16, 1 << 30, np.int32)
    reason = probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()})
    assert reason is not None
    assert "do not fit the task" in reason


@pytest.mark.parametrize("name", ["action_keys", "actions"])
def test_probes_that_lack_a_column_of_the_task_are_not_computed(name: str) -> None:
    arrays, _ = tensors.unpack(packed())
    changed = {name: np.array(array) for name, array in arrays.items()}
    changed[f"{FINGERPRINT.hex()}/{name}"] = changed[f"{FINGERPRINT.hex()}/{name}"][:0]
    reason = probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()})
    assert reason is not None
    assert "do not fit the task" in reason


def test_probes_of_other_types_reach_no_compiled_loop() -> None:
    arrays, _ = tensors.unpack(packed())
    changed = {name: np.array(array) for name, array in arrays.items()}
    name = f"{FINGERPRINT.hex()}/num_candidates"
    changed[name] = changed[name].astype(np.int64)

    def never(features: Any) -> Any:
        raise AssertionError(features)

    reason = probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()}, {FINGERPRINT: never})
    assert reason is not None
    assert "do not fit the task" in reason


def test_newest_rows_are_taken_whatever_the_split() -> None:
    whole = probes.newest(rows(40))
    parts = None
    for start, stop in ((0, 3), (3, 4), (4, 31), (31, 40)):
        parts = probes.newest(rows(40).rows(start, stop), parts)
    assert parts is not None
    assert len(whole) == probes.NUM_PROBES
    for name in probes.COLUMNS:
        np.testing.assert_array_equal(getattr(whole.features, name), getattr(parts.features, name))
    np.testing.assert_array_equal(whole.allowed, parts.allowed)


def test_scores_within_the_tolerance_of_the_rewards_range_pass_and_beyond_it_do_not() -> None:
    reference = packed()
    for shift, passes in ((3e-4, True), (5e-4, False)):
        shifted = policy()
        shifted["wide"][0, 0] += shift
        reason = probes.check(reference, TASKS, {FINGERPRINT: shifted})
        assert (reason is None) == passes, reason


def test_masked_candidate_has_no_share_in_the_integers() -> None:
    columns = rows(16)
    two = int(np.flatnonzero(columns.features.num_candidates == 2)[0])
    first = int(columns.features.num_candidates[:two].sum())
    propensities = columns.propensities.copy()
    propensities[first : first + 2] = (1 << 24, 0)
    object.__setattr__(columns, "propensities", propensities)
    payload = probes.pack({FINGERPRINT: probes.newest(columns)}, TASKS, {FINGERPRINT: policy()})
    arrays, _ = tensors.unpack(payload)
    assert arrays[f"{FINGERPRINT.hex()}/allowed"][first : first + 2].tolist() == [1, 0]
    assert arrays[f"{FINGERPRINT.hex()}/integers"][first : first + 2].tolist() == [1 << 24, 0]


def test_integers_that_do_not_follow_from_the_stored_scores_are_refused() -> None:
    arrays, _ = tensors.unpack(packed())
    changed = {name: np.array(array) for name, array in arrays.items()}
    name = next(name for name in changed if name.endswith("/integers"))
    several = int(np.flatnonzero(np.abs(np.diff(changed[name])) > 0)[0])
    changed[name][several] += 1
    reason = probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()})
    assert reason is not None
    assert "integers computed from the stored scores differ" in reason


@pytest.mark.parametrize("column", ["scores", "num_candidates", "context", "allowed"])
def test_malformed_probes_are_a_reason_and_no_exception(column: str) -> None:
    arrays, _ = tensors.unpack(packed())
    changed = {name: np.array(array) for name, array in arrays.items()}
    changed[f"{FINGERPRINT.hex()}/{column}"] = changed[f"{FINGERPRINT.hex()}/{column}"][:-2]
    assert probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()}) is not None
    del changed[f"{FINGERPRINT.hex()}/{column}"]
    assert probes.check(tensors.pack(changed, {}), TASKS, {FINGERPRINT: policy()}) is not None
    assert probes.check(b"nothing of the kind", TASKS, {FINGERPRINT: policy()}) is not None
    stranger = {f"not hexadecimal/{column}": np.zeros(1)}
    assert probes.check(tensors.pack(stranger, {}), TASKS, {FINGERPRINT: policy()}) is not None


def test_probes_of_a_task_that_the_reader_does_not_know_are_passed_over() -> None:
    assert probes.check(packed(), {}, {}) is None


def test_rows_beyond_the_byte_budget_stay_behind_newest_first() -> None:
    inputs = probes.newest(rows(16))
    sizes = probes.row_sizes(inputs.features)
    kept = probes.within(inputs, int(sizes[-3:].sum()))
    assert kept is not None
    assert len(kept) == 3
    assert len(kept.allowed) == int(kept.features.num_candidates.sum())
    np.testing.assert_array_equal(kept.features.context, inputs.features.context[-3:])
    assert probes.within(inputs, int(sizes[-1]) - 1) is None


def test_estimated_size_covers_what_is_packed() -> None:
    inputs = probes.newest(rows(16))
    payload = probes.pack({FINGERPRINT: inputs}, TASKS, {FINGERPRINT: policy()})
    header = 4096
    assert len(payload) <= int(probes.row_sizes(inputs.features).sum()) + header


def test_forward_pass_of_probes_is_the_workers() -> None:
    arrays, _ = tensors.unpack(packed())
    features = probes.newest(rows(40)).features
    np.testing.assert_array_equal(arrays[f"{FINGERPRINT.hex()}/scores"], network.scores(policy(), TASK, features))
