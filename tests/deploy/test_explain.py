"""The core of `headrace explain` on decisions of the real decide, and on logs that somebody altered."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deploy.audit_rules import judge_records
from deploy.explain import Explanation, explain
from deploy.explain_parts import RowShown, SnapshotShown
from deploy.explain_records import Evidence, Logged
from deploy.explain_scores import integer_bounds
from deploy.explain_view import view
from learner.policy.explore import Explorer
from schemas.arrays import Strings, empty
from schemas.blocks import DecisionBlock, OutcomeBlock, Tick
from schemas.keys import decision_key, outcome_key, partition_of, subject_key
from schemas.records import Candidate, DecisionRequest
from schemas.task import Project, Task, TaskTable, parse
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import parts_of
from streams.policy import Policy, _shadow_load
from tests.kafka.snapshot_topic import weights_of

TOML = """
[namespace]
name = "t"
partitions = 1
[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
baseline = "refund"
[tasks.context]
age = { kind = "number" }
text = { kind = "text" }
[tasks.reward]
window = "10s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
[[tasks]]
name = "offer"
[tasks.context]
age = { kind = "number" }
[tasks.action]
price = { kind = "number" }
[tasks.reward]
window = "10s"
min = 0.0
max = 1.0
[tasks.reward.outcomes.order]
aggregate = "max"
"""
NOW = 1_700_000_000_000


@pytest.fixture(scope="module")
def project() -> Project:
    return parse(TOML)


def request_of(name: str, task: str = "route") -> DecisionRequest:
    candidates = [Candidate(each, {"price": float(k)}) for k, each in enumerate("ab")] if task == "offer" else None
    context: dict[str, Any] = {"age": 40.0} | ({"text": "a lost card"} if task == "route" else {})
    return DecisionRequest(name, task, "someone", context, candidates)


def decided(project: Project, requests: list[DecisionRequest], policy: Policy | None = None) -> list[DecisionBlock]:
    """Journal blocks as the worker writes them."""
    decide = Decide(project.namespace, TaskTable(project.tasks), lambda block: 0)
    asked = [Asked(request, 0, offset, NOW) for offset, request in enumerate(requests)]
    groups = decide.batch(asked, Situation(now_ms=NOW, policy=policy)).groups
    return [
        part.block()
        for group in groups
        for _, part in parts_of(group.task, group.version, group.rows, group.columns, "t.requests")
    ]


def policy_of(task: Task) -> tuple[Policy, dict[str, Any]]:
    weights = weights_of(task, 2, num_rows=400.0)
    return Policy(7, b"7" * 32, NOW, _shadow_load({task.fingerprint: weights}, {task.fingerprint: task})), weights


def evidence_of(project: Project, block: DecisionBlock, row: int = 0, told: list[Any] | None = None) -> Evidence:
    """Evidence of one decision at journal offset 0, `told` after it, and log time well past its window."""
    task = TaskTable(project.tasks)[block.fingerprint]
    entries: list[tuple[int, int, object]] = [(0, NOW, block)]
    entries += [(1 + k, NOW + 1000 * (k + 1), each) for k, each in enumerate(told or [])]
    entries += [(100, NOW + 60_000, Tick())]
    return Evidence(
        decision_id=block.decision_ids[row],
        logged=Logged("t.journal", partition_of("someone", 1), 0, row, NOW, block),
        task=task,
        draw_key=bytes.fromhex(project.namespace.draw_key),
        request=request_of(block.decision_ids[row], task.name),
        request_where="t.requests/0/0",
        snapshot=None,
        weights=None,
        weights_absent="not looked for",
        judged=judge_records(entries, TaskTable(project.tasks)),
        outcome_blocks={offset: each for offset, _, each in entries if isinstance(each, OutcomeBlock)},
        accepted=None,
        trained=None,
    )


def outcome(decision_id: str, name: str, offset: int, subject: str = "someone") -> OutcomeBlock:
    key = np.array([decision_key(decision_id)] if decision_id else [(0, 0)], np.uint64)
    return OutcomeBlock(
        source_topic="t.outcomes",
        source_partition=0,
        source_offsets=np.array([offset], np.int64),
        outcome_keys=np.array([outcome_key(name)], np.uint64),
        subject_keys=np.array([subject_key(subject)], np.uint64),
        decision_keys=key,
        action_keys=empty(np.uint64, 1) * 0,
        slots=np.array([-1], np.int32),
        types=np.array([0], np.int32),
        values=np.array([1.0]),
        times_ms=np.array([0], np.int64),
        type_names=("resolved",),
        outcome_ids=Strings.of([name]),
    )


def altered(evidence: Evidence, **columns: Any) -> Evidence:
    """The same evidence with other decision columns in the journal."""
    block = evidence.logged.block
    changed = replace(block, columns=replace(block.columns, **columns))
    return replace(evidence, logged=replace(evidence.logged, block=changed))


@pytest.mark.parametrize("task", ["route", "offer"])
def test_a_baseline_decision_follows_from_its_request_and_its_key(project: Project, task: str) -> None:
    (block,) = decided(project, [request_of(f"d{k}", task) for k in range(40)])
    for row in range(len(block)):
        shown = explain(evidence_of(project, block, row))
        assert shown.faults == []
        assert shown.reason == "no-snapshot"
        assert shown.draws[0].agrees
        assert shown.scores.num_equal == shown.scores.num_integers
        assert shown.request.encodes_equal
        assert shown.bucket == "defaulted"


def test_scores_and_integers_of_the_policy_are_recomputed_from_its_weights(project: Project) -> None:
    task = project.task("route")
    policy, weights = policy_of(task)
    (block,) = decided(project, [request_of(f"d{k}") for k in range(200)], policy)
    explored = 0
    for row in range(len(block)):
        shown = explain(replace(evidence_of(project, block, row), weights=weights))
        assert shown.faults == []
        assert shown.scores.state == "equal"
        assert [round(each.score or 0.0, 9) for each in shown.candidates] == [0.0, 0.0, 1.0]
        assert set(shown.candidates[0].by_expert) == {"wide"}
        explored += not shown.candidates[2].chosen_in
    assert 0 < explored < 100


def test_weights_within_the_tolerance_agree_and_others_do_not(project: Project) -> None:
    task = project.task("route")
    policy, weights = policy_of(task)
    (block,) = decided(project, [request_of("d")], policy)
    evidence = evidence_of(project, block)
    first_row = np.array([[1.0], [0.0]])  # of the constant: what is added there is added to the score
    near = weights | {"wide": weights["wide"] + first_row * np.array([4e-5, -4e-5, 0.0])}
    shown = explain(replace(evidence, weights=near))
    assert shown.scores.state == "within the tolerance", shown.scores
    assert shown.faults == []
    far = weights | {"wide": weights["wide"] + first_row * np.array([1e-3, 0.0, 0.0])}
    shown = explain(replace(evidence, weights=far))
    assert shown.scores.state == "outside"
    assert "do not follow from the policy" in shown.faults[0]


def test_bounds_of_integers_hold_every_score_within_the_tolerance(project: Project) -> None:
    task = project.task("route")
    random = np.random.default_rng(5)
    explorer = Explorer.of(weights_of(task, 2, num_rows=400.0), task)
    sizes, allowed = np.array([3], np.int32), np.ones(3, np.bool_)
    for _ in range(200):
        scores = random.normal(size=3) * 0.01
        low, high = integer_bounds(scores, sizes, allowed, explorer, 1e-3)
        for _ in range(20):
            integers = explorer.integers(scores + random.uniform(-1e-3, 1e-3, 3), sizes, allowed)
            assert (low <= integers).all()
            assert (integers <= high).all()


def test_another_choice_than_the_draws_is_told(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    evidence = evidence_of(project, block)
    other = (block.columns.chosen + 1) % 3
    shown = explain(altered(evidence, chosen=other))
    assert "the draw chooses candidate" in shown.faults[0]


def test_integers_that_do_not_sum_to_one_or_do_not_follow_are_told(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    evidence = evidence_of(project, block)
    moved = block.columns.propensities + np.array([5, -5, 0], np.int32)
    assert any("do not follow" in fault for fault in explain(altered(evidence, propensities=moved)).faults)
    short = block.columns.propensities - np.array([1, 0, 0], np.int32)
    assert any("integers sum to 16777215" in fault for fault in explain(altered(evidence, propensities=short)).faults)


def test_features_that_are_not_the_requests_are_told(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    features = replace(block.columns.features, context=block.columns.features.context + np.float32(1))
    shown = explain(altered(evidence_of(project, block), features=features))
    assert shown.request.difference == "context"
    assert "other features" in shown.faults[0]


def test_without_the_request_nothing_is_claimed_of_it(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    shown = explain(replace(evidence_of(project, block), request=None))
    assert shown.request.encodes_equal is None
    assert shown.faults == []


def test_outcomes_carry_their_bucket_and_whether_they_count_here(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    told = [
        outcome("d", "first", 0),
        outcome("d", "first", 1),
        outcome("", "by subject", 2),
        outcome("d", "wrong subject", 3, "another"),
        outcome("elsewhere", "not ours", 4),
    ]
    shown = explain(evidence_of(project, block, told=told))
    assert [(each.outcome_id, each.bucket, each.counts_here) for each in shown.outcomes] == [
        ("first", "used", True),
        ("first", "duplicate", False),
        ("by subject", "used", True),
        ("wrong subject", "conflict", False),
    ]
    assert shown.bucket == "joined"


def test_a_transition_that_says_something_else_is_told(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    row = RowShown("t.transitions/0/5 row 0", 5, "joined", [1.0], 1, NOW + 10_000, False)
    shown = explain(replace(evidence_of(project, block), accepted=row))
    assert "the transition says joined, the journal defaulted" in shown.faults
    assert "the transition counts 1 outcomes, the journal 0" in shown.faults


def test_a_wrong_signature_and_a_second_content_are_told(project: Project) -> None:
    (block,) = decided(project, [request_of("d")])
    snapshot = SnapshotShown(7, "aa", "", "main", "t.snapshots/0/1", NOW, 7, "", "", "wrong", "00", ["bb"])
    faults = explain(replace(evidence_of(project, block), snapshot=snapshot)).faults
    assert any("signature of version 7" in fault for fault in faults)
    assert any("equivocation" in fault for fault in faults)


def test_a_repeated_decision_names_the_one_that_counts(project: Project) -> None:
    first, second = decided(project, [request_of("d")]), decided(project, [request_of("d")])
    evidence = evidence_of(project, first[0], told=[second[0]])
    again = replace(evidence, logged=replace(evidence.logged, offset=1, block=second[0]))
    shown = explain(again)
    assert shown.duplicate_of == 0
    assert shown.bucket == "duplicate"


def test_the_page_names_everything_and_the_json_is_plain(project: Project) -> None:
    import orjson

    policy, weights = policy_of(project.task("route"))
    (block,) = decided(project, [request_of("d")], policy)
    shown: Explanation = explain(replace(evidence_of(project, block, told=[outcome("d", "o", 0)]), weights=weights))
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(view(shown))
    page = console.export_text()
    for word in ("a lost card", "age = 40", "draw, slot 0", "other", "resolved", "used", "everything that can be"):
        assert word in page
    assert orjson.loads(orjson.dumps(shown.as_json()))["decision_id"] == "d"
