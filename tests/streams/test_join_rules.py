"""Rules 1 to 3 of join.md, one by one: which decisions are duplicates, which outcome counts for which decision."""

from __future__ import annotations

import pytest

from schemas.blocks import Tick
from schemas.bounds import BadRecord
from schemas.errors import UserError
from schemas.keys import action_key
from schemas.records import DefinitionPosition, Resume
from schemas.task import NUM_NAMES_MAX, Task, TaskTable
from streams.attribution import SUBJECT_DEPTH_MAX
from streams.join import JoinPartition
from tests.oracle.join_by_hand import START_S, Run, one
from tests.oracle.join_world import SECOND, Told, decisions, make_task, outcomes


@pytest.fixture
def task() -> Task:
    return make_task("a", 100)


# ---- time


def test_time_never_steps_back_with_the_append_time(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(90, Tick()).at(20, [Told(1, 5)]).at(-50, Tick())
    assert run.join.time_ms == (START_S + 90) * SECOND
    assert run.rows() == [("joined", 1.0, 1)]


def test_an_undecodable_record_moves_time_and_offset_and_nothing_else(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(101, BadRecord("truncated", "x"))
    assert (run.join.time_ms, run.join.next_offset, run.join.num_bad) == ((START_S + 101) * SECOND, 2, 1)
    assert run.join.stats["journal"] == {"undecodable": 1}
    assert len(run.join.emit()) == 1


# ---- rule 1


def test_a_decision_within_the_horizon_of_the_same_id_is_a_duplicate_even_after_the_first_closed(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(300, one(task)).at(600, one(task))
    assert run.rows() == [("defaulted", 0.0, 0), ("duplicate", 0.0, 0), ("duplicate", 0.0, 0)]


def test_an_id_used_again_after_the_horizon_is_a_new_decision(task: Task) -> None:
    assert [row[0] for row in Run(task).at(0, one(task)).at(600, one(task)).rows()] == ["defaulted", "duplicate"]
    assert [row[0] for row in Run(task).at(0, one(task)).at(600.001, one(task)).rows()] == ["defaulted", "defaulted"]


def test_the_horizon_counts_from_the_latest_record_of_the_id_duplicates_included(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(400, one(task)).at(900, one(task)).at(1501, one(task))
    assert [row[0] for row in run.rows()] == ["defaulted", "duplicate", "duplicate", "defaulted"]


def test_a_long_window_lengthens_the_horizon_of_all_tasks(task: Task) -> None:
    run = Run(task, make_task("b", 900)).at(0, one(task)).at(900, one(task))
    assert [row[0] for row in run.rows()] == ["defaulted", "duplicate"]


def test_the_same_id_in_another_task_is_no_duplicate(task: Task) -> None:
    other = make_task("b", 100)
    assert [row[0] for row in Run(task, other).at(0, one(task)).at(1, one(other)).rows()] == ["defaulted", "defaulted"]


def test_the_same_id_under_a_changed_definition_of_the_task_is_a_duplicate(task: Task) -> None:
    changed = make_task("a", 200)
    assert [row[0] for row in Run(task, changed).at(0, one(task)).at(1, one(changed)).rows()] == [
        "defaulted",
        "duplicate",
    ]


def test_within_one_block_the_first_row_of_an_id_wins(task: Task) -> None:
    run = Run(task).at(0, decisions(task, [(1, 5, (0,)), (2, 5, (0,)), (1, 5, (0,))]))
    assert [row[0] for row in run.rows()] == ["defaulted", "defaulted", "duplicate"]


# ---- rule 2


def test_an_outcome_goes_to_the_decision_it_names(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(1, one(task, 2)).at(2, [Told(1, 5, decision=1, value=2.0)])
    assert run.rows() == [("joined", 2.0, 1), ("defaulted", 0.0, 0)]


def test_an_outcome_counts_up_to_the_last_millisecond_of_its_window(task: Task) -> None:
    assert Run(task).at(0, one(task)).at(100, [Told(1, 5, decision=1)]).rows() == [("joined", 1.0, 1)]
    assert Run(task).at(0, one(task)).at(100.001, [Told(1, 5, decision=1)]).rows() == [("defaulted", 0.0, 0)]


def test_an_outcome_type_has_its_own_window() -> None:
    task = make_task("a", 100, types=(("click", "sum", 1.0, 10), ("order", "sum", 5.0, 100)))
    run = Run(task).at(0, one(task)).at(11, [Told(1, 5), Told(2, 5, kind="order")])
    assert run.rows() == [("joined", 5.0, 1)]
    assert run.outcomes == {"used": 1, "late": 1}


def test_without_a_decision_id_the_subjects_latest_open_decision_takes_it(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(1, one(task, 2)).at(2, one(task, 3, subject=6)).at(3, [Told(1, 5)])
    assert run.rows() == [("defaulted", 0.0, 0), ("joined", 1.0, 1), ("defaulted", 0.0, 0)]


def test_without_a_decision_id_a_duplicate_is_passed_over(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(1, one(task, 1)).at(2, [Told(1, 5)])
    assert run.rows() == [("joined", 1.0, 1), ("duplicate", 0.0, 0)]


def test_an_action_id_picks_the_latest_decision_that_chose_it(task: Task) -> None:
    run = Run(task).at(0, one(task, 1, chosen=0)).at(1, one(task, 2, chosen=1)).at(2, [Told(1, 5, action=1)])
    assert run.rows() == [("joined", 1.0, 1), ("defaulted", 0.0, 0)]


def test_an_action_id_of_a_declared_catalogue_is_known_by_its_name() -> None:
    task = make_task("a", 100, catalogue=True)
    run = Run(task).at(0, one(task, 1, chosen=2)).at(1, one(task, 2, chosen=1))
    run.at(2, [Told(1, 5, action=action_key("right"))])
    assert run.rows() == [("joined", 1.0, 1), ("defaulted", 0.0, 0)]


def test_one_outcome_rewards_a_decision_of_every_task_that_counts_its_type(task: Task) -> None:
    other, deaf = make_task("b", 100), make_task("c", 100, types=(("order", "sum", 1.0, 100),))
    run = Run(task, other, deaf).at(0, one(task)).at(1, one(other)).at(2, one(deaf)).at(3, [Told(1, 5)])
    assert run.rows() == [("joined", 1.0, 1), ("joined", 1.0, 1), ("defaulted", 0.0, 0)]
    assert run.outcomes == {"used": 1}
    assert run.join.stats["uses"] == {"a": 1, "b": 1, "c": 0}


def test_an_early_outcome_waits_for_its_decision_within_the_backward_window() -> None:
    task = make_task("a", 100, backward=10)
    assert Run(task).at(0, [Told(1, 5)]).at(10, one(task)).rows() == [("joined", 1.0, 1)]
    assert Run(task).at(0, [Told(1, 5)]).at(10.001, one(task)).rows() == [("defaulted", 0.0, 0)]


def test_an_early_outcome_goes_to_the_first_decision_that_matches_only() -> None:
    task = make_task("a", 100, backward=10)
    run = Run(task).at(0, [Told(1, 5)]).at(1, one(task, 1)).at(2, one(task, 2))
    assert run.rows() == [("joined", 1.0, 1), ("defaulted", 0.0, 0)]


def test_an_open_decision_wins_over_one_still_to_come() -> None:
    task = make_task("a", 100, backward=10)
    run = Run(task).at(0, one(task, 1)).at(1, [Told(1, 5)]).at(2, one(task, 2))
    assert run.rows() == [("joined", 1.0, 1), ("defaulted", 0.0, 0)]


def test_an_outcome_used_by_one_task_still_waits_for_another() -> None:
    task, other = make_task("a", 100, backward=10), make_task("b", 100, backward=10)
    run = Run(task, other).at(0, one(task)).at(1, [Told(1, 5)]).at(2, one(other))
    assert run.rows() == [("joined", 1.0, 1), ("joined", 1.0, 1)]
    assert run.outcomes == {"used": 1}


def test_equal_time_is_not_before_even_without_a_backward_window(task: Task) -> None:
    assert Run(task).at(0, [Told(1, 5)]).at(0, one(task)).rows() == [("joined", 1.0, 1)]


def test_early_outcomes_are_counted_in_log_order() -> None:
    task = make_task("a", 100, backward=10, types=(("click", "last", 1.0, 100),))
    run = Run(task).at(0, [Told(1, 5, value=1.0), Told(2, 5, decision=1, value=2.0), Told(3, 5, value=3.0)])
    assert run.at(1, one(task)).rows() == [("joined", 3.0, 3)]


def test_a_subject_with_thousands_of_decisions_is_searched_to_a_limit(task: Task) -> None:
    run = Run(task).at(0, one(task, 1, chosen=1))
    for decision in range(2, SUBJECT_DEPTH_MAX + 1):
        run.at(0, one(task, decision))
    run.at(1, [Told(1, 5, action=2)])
    assert run.outcomes == {"used": 1}
    run.at(1, one(task, SUBJECT_DEPTH_MAX + 1)).at(1, [Told(2, 5, action=2)]).at(2, Tick())
    assert run.outcomes == {"used": 1, "late": 1}


# ---- rule 3


def test_a_copy_by_outcome_id_counts_once_even_for_another_decision(task: Task) -> None:
    run = Run(task).at(0, one(task, 1)).at(1, [Told(1, 5)]).at(2, one(task, 2)).at(3, [Told(1, 5)])
    assert run.rows() == [("joined", 1.0, 1), ("defaulted", 0.0, 0)]
    assert run.outcomes == {"used": 1, "duplicate": 1}


def test_an_outcome_id_counts_again_after_the_horizon_of_its_latest_record(task: Task) -> None:
    run = Run(task).at(0, [Told(1, 5)]).at(600, [Told(1, 5)]).at(1201, one(task)).at(1201, [Told(1, 5)])
    assert run.rows() == [("joined", 1.0, 1)]
    assert run.outcomes == {"orphan": 1, "duplicate": 1, "used": 1}


def test_copies_made_by_ingest_are_dropped_by_source_offset_and_counted_apart(task: Task) -> None:
    told = [Told(1, 5), Told(2, 5)]
    run = Run(task).at(0, one(task)).at(1, outcomes(told, 0)).at(2, outcomes([*told, Told(3, 5)], 0))
    assert run.rows() == [("joined", 3.0, 3)]
    assert run.outcomes == {"used": 3, "copies": 2}


def test_source_offsets_are_told_apart_by_topic_and_partition(task: Task) -> None:
    run = Run(task).at(0, one(task)).at(1, outcomes([Told(1, 5)], 7, partition=0))
    run.at(1, outcomes([Told(2, 5)], 3, partition=1))
    assert run.join.sources == {("t.outcomes", 0): 7, ("t.outcomes", 1): 3}
    assert run.rows() == [("joined", 2.0, 2)]


# ---- places of task names


def test_only_a_task_that_decided_in_the_partition_takes_a_place_of_the_names() -> None:
    """Found by review: the 129th name that was ever applied ended the join, also where nobody used it."""
    tasks = [make_task(f"exp-{number}") for number in range(NUM_NAMES_MAX + 2)]
    run = Run()
    run.join = JoinPartition(0, TaskTable(tasks), Resume(0, definitions=()))
    run.at(0, Tick())
    for number, task in enumerate(tasks[:1:-1]):
        run.at(1 + number, one(task, decision=number, subject=number))
        run.at(1 + number, [Told(number, number, number, value=1.0)])
    assert [row[:2] for row in run.rows()] == [("joined", 1.0)] * NUM_NAMES_MAX


def test_one_more_name_than_places_is_refused_wherever_the_fold_began_and_changes_nothing() -> None:
    tasks = [make_task(f"exp-{number}") for number in range(NUM_NAMES_MAX + 1)]
    before = tuple(DefinitionPosition(task.fingerprint, START_S * SECOND) for task in tasks[:-1])
    for resume, decided in ((Resume(0, definitions=()), tasks[:-1]), (Resume(0, definitions=before), [])):
        run = Run()
        run.join = JoinPartition(0, TaskTable(tasks), resume)
        for number, task in enumerate(decided):
            run.at(0, one(task, decision=number, subject=number))
        with pytest.raises(UserError, match="'exp-128' is the 129th task name that decides in this partition"):
            run.at(1, one(tasks[-1], decision=900, subject=7))
        assert run.join.next_offset == len(decided)
