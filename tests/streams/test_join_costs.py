"""What the join costs: Python calls per record whatever its rows, memory per open decision, bytes per block."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from schemas.blocks import DecisionBlock, OutcomeBlock, Tick
from schemas.codec import decode, encode
from schemas.registry import FileRegistry
from schemas.task import Task, TaskTable
from streams.join import JoinPartition
from streams.join_emit import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX
from streams.join_groups import classify, read_group
from tests.oracle.join_world import SECOND, Told, make_task, many_decisions, outcomes


def python_calls(action: Callable[[], object]) -> int:
    """Calls of Python and of C functions from Python while `action` runs."""
    total = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal total
        total += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return total


def calls_of_one_round(num_rows: int) -> list[int]:
    """Python calls of fold and emit for blocks of `num_rows`, once the arrays have grown and all is compiled."""
    task = make_task("a", 100)
    join = JoinPartition(0, TaskTable([task]))
    # 3,900 rows need no page and no chains beyond those of 3,100
    join.fold(0, 10_000 * SECOND, many_decisions(task, 3_100))
    join.fold(1, 10_000 * SECOND, outcomes([Told(row + 1, row) for row in range(3_100)], 0))
    join.fold(2, 10_101 * SECOND, Tick())
    join.emit()
    told = [Told(row + 10_001, row + 10_000) for row in range(num_rows)]
    block, heard = many_decisions(task, num_rows, 10_000), outcomes(told, 10_000)
    counted = [
        python_calls(lambda: join.fold(3, 10_200 * SECOND, block)),
        python_calls(lambda: join.fold(4, 10_201 * SECOND, heard)),
        python_calls(lambda: join.fold(5, 10_301 * SECOND, Tick())),
        python_calls(join.emit),
    ]
    assert join.stats["decisions"]["joined"] == 3_100 + num_rows
    return counted


def test_python_calls_of_fold_and_emit_do_not_grow_with_the_rows_of_a_block() -> None:
    assert calls_of_one_round(800) == calls_of_one_round(8)
    assert sum(calls_of_one_round(8)) < 500


GROUP_RECORDS = 8


def group_bytes(blocks: list[Any], first_offset: int, time_ms: int, registry: FileRegistry) -> dict[str, Any]:
    """Journal records as they lie in a fetched batch, as `read_group` takes them."""
    values = [encode(block, registry) for block in blocks]
    lengths = np.array([len(value) for value in values], np.int32)
    stops = np.cumsum(lengths, dtype=np.int64)
    buffer, starts = np.frombuffer(b"".join(values), np.uint8), stops - lengths
    return {
        "buffer": buffer,
        "starts": starts,
        "stops": stops,
        "offsets": np.arange(first_offset, first_offset + len(values), dtype=np.int64),
        "times_ms": np.full(len(values), time_ms, np.int64),
        "kinds": classify(buffer, starts, lengths, registry),
        "registry": registry,
    }


def group_records(task: Task, num_rows: int, first_row: int) -> list[DecisionBlock | OutcomeBlock]:
    """Half of a group's records are decisions of `num_rows` each, the other half an outcome for each of them."""
    firsts = [first_row + num_rows * record for record in range(GROUP_RECORDS // 2)]
    decided = [many_decisions(task, num_rows, first) for first in firsts]
    told = [outcomes([Told(row + 1, row) for row in range(first, first + num_rows)], first) for first in firsts]
    return [block for pair in zip(decided, told, strict=True) for block in pair]


def calls_of_one_group(num_rows: int) -> dict[str, int]:
    """Python calls of the way of a catch-up, from the bytes of a group to the bytes of its transitions."""
    task, registry = make_task("a", 100), FileRegistry()
    join = JoinPartition(0, TaskTable([task]))
    join.fold(0, 0, many_decisions(task, 1))  # the definition is in force from here on

    def turn(rows: int, first_row: int, now: int) -> dict[str, int]:
        """One group and the tick that closes its decisions."""
        first = join.next_offset or 0
        arguments = group_bytes(group_records(task, rows, first_row), first, now, registry)
        found: dict[str, Any] = {}
        counted = {
            "read_group": python_calls(lambda: found.update(group=read_group(**arguments))),
            "fold_group": python_calls(lambda: found.update(folded=join.fold_group(found["group"]))),
            "fold": python_calls(lambda: join.fold(first + GROUP_RECORDS, now + 101 * SECOND, Tick())),
            "emit": python_calls(lambda: found.update(blocks=join.emit())),
            "encode": python_calls(lambda: [encode(block, registry) for block in found["blocks"]]),
        }
        assert found["folded"]
        return counted

    for warming in (1, 2):  # makes room; what it holds is forgotten before the next
        turn(1_000, 100_000 * warming, 10_000 * warming * SECOND)
    counted = turn(num_rows, 300_000, 30_000 * SECOND)
    assert join.stats["decisions"]["joined"] == (2_000 + num_rows) * GROUP_RECORDS // 2
    return counted


def test_python_calls_of_a_group_from_bytes_to_bytes_do_not_grow_with_the_rows_of_its_records() -> None:
    calls_of_one_group(10)  # compiles
    ten = calls_of_one_group(10)
    assert sum(ten.values()) < 200 * GROUP_RECORDS
    for num_rows in (100, 1_000):
        counted = calls_of_one_group(num_rows)
        assert counted["read_group"] == ten["read_group"]
        assert counted["fold"] == ten["fold"]
        more = sum(counted.values()) - sum(ten.values())
        assert more < 0.05 * GROUP_RECORDS * (num_rows - 10), (
            f"{counted} against {ten}: only pages, blocks of output and buffers that double may add calls"
        )


def test_memory_per_open_decision_stays_within_200_bytes_and_flat() -> None:
    task = make_task("a", 600)
    join = JoinPartition(0, TaskTable([task]))
    block_rows, num_open = 4_096, 100_000
    held = []
    for offset, first in enumerate(range(0, 8 * num_open, block_rows)):
        now = (10_000 + 600 * first // num_open) * SECOND
        join.fold(offset, now, many_decisions(task, block_rows, first))
        join.emit()
        held.append(join.memory_bytes / max(join.num_open, num_open))
    assert join.num_open > num_open
    assert max(held) <= 200
    assert max(held[len(held) // 2 :]) == min(held[len(held) // 2 :])


@pytest.mark.parametrize(("rows", "num"), [(1, 200_000), (8, 100_000), (256, 1_000_000)])
def test_an_open_decision_takes_at_most_200_bytes_of_the_process_whatever_the_blocks(rows: int, num: int) -> None:
    """Segments, runs, history and columns that are no features included; measured in the process's resident memory."""
    command = [sys.executable, "-m", "tests.streams.open_decisions_memory", str(rows), str(num)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    assert 50 < float(done.stdout) <= 200


@pytest.mark.parametrize("num_candidates", [1, 40, 2_000])
def test_no_block_is_larger_than_512_kib_when_encoded_and_none_is_needlessly_small(num_candidates: int) -> None:
    task = make_task("a", 100)
    registry = FileRegistry()
    block = many_decisions(task, 3_000 // num_candidates + 3_000)
    block = with_candidates(block, num_candidates)
    join = JoinPartition(0, TaskTable([task]))
    join.fold(0, 10_000 * SECOND, block)
    join.fold(1, 10_101 * SECOND, Tick())
    blocks = join.emit()
    sizes = [len(encode(each, registry)) for each in blocks]
    assert max(sizes) <= BLOCK_BYTES_MAX
    assert sum(map(len, blocks)) == len(block)
    assert len(blocks) <= 1 + 3 * sum(sizes) // BLOCK_BYTES_MAX
    for before, after in pairwise(blocks):
        assert after.prev == before.last
    for each in blocks:
        decoded = decode(encode(each, registry), registry)
        np.testing.assert_array_equal(decoded.positions, each.positions)


def with_candidates(block: DecisionBlock, num_candidates: int) -> DecisionBlock:
    """The same decisions with this many candidates each, and every propensity as long as it can be."""
    num_rows = len(block)
    propensities = np.full((num_rows, num_candidates), (1 << 24) // num_candidates, np.int32)
    propensities[:, 0] += (1 << 24) - propensities[0].sum()
    features = replace(
        block.columns.features,
        num_candidates=np.full(num_rows, num_candidates, np.int32),
        actions=np.ones((num_rows * num_candidates, 1), np.float32),
        action_keys=np.arange(1, num_rows * num_candidates + 1, dtype=np.uint64),
    )
    return replace(block, columns=replace(block.columns, features=features, propensities=propensities.reshape(-1)))


def test_small_closed_blocks_leave_together() -> None:
    task = make_task("a", 100)
    join = JoinPartition(0, TaskTable([task]))
    for offset in range(50):
        join.fold(offset, 10_000 * SECOND, many_decisions(task, 3, 3 * offset))
    join.fold(50, 10_101 * SECOND, Tick())
    (block,) = join.emit()
    assert len(block) == 150
    assert BLOCK_ROWS_MAX == 65_535


def test_views_of_a_large_buffer_are_not_kept() -> None:
    task = make_task("a", 100)
    block = many_decisions(task, 4)
    batch = np.zeros(1 << 20, np.uint8)
    part = batch[: block.columns.features.context.nbytes].view(np.float32).reshape(4, 1)
    part[:] = block.columns.features.context
    block = replace(block, columns=replace(block.columns, features=replace(block.columns.features, context=part)))
    join = JoinPartition(0, TaskTable([task]))
    join.fold(0, 10_000 * SECOND, block)
    batch[:] = 0xFF
    join.fold(1, 10_101 * SECOND, Tick())
    (emitted,) = join.emit()
    assert np.isfinite(emitted.columns.features.context).all()
