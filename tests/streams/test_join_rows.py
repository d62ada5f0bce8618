"""Rules 4 to 17 of join.md, one by one: the rows that leave, their buckets and chains, limits, what a fold refuses."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.blocks import FLAG_CLIPPED, FLAG_CUT, OutcomeBlock, Tick
from schemas.chain import ChainReader
from schemas.records import DecisionBucket
from schemas.task import Task, TaskTable
from streams.join import Gap, JoinLimits, JoinPartition, UnknownTask
from tests.oracle.join_by_hand import START_S, Run, one
from tests.oracle.join_world import SECOND, Told, decisions, make_task, outcomes


@pytest.fixture
def task() -> Task:
    return make_task("a", 100)


# ---- rule 4


@pytest.mark.parametrize(
    ("aggregate", "reward"),
    [("sum", 4.5), ("first", 2.0), ("last", 1.5), ("min", 1.0), ("max", 2.0), ("mean", 1.5), ("count", 3.0)],
)
def test_values_of_a_type_are_aggregated(aggregate: str, reward: float) -> None:
    task = make_task("a", 100, types=(("click", aggregate, 1.0, 100),))
    run = Run(task).at(0, one(task))
    for key, value in enumerate((2.0, 1.0, 1.5)):
        run.at(1 + key, [Told(key + 1, 5, value=value)])
    assert run.rows() == [("joined", reward, 3)]


def test_types_are_weighted_and_summed_and_absent_ones_count_nothing() -> None:
    task = make_task("a", 100, default=0.5, types=(("click", "sum", 2.0, 100), ("order", "max", -1.0, 100)))
    run = Run(task).at(0, one(task, 1)).at(0, one(task, 2, subject=6)).at(0, one(task, 3, subject=7))
    run.at(1, [Told(1, 5), Told(2, 5, kind="order", value=0.5), Told(3, 6)])
    assert run.rows() == [("joined", 1.5, 2), ("joined", 2.0, 1), ("defaulted", 0.5, 0)]


def test_a_reward_outside_the_bounds_is_clipped_and_flagged(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(1, [Told(1, 5, value=1e6)])
    (block,) = run.end()
    assert (block.rewards[0, 0], block.flags[0]) == (6.0, FLAG_CLIPPED)


def test_a_sum_of_infinities_becomes_the_default_and_is_flagged() -> None:
    task = make_task("a", 100, default=0.25, types=(("click", "sum", 2.0, 100), ("order", "sum", -2.0, 100)))
    run = Run(task).at(0, one(task)).at(1, [Told(1, 5, value=1.7e308), Told(2, 5, kind="order", value=1.7e308)])
    (block,) = run.end()
    assert (block.rewards[0, 0], block.flags[0]) == (0.25, FLAG_CLIPPED)


def test_a_decision_closes_when_time_is_past_its_window_and_never_early(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(1, [Told(1, 5)]).at(100, Tick())
    assert run.join.emit() == []
    (block,) = run.end(100.001)
    assert block.closed_at_ms.tolist() == [(START_S + 100) * SECOND]


def test_a_slate_has_one_reward_per_slot() -> None:
    task = make_task("a", 100, default=-1.0, slots=2)
    run = Run(task).at(0, decisions(task, [(1, 5, (2, 0))]))
    run.at(1, [Told(1, 5, action=1, value=0.5), Told(2, 5, slot=0, value=2.0)])
    run.at(0, decisions(task, [(2, 6, (2, 0))])).at(1, [Told(3, 6, value=1.0)])
    run.at(0, decisions(task, [(3, 7, (2, 0))])).at(1, [Told(4, 7, slot=1, value=1.0)])
    (block,) = run.end()
    assert block.rewards.tolist() == [[2.0, 0.5], [1.0, 1.0], [-1.0, 1.0]]


# ---- rule 5


def test_a_duplicate_that_names_another_action_makes_the_open_first_a_conflict(task: Task) -> None:
    run = Run(task).at(0, one(task, chosen=0)).at(1, [Told(1, 5)]).at(100, one(task, chosen=1))
    assert run.rows() == [("conflict", 1.0, 1), ("duplicate", 0.0, 0)]
    assert run.outcomes == {"used": 1}


def test_a_duplicate_after_the_first_has_closed_changes_nothing(task: Task) -> None:
    run = Run(task).at(0, one(task, chosen=0)).at(100.001, one(task, chosen=1))
    assert [row[0] for row in run.rows()] == ["defaulted", "duplicate"]


def test_an_outcome_that_names_an_action_not_chosen_makes_its_decision_a_conflict(task: Task) -> None:
    run = Run(task).at(0, one(task, chosen=0)).at(1, [Told(1, 5, decision=1, action=2)])
    assert run.rows() == [("conflict", 0.0, 0)]
    assert run.outcomes == {"conflict": 1}


def test_an_outcome_of_another_subject_is_a_conflict_and_its_decision_is_not(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(1, [Told(1, 6, decision=1)])
    assert run.rows() == [("defaulted", 0.0, 0)]
    assert run.outcomes == {"conflict": 1}


def test_a_row_that_is_not_finite_is_quarantined_and_does_not_spoil_its_block(task: Task) -> None:
    run = Run(task).at(0, decisions(task, [(1, 5, (0,)), (2, 6, (1,))], bad=frozenset([1]))).at(1, [Told(1, 6)])
    (block,) = run.end()
    assert block.buckets.tolist() == [DecisionBucket.DEFAULTED, DecisionBucket.QUARANTINED]
    assert np.isfinite(block.columns.features.context).all()
    assert block.columns.propensities[3:].tolist() == [1 << 24, 0, 0]
    assert run.outcomes == {"used": 1}


def test_a_block_of_another_shape_than_its_definition_is_quarantined_in_the_definitions_shape(task: Task) -> None:
    wide = make_task("a", 100, catalogue=True)
    block = decisions(wide, [(1, 5, (0,)), (2, 6, (1,))])
    object.__setattr__(block, "fingerprint", task.fingerprint)
    (emitted,) = Run(task).at(0, block).at(1, one(task, 3)).end()
    assert [DecisionBucket(each).label for each in emitted.buckets] == ["quarantined", "quarantined", "defaulted"]
    assert emitted.columns.features.actions.shape == (5, 1)


def test_duplicate_comes_before_quarantined_and_quarantined_before_conflict(task: Task) -> None:
    bad = decisions(task, [(1, 5, (0,))], bad=frozenset([0]))
    run = Run(task).at(0, bad).at(1, decisions(task, [(1, 5, (1,))], bad=frozenset([0])))
    assert [row[0] for row in run.rows()] == ["quarantined", "duplicate"]


def test_folding_leaves_the_block_as_it_was(task: Task) -> None:
    block = decisions(task, [(1, 5, (2,)), (2, 6, (1,))], bad=frozenset([0]))
    before = [column.copy() for column in (block.columns.features.context, block.columns.chosen)]
    Run(task).at(0, block).end()
    assert np.isnan(before[0][0, 0])
    for column, was in zip((block.columns.features.context, block.columns.chosen), before, strict=True):
        np.testing.assert_array_equal(column, was)


def test_an_outcome_is_late_within_twice_the_window_of_its_decision_and_an_orphan_after(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(200, [Told(1, 5, decision=1), Told(2, 5)])
    run.at(200.001, [Told(3, 5, decision=1), Told(4, 5), Told(5, 9, decision=9), Told(6, 5, kind="unheard of")])
    run.end()
    assert run.outcomes == {"late": 2, "orphan": 4}


def test_an_outcome_is_pending_until_nothing_can_match_it_any_more() -> None:
    task = make_task("a", 100, backward=10)
    run = Run(task).at(0, [Told(1, 5)]).at(10, Tick())
    assert run.outcomes == {"pending": 1}
    assert run.join.num_pending == 1
    run.at(10.001, Tick())
    assert run.outcomes == {"orphan": 1}


# ---- rules 6 to 8: blocks and progress


def test_each_definition_has_its_own_chain(task: Task) -> None:
    changed = make_task("a", 200)
    run = Run(task, changed).at(0, one(task, 1)).at(1, one(changed, 2)).at(2, one(task, 3))
    found = {block.fingerprint: (block.prev, block.positions.tolist()) for block in run.end()}
    assert found == {task.fingerprint: (-1, [0, 2 << 16]), changed.fingerprint: (-1, [1 << 16])}


def test_a_block_continues_the_one_before(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(101, one(task, 2))
    (first,) = run.join.emit()
    (second,) = run.end()
    assert (first.prev, first.last, second.prev) == (-1, 0, 0)


def test_a_transition_carries_the_decision_unchanged(task: Task) -> None:
    block = decisions(task, [(1, 5, (2,)), (2, 6, (1,))], version=7)
    (emitted,) = Run(task).at(0, block).end()
    assert emitted.snapshot_versions.tolist() == [7, 7]
    np.testing.assert_array_equal(emitted.decision_keys, block.decision_keys)
    for name in ("chosen", "propensities", "reasons"):
        np.testing.assert_array_equal(getattr(emitted.columns, name), getattr(block.columns, name))
    np.testing.assert_array_equal(emitted.columns.features.context, block.columns.features.context)


def test_progress_is_said_only_when_every_closed_row_was_read_back(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(1, [Told(1, 5)])
    blocks = run.end(200)
    reader = ChainReader()
    assert run.join.progress(reader, 0) is None
    reader.offer(blocks[0])
    said = run.join.progress(reader, 1)
    assert said is not None
    assert (said.time_ms, said.journal_offset, said.transitions_offset) == ((START_S + 200) * SECOND, 3, 1)
    assert said.decision_counts["joined"] == 1
    assert said.outcome_counts["used"] == 1
    assert [(chain.fingerprint, chain.kind, chain.hwm) for chain in said.chains] == [(task.fingerprint, 0, 0)]
    assert run.join.progress(reader, 1) is None


def test_progress_is_said_of_the_newest_tick_that_is_covered(task: Task) -> None:
    run = Run(task).at(0, Tick()).at(1, Tick()).at(2, one(task)).at(3, Tick()).at(200, Tick())
    said = run.join.progress(ChainReader(), 0)
    assert said is not None
    assert said.journal_offset == 4
    assert said.decision_counts["open"] == 1


def test_resume_looks_back_from_the_oldest_decision_open_at_the_tick() -> None:
    task = make_task("a", 100, backward=20)
    run = Run(task)
    for second in range(0, 2_000, 10):
        run.at(second, Tick())
    run.at(2_000, one(task)).at(2_090, Tick())
    reader = ChainReader()
    said = run.join.progress(reader, 0)
    assert said is not None
    look_back = 600 + 100 + 20
    assert said.resume.time_ms < (START_S + 2_000 - look_back) * SECOND <= said.resume.time_ms + 10 * SECOND
    assert said.resume.offset == (2_000 - look_back) // 10  # records before it were folded at T < the bound


# ---- rules 9, 10 and 13: what a fold refuses


def test_an_offset_below_the_next_is_dropped_and_one_above_it_is_a_gap(task: Task) -> None:
    run = Run(task).at(0, one(task))
    run.join.fold(0, 0, one(task, 2))
    assert run.join.num_open == 1
    with pytest.raises(Gap, match="expected offset 1, got 3") as refused:
        run.join.fold(3, (START_S + 500) * SECOND, Tick())
    assert (refused.value.expected, refused.value.got) == (1, 3)
    assert (run.join.next_offset, run.join.time_ms) == (1, START_S * SECOND)


def test_an_unknown_definition_changes_nothing_and_can_be_folded_when_it_has_come(task: Task) -> None:
    table = TaskTable([make_task("b", 50)])
    join = JoinPartition(0, table)
    join.fold(0, START_S * SECOND, Tick())
    with pytest.raises(UnknownTask, match=task.fingerprint.hex()):
        join.fold(1, (START_S + 9) * SECOND, one(task))
    assert (join.next_offset, join.time_ms, join.num_open) == (1, START_S * SECOND, 0)
    table.add(task)
    join.fold(1, (START_S + 9) * SECOND, one(task))
    assert join.num_open == 1


# ---- rule 14


def test_beyond_the_limit_the_oldest_decision_closes_early_and_is_flagged(task: Task) -> None:
    other = make_task("b", 300)
    run = Run(task, other, limits=JoinLimits(num_open_max=2))
    run.at(0, one(other, 1)).at(1, [Told(1, 5)]).at(2, one(task, 2)).at(
        3, decisions(task, [(3, 5, (0,)), (4, 5, (0,))])
    )
    cut = [(b.fingerprint, b.positions.tolist(), b.flags.tolist(), b.num_outcomes.tolist()) for b in run.join.emit()]
    assert sorted(cut) == sorted(
        [(other.fingerprint, [0], [FLAG_CUT], [1]), (task.fingerprint, [2 << 16], [FLAG_CUT], [0])]
    )
    assert run.join.num_open == 2


def test_a_decision_that_was_cut_takes_no_more_outcomes(task: Task) -> None:
    run = Run(task, limits=JoinLimits(num_open_max=1)).at(0, one(task, 1)).at(1, one(task, 2))
    run.at(2, [Told(1, 5, decision=1)]).end()
    assert run.outcomes == {"late": 1}


def test_a_cut_inside_a_block_leaves_its_other_rows_open(task: Task) -> None:
    run = Run(task, limits=JoinLimits(num_open_max=2))
    run.at(0, decisions(task, [(each, 5, (0,)) for each in range(1, 6)]))
    (cut,) = run.join.emit()
    (rest,) = run.end()
    assert cut.positions.tolist() == [0, 1, 2]
    assert (rest.prev, rest.positions.tolist(), rest.flags.tolist()) == (2, [3, 4], [0, 0])
    assert rest.columns.features.context[:, 0].tolist() == [4003.0, 5004.0]


def test_beyond_the_limit_the_oldest_waiting_outcome_settles() -> None:
    task = make_task("a", 100, backward=50)
    run = Run(task, limits=JoinLimits(num_pending_max=2)).at(0, [Told(1, 5), Told(2, 6), Told(3, 7)])
    assert run.outcomes == {"orphan": 1, "pending": 2}
    run.at(1, one(task, 1, subject=5)).at(1, one(task, 2, subject=6))
    assert run.outcomes == {"orphan": 1, "used": 1, "pending": 1}


# ---- rule 17


def test_every_record_stands_in_exactly_one_bucket(task: Task) -> None:
    run = Run(task).at(0, decisions(task, [(1, 5, (0,)), (1, 5, (0,)), (2, 6, (1,))], bad=frozenset([2])))
    run.at(1, [Told(1, 5), Told(1, 5), Told(2, 9), Told(3, 6, decision=2, action=1)]).at(2, one(task, 7))
    stats = run.join.stats
    assert sum(stats["decisions"].values()) == 4
    assert sum(stats["outcomes"].values()) - stats["outcomes"]["copies"] == 4
    run.end()
    assert sum(run.join.stats["decisions"].values()) == 4
    assert run.join.stats["decisions"]["open"] == 0
    assert run.join.stats["outcomes"]["pending"] == 0


def test_an_outcome_of_a_type_that_no_task_declares_is_an_orphan(task: Task) -> None:
    block: OutcomeBlock = outcomes([Told(1, 5, kind="never declared")], 0)
    run = Run(task).at(0, one(task)).at(1, block).at(2, Tick())
    assert run.outcomes == {"orphan": 1}
