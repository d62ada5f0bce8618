"""The decide core: every request is answered once, with the true propensity and the exact reason."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.policy import explore
from schemas import keys
from schemas import task as tasks
from schemas.arrays import Strings
from schemas.blocks import DecisionBlock
from schemas.codec import decode, encode
from schemas.decision_columns import PROPENSITY_ONE
from schemas.keys import DRAW_ACTION, draw, partition_of
from schemas.records import Candidate, DecisionRequest, Reason
from schemas.registry import FileRegistry
from schemas.task import TaskTable
from streams import decide as module
from streams.decide import Asked, Decide, Decided, Situation
from streams.decision_blocks import BLOCK_BYTES_MAX, _packed_text, bytes_ceiling_of, bytes_max_of, parts_of
from streams.policy import Loaded, Policy

PROJECT = tasks.parse("""
[namespace]
name = "shop"
partitions = 4

[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
baseline = "refund"
[tasks.context]
text = { kind = "text" }
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true

[[tasks]]
name = "offer"
guardrails = [{ name = "stock", allow_if = "action.stock > 0" }]
[tasks.context]
age = { kind = "number" }
[tasks.action]
price = { kind = "number" }
embedding = { kind = "vector", size = 4000 }
[tasks.reward]
window = "1h"
[tasks.reward.outcomes.order]
aggregate = "max"
binary = true
""")
REGISTRY = FileRegistry()
KEY = bytes.fromhex(PROJECT.namespace.draw_key)
NOW = 1_700_000_000_000
VERSION = 7


def _decide() -> Decide:
    return Decide(PROJECT.namespace, TaskTable(PROJECT.tasks), lambda block: len(encode(block, REGISTRY)))


def _asked(request: DecisionRequest, offset: int = 0, age_ms: int = 0) -> Asked:
    return Asked(request, partition_of(request.subject, 3), offset, NOW - age_ms)


def _route(number: int = 0, **fields: Any) -> DecisionRequest:
    return DecisionRequest(f"r{number}", "route", f"subject-{number % 5}", {"text": "my card is lost"}, **fields)


def _offer(number: int = 0, size: int = 3, stock: float = 1.0, **fields: Any) -> DecisionRequest:
    candidates = [Candidate(f"a{k}", {"price": float(k), "stock": stock}) for k in range(size)]
    return DecisionRequest(f"o{number}", "offer", f"subject-{number % 5}", {"age": 3.0}, candidates, **fields)


@pytest.fixture
def policy() -> Policy:
    """Scores that depend on place only; SquareCB with γ = 50."""

    def scores(features: Any) -> np.ndarray:
        return np.concatenate([np.arange(count) / 10 for count in features.num_candidates])

    forward: Any = SimpleNamespace(scores=scores)
    explorer = explore.Explorer(explore.SQUARECB, 50.0, np.zeros(0, np.bool_))
    fingerprints = [task.fingerprint for task in PROJECT.tasks]
    return Policy(VERSION, b"", 0, dict.fromkeys(fingerprints, Loaded({}, forward, explorer)))


def _one(request: DecisionRequest, situation: Situation, age_ms: int = 0) -> tuple[Decided, Any]:
    decided = _decide().batch([_asked(request, age_ms=age_ms)], situation)
    answers = [answer for group in decided.groups for answer in group.decisions]
    answers += [each.decision for each in decided.unjournaled]
    assert len(answers) == 1
    return decided, answers[0]


def test_a_policy_decides_with_the_propensity_it_was_drawn_with(policy: Policy) -> None:
    decided, answer = _one(_offer(), Situation(NOW, policy))
    (group,) = decided.groups
    integers = group.columns.propensities
    number = draw(KEY, DRAW_ACTION, 0, "offer", "o0")
    chosen = int(np.searchsorted(np.cumsum(integers), number, side="right"))
    assert answer.actions == [f"a{chosen}"]
    assert answer.propensities == [integers[chosen] / PROPENSITY_ONE]
    assert integers.sum() == PROPENSITY_ONE
    assert (answer.reason, answer.snapshot_version) == ("policy", VERSION)


def test_without_a_snapshot_the_baseline_has_one_minus_epsilon(policy: Policy) -> None:
    decided, answer = _one(_route(), Situation(NOW))
    assert answer.reason == "no-snapshot"
    assert answer.snapshot_version == 0
    share = int(0.1 / 3 * PROPENSITY_ONE)
    assert decided.groups[0].columns.propensities.tolist() == [share, PROPENSITY_ONE - 2 * share, share]


def test_a_snapshot_that_does_not_know_the_task_is_as_none(policy: Policy) -> None:
    other = replace(policy, tasks={})
    assert _one(_route(), Situation(NOW, other))[1].reason == "no-snapshot"


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        (Situation(NOW, snapshot_refused=True), "snapshot-refused"),
        (Situation(NOW, overloaded=True), "overload"),
    ],
)
def test_the_reason_for_a_baseline_is_told_and_journaled(situation: Situation, reason: str) -> None:
    decided, answer = _one(_route(), situation)
    assert answer.reason == reason
    assert [Reason(code).label for code in decided.groups[0].columns.reasons] == [reason]


def test_a_request_past_its_deadline_gets_the_baseline(policy: Policy) -> None:
    request = _route(deadline_ms=50)
    assert _one(request, Situation(NOW, policy), age_ms=50)[1].reason == "policy"
    decided, answer = _one(request, Situation(NOW, policy), age_ms=51)
    assert (answer.reason, answer.snapshot_version) == ("deadline", 0)
    assert decided.groups[0].version == 0


def test_a_request_near_its_dedupe_horizon_is_answered_but_not_journaled(policy: Policy) -> None:
    horizon = TaskTable(PROJECT.tasks).dedupe_ms - module.EXPIRY_SLACK_MS
    assert _one(_route(), Situation(NOW, policy), age_ms=horizon)[1].reason == "policy"
    decided, answer = _one(_route(), Situation(NOW, policy), age_ms=horizon + 1)
    assert (answer.reason, answer.actions, answer.propensities) == ("expired", ["refund"], [1.0])
    assert not decided.groups
    assert decided.unjournaled[0].refusal.code == ""


def test_an_unknown_task_is_answered_with_the_shops_own_baseline() -> None:
    request = replace(_offer(baseline=2), task="nobody-applied-this")
    decided, answer = _one(request, Situation(NOW))
    assert (answer.reason, answer.actions) == ("unknown-task", ["a2"])
    assert decided.unjournaled[0].refusal.code == "unknown-task"


def test_an_unknown_task_without_candidates_is_answered_without_an_action() -> None:
    _, answer = _one(replace(_route(), task="nobody-applied-this"), Situation(NOW))
    assert (answer.reason, answer.actions, answer.propensities) == ("unknown-task", [], [])


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"slots": 2}, "bad-slots"),
        ({"baseline": 3}, "bad-baseline"),
        ({"baseline": -1}, "bad-baseline"),
        ({"candidates": []}, "empty-candidates"),
        ({"candidates": None}, "empty-candidates"),
        ({"candidates": [Candidate("a"), Candidate("a")]}, "duplicate-action"),
        ({"context": {"age": 1e39}}, "not-finite"),
        ({"context": {"age": "old"}}, "wrong-type"),
        ({"candidates": [Candidate("a", {"embedding": [1.0], "stock": 1.0})]}, "wrong-type"),
    ],
)
def test_an_undecidable_request_is_answered_and_names_its_reason(fields: dict[str, Any], code: str) -> None:
    decided, answer = _one(replace(_offer(), **fields), Situation(NOW))
    assert answer.reason == "invalid"
    assert decided.unjournaled[0].refusal.code in (code, "wrong-size" if "embedding" in str(fields) else code)
    assert not decided.groups


def test_candidates_outside_the_catalogue_are_answered_with_one_of_them() -> None:
    decided, answer = _one(_route(candidates=[Candidate("elsewhere")]), Situation(NOW))
    assert (answer.reason, answer.actions, answer.propensities) == ("invalid", ["elsewhere"], [1.0])
    assert decided.unjournaled[0].refusal.code == "unknown-action"

    _, answer = _one(_route(candidates=[Candidate("elsewhere"), Candidate("beyond")]), Situation(NOW))
    assert answer.actions[0] in ("elsewhere", "beyond")
    assert answer.propensities == [0.5]


def test_when_guardrails_mask_everything_only_the_shops_own_baseline_is_named(policy: Policy) -> None:
    decided, answer = _one(_offer(stock=0.0), Situation(NOW, policy))
    assert (answer.reason, answer.actions) == ("invalid", [])
    assert decided.unjournaled[0].refusal.code == "all-masked"
    assert _one(_offer(stock=0.0, baseline=1), Situation(NOW, policy))[1].actions == ["a1"]


def test_a_masked_candidate_is_never_chosen_and_has_propensity_zero(policy: Policy) -> None:
    candidates = [Candidate(f"a{k}", {"stock": float(k != 1)}) for k in range(3)]
    for number in range(50):
        decided, answer = _one(replace(_offer(number), candidates=candidates), Situation(NOW, policy))
        assert decided.groups[0].columns.propensities[1] == 0
        assert answer.actions != ["a1"]


def test_offering_a_part_of_the_catalogue_masks_the_rest(policy: Policy) -> None:
    request = _route(candidates=[Candidate("other"), Candidate("card")], baseline=0)
    decided, answer = _one(request, Situation(NOW))
    integers = decided.groups[0].columns.propensities
    assert integers[1] == 0
    assert integers[2] > integers[0] > 0
    assert answer.actions[0] in ("other", "card")


def test_a_decision_over_the_size_limit_is_answered_but_not_journaled(policy: Policy) -> None:
    embedding = module_vector(4000)
    many = [Candidate(f"a{k}", {"embedding": embedding, "stock": 1.0}) for k in range(17)]
    decided, answer = _one(replace(_offer(), candidates=many[:15]), Situation(NOW, policy))
    assert answer.reason == "policy"
    decided, answer = _one(replace(_offer(baseline=0), candidates=many), Situation(NOW, policy))
    assert (answer.reason, answer.actions) == ("too-large", ["a0"])
    assert decided.unjournaled[0].refusal.code == "too-large"


def test_of_a_batch_exactly_those_over_the_size_limit_are_refused(policy: Policy) -> None:
    """Whatever their place: a batch over the limit as a whole is looked at by halves."""
    embedding = module_vector(4000)
    fine = [Candidate(f"a{k}", {"embedding": embedding, "stock": 1.0}) for k in range(6)]
    many = [Candidate(f"a{k}", {"embedding": embedding, "stock": 1.0}) for k in range(17)]
    large = {0, 1, 12, 29}
    batch = [_asked(replace(_offer(k), candidates=many if k in large else fine), k) for k in range(30)]
    decided = _decide().batch(batch, Situation(NOW, policy))
    assert {each.index for each in decided.unjournaled} == large
    assert {each.refusal.code for each in decided.unjournaled} == {"too-large"}
    assert sorted(row.index for group in decided.groups for row in group.rows) == sorted(set(range(30)) - large)


def module_vector(size: int) -> Any:
    from schemas.records import Vector

    return Vector(np.ones(size, np.float32))


def test_a_bad_request_does_not_spoil_its_batch(policy: Policy) -> None:
    batch = [_asked(_offer(k), k) for k in range(6)]
    batch[2] = _asked(replace(_offer(2), context={"age": 1e39}), 2)
    batch[4] = _asked(_offer(4, stock=0.0), 4)
    decided = _decide().batch(batch, Situation(NOW, policy))
    assert sorted(row.index for group in decided.groups for row in group.rows) == [0, 1, 3, 5]
    assert sorted(each.index for each in decided.unjournaled) == [2, 4]


def test_scores_out_of_range_refuse_only_their_row(policy: Policy) -> None:
    def scores(features: Any) -> np.ndarray:
        return np.where(np.repeat(features.context[:, 0], features.num_candidates) > 100, np.inf, 0.0)

    forward: Any = SimpleNamespace(scores=scores)
    policy = replace(policy, tasks={key: replace(loaded, forward=forward) for key, loaded in policy.tasks.items()})
    batch = [_asked(replace(_offer(k), context={"age": 50.0 * k}), k) for k in range(4)]
    decided = _decide().batch(batch, Situation(NOW, policy))
    assert [each.index for each in decided.unjournaled] == [3]
    assert decided.unjournaled[0].refusal.code == "not-finite"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=30), st.data())
def test_the_answer_does_not_depend_on_the_batch(kinds: list[tuple[bool, int]], data: Any) -> None:
    requests = [_route(k) if catalogue else _offer(k, size) for k, (catalogue, size) in enumerate(kinds)]
    alone = {request.decision_id: _one(request, Situation(NOW))[1] for request in requests}
    order = data.draw(st.permutations(requests))
    decided = _decide().batch([_asked(request, k) for k, request in enumerate(order)], Situation(NOW))
    together = {answer.decision_id: answer for group in decided.groups for answer in group.decisions}
    assert together == alone


def test_blocks_hold_every_row_once_in_its_journal_partition(policy: Policy) -> None:
    batch = [_asked(_offer(k, 2 + k % 3), k) for k in range(40)] + [_asked(_route(k), k) for k in range(40)]
    decided = _decide().batch(batch, Situation(NOW, policy))
    seen = []
    for group in decided.groups:
        for rows, part in parts_of(group.task, group.version, group.rows, group.columns, "shop.requests"):
            again = decode(encode(part.block(), REGISTRY), REGISTRY, expect=DecisionBlock)
            assert len(again) == len(rows)
            for place, row in enumerate(rows):
                decision_id, subject = again.decision_ids[place], again.subjects[place]
                assert decision_id == group.decisions[row].decision_id
                assert part.partition == partition_of(subject, 4)
                asked = batch[group.rows[row].index]
                assert (asked.partition, asked.offset) == (
                    again.request_partitions[place],
                    again.request_offsets[place],
                )
                seen.append(decision_id)
    assert sorted(seen) == sorted(each.request.decision_id for each in batch)


def test_a_group_too_large_for_one_message_leaves_in_several(policy: Policy) -> None:
    embedding = module_vector(4000)
    candidates = [Candidate(f"a{k}", {"embedding": embedding, "stock": 1.0}) for k in range(6)]
    batch = [_asked(replace(_offer(k), subject="one", candidates=candidates), k) for k in range(20)]
    (group,) = _decide().batch(batch, Situation(NOW, policy)).groups
    sizes, num_rows = [], 0
    for rows, part in parts_of(group.task, group.version, group.rows, group.columns, "shop.requests"):
        sizes.append(len(encode(part.block(), REGISTRY)))
        num_rows += len(rows)
    assert num_rows == 20
    assert len(sizes) > 1
    assert max(sizes) <= BLOCK_BYTES_MAX


@given(st.lists(st.text(max_size=4), min_size=1, max_size=6))
def test_packed_texts_are_those_of_the_codec(values: list[str]) -> None:
    ours, theirs = _packed_text(values), Strings.of(values)
    assert ours.tolist() == theirs.tolist() == values
    assert (ours.starts.tolist(), ours.lengths.tolist()) == (theirs.starts.tolist(), theirs.lengths.tolist())
    assert (ours.starts.dtype, ours.lengths.dtype) == (theirs.starts.dtype, theirs.lengths.dtype)


@given(st.integers(1, 64), st.integers(1, 256), st.integers(1, 256), st.integers(1, 20))
def test_a_group_that_is_small_by_its_ceiling_fits_whole(id_size: int, subject: int, action: int, size: int) -> None:
    """The shortcut of `parts_of` cuts no block otherwise than looking at every string would."""
    candidates = [Candidate(f"{k:02d}".ljust(action, "x")[:256], {"price": 1.0}) for k in range(size)]
    request = DecisionRequest("d" * id_size, "offer", "s" * subject, {"age": 3.0}, candidates)
    decided = _decide().batch([_asked(request)], Situation(NOW))
    for group in decided.groups:
        assert bytes_max_of(group.rows, group.columns) <= 4 * bytes_ceiling_of(group.columns)


def test_keys_of_a_block_are_those_of_the_contract(policy: Policy) -> None:
    (group,) = _decide().batch([_asked(_offer(k), k) for k in range(7)], Situation(NOW, policy)).groups
    for rows, part in parts_of(group.task, group.version, group.rows, group.columns, "shop.requests"):
        block = part.block()
        for place, row in enumerate(rows):
            request = group.rows[row].request
            assert tuple(block.decision_keys[place].tolist()) == keys.decision_key(request.decision_id)
            assert int(block.subject_keys[place]) == keys.subject_key(request.subject)
