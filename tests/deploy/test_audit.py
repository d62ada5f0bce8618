"""The audit against the real join, and against a join that lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploy.audit import Entries, PartitionAudit, judge
from deploy.definitions import Definitions
from schemas.blocks import Tick, TransitionBlock
from schemas.chain import ChainReader
from schemas.decision_columns import DecisionColumns
from schemas.records import DecisionBucket, Progress, Resume
from schemas.task import Task
from streams.join import JoinPartition
from tests.oracle.join_world import Journal, Told, decisions, make_journal, make_task, outcomes, table_of, world_tasks
from tests.streams.test_join_shapes import CASES, block_of, columns_of

WHOLE = {"journal": True, "transitions": True}
SECOND = 1_000


def join(tasks: list[Task], journal: Journal, emit_every: int = 3) -> Entries:
    """What the real join writes to the transitions, with a Progress after every read-back."""
    partition, reader = JoinPartition(0, table_of(tasks), Resume(0, definitions=())), ChainReader()
    written: Entries = []
    for index, (offset, append_ms, record) in enumerate(journal):
        partition.fold(offset, append_ms, record)
        if index % emit_every and index != len(journal) - 1:
            continue
        for block in partition.emit():
            written.append((len(written), append_ms, block))
            reader.offer(block)
            partition.accepted(block)
        progress = partition.progress(reader, len(written))
        if progress is not None:
            written.append((len(written), append_ms, progress))
    return written


def audited(tasks: list[Task], journal: Journal, transitions: Entries) -> PartitionAudit:
    return judge(0, list(journal), transitions, Definitions(table=table_of(tasks)), WHOLE)


@pytest.mark.parametrize("seed", range(120))
def test_the_real_join_is_found_clean_on_any_journal(seed: int) -> None:
    tasks = world_tasks(seed)
    journal = make_journal(seed, tasks)

    result = audited(tasks, journal, join(tasks, journal))

    assert result.reasons == []
    assert result.num_decisions == sum(result.decision_counts.values())


def small_world() -> tuple[list[Task], Journal, Entries]:
    """Three decisions, two of them with an outcome, all closed."""
    task = make_task("short", window=100)
    start = 10_000 * SECOND
    journal: Journal = [
        (0, start, decisions(task, [(1, 1, (0,)), (2, 2, (1,))])),
        (1, start + 10 * SECOND, outcomes([Told(1, 1, 1, value=1.0), Told(2, 2, 2, value=2.0)], 0)),
        (2, start + 20 * SECOND, decisions(task, [(3, 3, (2,))])),
    ]
    journal += [(3, start + 150 * SECOND, Tick()), (4, start + 300 * SECOND, Tick())]
    return [task], journal, join([task], journal, emit_every=1)


def definitions_in_flight() -> list[Task]:
    """Each counts from its first record, and raises a horizon or the types that count (decision 12)."""
    return [
        make_task("short", 100),
        make_task("day", 900, backward=60, types=(("click", "sum", 1.0, 900), ("order", "sum", 1.0, 900))),
        make_task("days", 2_000, backward=200, types=(("order", "max", 1.0, 900), ("refund", "min", 1.0, 2_000))),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_the_real_join_is_found_clean_whichever_definitions_come_into_force(seed: int) -> None:
    tasks = definitions_in_flight()
    journal = [(o, t, r) for o, t, r in make_journal(seed, tasks, num_records=90)]

    result = audited(tasks, journal, join(tasks, journal))

    assert result.reasons == []


def test_a_small_world_is_clean() -> None:
    tasks, journal, transitions = small_world()

    result = audited(tasks, journal, transitions)

    assert result.reasons == []
    assert result.decision_counts["joined"] == 2
    assert result.decision_counts["defaulted"] == 1
    assert result.outcome_counts["used"] == 2


@pytest.mark.parametrize(("num_later", "bucket"), [(255, "used"), (256, "late")])
def test_an_outcome_without_an_id_looks_at_the_latest_256_decisions_of_its_subject(num_later: int, bucket: str) -> None:
    task, start = make_task("short", window=100), 10_000 * SECOND
    journal: Journal = [(0, start, decisions(task, [(1, 5, (2,))]))]
    journal += [(1 + i, start + 1 + i, decisions(task, [(2 + i, 5, (0,))])) for i in range(num_later)]
    end = len(journal)
    journal.append((end, start + SECOND, outcomes([Told(1, 5, action=3, value=1.0)], 0)))
    journal += [(end + 1, start + 300 * SECOND, Tick()), (end + 2, start + 900 * SECOND, Tick())]

    result = audited([task], journal, join([task], journal))

    assert result.reasons == []
    assert result.outcome_counts[bucket] == 1


@pytest.mark.parametrize(("task", "change"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_block_with_other_columns_than_its_task_is_quarantined_by_the_audit_too(
    task: Task, change: Callable[[DecisionColumns], DecisionColumns]
) -> None:
    good, start = columns_of(task), 10_000 * SECOND
    journal: Journal = [(0, start, block_of(task, change(good), 1)), (1, start + 1, block_of(task, good, 2))]
    journal += [(2, start + 4_000 * SECOND, Tick()), (3, start + 9_000 * SECOND, Tick())]

    result = audited([task], journal, join([task], journal))

    assert result.reasons == []
    assert result.decision_counts["quarantined"] == 4


def altered(transitions: Entries, change: Callable[[TransitionBlock], TransitionBlock | None]) -> Entries:
    """The transitions with their first block changed (None: lost)."""
    result: list[Any] = []
    done = False
    for offset, time_ms, block in transitions:
        if isinstance(block, TransitionBlock) and not done:
            done = True
            changed = change(block)
            if changed is not None:
                result.append((offset, time_ms, changed))
            continue
        result.append((offset, time_ms, block))
    return result


def column(block: TransitionBlock, name: str, row: int, value: float) -> TransitionBlock:
    values = np.array(getattr(block, name))
    values[row] = value
    return replace(block, **{name: values})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda block: column(block, "rewards", 0, 0.5), "reward 0.5, expected 1"),
        (lambda block: column(block, "buckets", 0, DecisionBucket.DEFAULTED), "bucket defaulted, expected joined"),
        (lambda block: column(block, "snapshot_versions", 0, 9), "snapshot version 9, the journal says 1"),
        (lambda block: column(block, "num_outcomes", 0, 7), "7 outcomes counted, expected 1"),
        (lambda block: column(block, "closed_at_ms", 0, 1), "closed at 1, expected"),
        (lambda block: replace(block, decision_keys=block.decision_keys[::-1].copy()), "another decision's"),
    ],
)
def test_a_row_that_differs_from_the_rules_is_named(
    change: Callable[[TransitionBlock], TransitionBlock], told: str
) -> None:
    tasks, journal, transitions = small_world()

    result = audited(tasks, journal, altered(transitions, change))

    assert any(told in reason for reason in result.reasons), result.reasons


def test_a_lost_row_is_a_missing_decision_even_when_progress_swears_to_it() -> None:
    tasks, journal, transitions = small_world()
    without_first = altered(transitions, lambda block: replace(block.rows(1, len(block)), prev=-1))

    result = audited(tasks, journal, without_first)

    assert result.num_missing == 1
    assert any("offset 0 row 0" in reason and "in no accepted row" in reason for reason in result.reasons)


def test_a_hole_that_nobody_mended_is_told() -> None:
    tasks, journal = world_tasks(1), make_journal(1, world_tasks(1))
    transitions = join(tasks, journal)
    assert len([block for _, _, block in transitions if isinstance(block, TransitionBlock)]) > 3

    result = audited(tasks, journal, altered(transitions, lambda _: None))

    assert result.num_ignored_blocks > 0
    assert any("claims rows that no reader accepts" in reason for reason in result.reasons)


def test_a_block_written_twice_is_accepted_once_and_harmless() -> None:
    tasks, journal, transitions = small_world()
    twice = [entry for entry in transitions for _ in range(2 if isinstance(entry[2], TransitionBlock) else 1)]
    renumbered = [(offset, time_ms, block) for offset, (_, time_ms, block) in enumerate(twice)]

    result = audited(tasks, journal, renumbered)

    assert result.reasons == []
    assert result.num_repeated_rows == 3
    assert result.num_accepted_twice == 0


def test_a_fork_is_told() -> None:
    tasks, journal, transitions = small_world()
    blocks = [block for _, _, block in transitions if isinstance(block, TransitionBlock)]
    first = blocks[0]
    other = replace(first, positions=np.array([0, 5], np.int64), prev=-1)
    forked: Entries = [(0, 0, first.rows(0, 2)), (1, 0, other), *transitions[-1:]]

    result = audited(tasks, journal, forked)

    assert any("fork" in reason for reason in result.reasons)


@pytest.mark.parametrize(("kind", "bucket"), [("decision_counts", "joined"), ("outcome_counts", "used")])
def test_a_sum_that_does_not_add_up_is_told_by_bucket(kind: str, bucket: str) -> None:
    tasks, journal, transitions = small_world()
    lying: Entries = []
    for offset, time_ms, block in transitions:
        if isinstance(block, Progress):
            counts = dict(getattr(block, kind))
            counts[bucket] += 1
            block = replace(block, **{kind: counts})
        lying.append((offset, time_ms, block))

    result = audited(tasks, journal, lying)

    assert any(f"{bucket}: recomputed 2, Progress says 3" in reason for reason in result.reasons)


def test_decisions_of_a_task_that_was_never_applied_are_told() -> None:
    _, journal, transitions = small_world()

    result = judge(0, list(journal), transitions, Definitions(table=table_of([make_task("other")])), WHOLE)

    assert any("never applied" in reason for reason in result.reasons)


def test_a_journal_without_progress_is_not_judged_and_not_blamed() -> None:
    tasks, journal, _ = small_world()

    result = audited(tasks, journal, [])

    assert result.reasons == []
    assert "no Progress yet" in result.notes[0]
    assert result.num_uncovered == len(journal)


def test_where_older_records_were_deleted_sums_are_left_alone_and_rows_still_judged() -> None:
    tasks, journal, transitions = small_world()
    newest = [entry for entry in transitions if isinstance(entry[2], Progress)][-1:]

    result = judge(
        0, list(journal)[1:], newest, Definitions(table=table_of(tasks)), {"journal": False, "transitions": False}
    )

    assert result.reasons == []
    assert "older records were deleted" in result.notes[0]
