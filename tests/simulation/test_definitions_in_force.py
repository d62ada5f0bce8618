"""When a process reads the tasks topic decides nothing: docs/decisions/0012-definitions-in-force.md."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.blocks import Tick
from schemas.chain import ChainReader
from schemas.records import DefinitionPosition, Progress, Resume
from schemas.task import Task, TaskTable
from streams.join import JoinPartition, UnknownTask
from tests.oracle.join_world import SECOND, Told, decisions, make_task, outcomes

SHORT = make_task("short", 100)
DAY = make_task("day", 900, backward=60, types=(("click", "sum", 1.0, 900), ("order", "sum", 1.0, 900)))
BIRTH = Resume(0, definitions=())
Journal = list[tuple[int, Any]]


def joined(journal: Journal, tasks: list[Task], learnt: dict[int, Task], resume: Resume = BIRTH, **start: Any) -> Any:
    """(rows by position, counts, last Progress) of a join that reads the tasks topic at the offsets of `learnt`."""
    table = TaskTable(tasks)
    join, reader, said = JoinPartition(0, table, resume, **start), ChainReader(), None
    rows = {}
    for offset in range(resume.offset, len(journal)):
        if offset in learnt:
            table.add(learnt[offset])
        join.fold(offset, journal[offset][0] * SECOND, journal[offset][1])
        for block in join.emit():
            reader.offer(block)
            join.accepted(block)
            for row, position in enumerate(block.positions.tolist()):
                rows[position] = (int(block.buckets[row]), block.rewards[row].tolist(), int(block.num_outcomes[row]))
        said = join.progress(reader, 0) or said
    stats = join.stats
    return rows, (stats["decisions"], stats["outcomes"]), said


def one(task: Task, decision: int) -> Any:
    return decisions(task, [(decision, 1, (0,))])


def test_a_longer_horizon_starts_with_the_first_record_of_its_definition() -> None:
    journal: Journal = [
        (10_000, one(SHORT, 1)), (10_610, one(DAY, 2)), (10_800, one(SHORT, 1)), (12_000, Tick()), (20_000, Tick()),
    ]  # fmt: skip
    early = joined(journal, [SHORT, DAY], {})
    late = joined(journal, [SHORT], {1: DAY})
    assert early == late
    assert early[1][0]["duplicate"] == 0, "what was let go before is not a duplicate's first"


def test_what_is_within_both_horizons_is_a_duplicate_as_soon_as_the_longer_one_holds() -> None:
    journal: Journal = [(10_000, one(SHORT, 1)), (10_500, one(DAY, 2)), (10_800, one(SHORT, 1)), (20_000, Tick())]
    assert joined(journal, [SHORT, DAY], {})[1][0]["duplicate"] == 1


def test_outcomes_wait_and_count_by_what_is_in_force_whoever_knows_more() -> None:
    journal: Journal = [
        (10_000, one(SHORT, 1)),
        (10_010, outcomes([Told(1, 1, kind="click"), Told(2, 1, kind="order")], 0)),
        (10_040, one(DAY, 2)),
        (10_050, outcomes([Told(3, 1, kind="order")], 2)),
        (20_000, Tick()),
    ]
    assert joined(journal, [SHORT, DAY], {}) == joined(journal, [SHORT], {2: DAY})


def test_a_resume_carries_the_definitions_that_count_before_it() -> None:
    journal: Journal = [
        (10_000, one(DAY, 2)), (12_000, one(SHORT, 1)), (12_001, Tick()), (12_700, one(SHORT, 1)), (20_000, Tick()),
    ]  # fmt: skip
    first = joined(journal[:3], [SHORT, DAY], {})[2]
    assert isinstance(first, Progress)
    assert first.resume.definitions == (DefinitionPosition(DAY.fingerprint, 10_000 * SECOND),)
    whole = joined(journal, [SHORT, DAY], {})
    chains = {(chain.fingerprint, chain.kind): chain.hwm for chain in first.chains}
    again = joined(journal, [SHORT, DAY], {}, first.resume, chains=chains, counted=first)
    assert again[1] == whole[1]
    assert whole[1][0]["duplicate"] == 1, "D is 900 s here though no record since the resume says so"


def test_a_definition_in_force_that_is_not_known_yet_is_waited_for() -> None:
    table = TaskTable([SHORT])
    join = JoinPartition(0, table, Resume(5, 0, (), (DefinitionPosition(DAY.fingerprint, 0),)))
    with pytest.raises(UnknownTask, match=DAY.fingerprint.hex()):
        join.fold(5, 1, Tick())
    table.add(DAY)
    join.fold(5, 1, Tick())
    assert join.next_offset == 6


def test_a_resume_of_the_first_version_takes_the_whole_table() -> None:
    journal: Journal = [(10_000, one(SHORT, 1)), (10_610, one(DAY, 2)), (10_800, one(SHORT, 1)), (20_000, Tick())]
    assert joined(journal, [SHORT, DAY], {}, Resume(0))[1][0]["duplicate"] == 1
