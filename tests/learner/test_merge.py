"""The merge: one sequence from many partitions, the same for every reader of the log."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.gather import take
from learner.merge import Merge
from schemas.blocks import TransitionBlock
from schemas.decision_columns import FeatureColumns
from schemas.frozen import names_of
from schemas.records import DecisionBucket, Progress
from tests.learner.transition_rows import FINGERPRINTS, block, progress

A, B = FINGERPRINTS


def marks(cut_rows: dict[bytes, TransitionBlock], fingerprint: bytes = A) -> list[int]:
    return cut_rows[fingerprint].snapshot_versions.tolist() if fingerprint in cut_rows else []


def test_bucket_is_held_back_until_every_partition_passed_its_last_millisecond() -> None:
    merge = Merge(2, 100)
    merge.offer(0, 0, block([1], [150], partition=0))
    merge.offer(0, 1, progress(0, 500, {A: 1}))
    assert merge.take().rows == {}
    merge.offer(1, 0, progress(1, 199, {}))
    assert merge.take().rows == {}
    merge.offer(1, 1, progress(1, 200, {}))
    assert marks(merge.take().rows) == [1]


def test_rows_leave_in_order_of_closing_partition_and_position() -> None:
    merge = Merge(2, 100)
    merge.offer(1, 0, block([5, 6], [10, 20], partition=1))
    merge.offer(0, 0, block([7, 9], [20, 20], partition=0))
    for partition, hwm in ((0, 9), (1, 6)):
        merge.offer(partition, 1, progress(partition, 100, {A: hwm}))
    assert marks(merge.take().rows) == [1005, 7, 9, 1006]


def test_progress_that_needs_a_row_not_accepted_does_not_count() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, progress(0, 1000, {A: 3}))
    assert merge.done_ms < 0
    merge.offer(0, 1, block([3], [50]))
    merge.offer(0, 2, progress(0, 900, {A: 3}))
    assert merge.done_ms == 900


def test_hole_is_reported_with_positions_and_its_block_ignored() -> None:
    merge = Merge(1, 100)
    alarm = merge.offer(0, 7, block([4], [50], prev=2))
    assert alarm is not None
    assert (alarm.kind, alarm.partition, alarm.offset) == ("hole", 0, 7)
    assert "between positions -1 and 2" in alarm.detail
    merge.offer(0, 8, block([1, 2, 4], [10, 20, 50]))
    merge.offer(0, 9, progress(0, 100, {A: 4}))
    assert marks(merge.take().rows) == [1, 2, 4]


def test_fork_stops_its_partition_for_good() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, block([1, 3], [10, 20]))
    alarm = merge.offer(0, 1, block([1, 2, 4], [10, 20, 30]))
    assert alarm is not None
    assert alarm.kind == "fork"
    assert merge.stopped == [0]
    merge.offer(0, 2, progress(0, 500, {A: 3}))
    assert merge.take().rows == {}


FORKED = [
    block([1, 3], [10, 20]),
    block([1], [30], fingerprint=B),
    progress(0, 100, {A: 3, B: 1}),
    block([1, 2, 4], [110, 120, 130]),
    block([5], [140], prev=3),
    progress(0, 500, {A: 5, B: 1}),
]
FORK = 3


@pytest.mark.parametrize("restart_after", [*range(len(FORKED)), None])
@pytest.mark.parametrize("takes", [True, False])
def test_fork_is_met_again_after_a_restart_anywhere(restart_after: int | None, takes: bool) -> None:
    merge, told, rows = Merge(1, 100), [], []
    given = deque(range(len(FORKED)))
    while given:
        offset = given.popleft()
        alarm = merge.offer(0, offset, FORKED[offset])
        told += [(alarm.kind, alarm.offset)] if alarm is not None else []
        rows += marks(merge.take().rows) if takes else []
        if offset == restart_after:
            restart_after = None
            (position,) = merge.positions()
            assert position.offset <= FORK, "what lies behind the fork is never begun with"
            merge, given = Merge(1, 100, [position]), deque(range(position.offset, len(FORKED)))
    assert set(told) == {("fork", FORK)}
    assert (merge.stopped, merge.is_held, merge.next_offsets, merge.done_ms) == ([0], True, [FORK], 100)
    assert rows + marks(merge.take().rows) == [1, 3]


def test_a_fork_holds_the_merge_only_once_the_others_have_come_so_far() -> None:
    merge = Merge(2, 100)
    for offset, record in enumerate(FORKED):
        merge.offer(0, offset, record)
    merge.offer(1, 0, progress(1, 50, {}))
    assert (merge.stopped, merge.is_held) == ([0], False)
    merge.offer(1, 1, progress(1, 300, {}))
    assert merge.is_held


def test_row_that_closed_before_log_time_is_taken_at_log_time_and_reported() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, progress(0, 1000, {}))
    alarm = merge.offer(0, 1, block([1], [50]))
    assert alarm is not None
    assert alarm.kind == "late"
    assert merge.take().rows == {}
    merge.offer(0, 2, progress(0, 1100, {A: 1}))
    assert marks(merge.take().rows) == [1]


def test_record_of_another_partition_is_ignored_and_reported() -> None:
    merge = Merge(2, 100)
    alarm = merge.offer(0, 0, block([1], [50], partition=1))
    assert alarm is not None
    assert alarm.kind == "stray"


def test_only_joined_and_defaulted_rows_leave_but_all_are_counted() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, block([1, 2, 3, 4, 5], [10] * 5, buckets=list(range(5))))
    merge.offer(0, 1, progress(0, 100, {A: 5}))
    cut = merge.take()
    assert marks(cut.rows) == [1, 2]
    assert cut.num_accepted == dict.fromkeys((bucket.label for bucket in DecisionBucket), 1)


def test_correction_chain_is_followed_but_not_learnt() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, block([1], [10], kind=1))
    merge.offer(0, 1, progress(0, 100, {}))
    assert merge.take().rows == {}
    assert merge.positions()[0].hwm == {(A, 1): 1}


def test_slowest_partition_is_never_paused_and_waiting_bytes_return_to_zero() -> None:
    merge = Merge(3, 100)
    merge.offer(0, 0, block([1, 2, 3], [10, 120, 230]), num_bytes=101)
    merge.offer(0, 1, progress(0, 300, {A: 3}))
    merge.offer(1, 0, progress(1, 150, {}))
    assert merge.ahead() == [0, 1]
    merge.offer(2, 0, progress(2, 150, {}))
    assert merge.ahead() == [0]
    merge.take()
    assert 0 < merge.num_bytes < 101
    for partition in (1, 2):
        merge.offer(partition, 1, progress(partition, 300, {}))
    merge.take()
    assert merge.num_bytes == 0


def test_taking_rows_in_any_order_keeps_every_ragged_column_with_its_row() -> None:
    whole = block(list(range(20)), list(range(20)))
    order = np.random.Generator(np.random.PCG64(3)).permutation(20)[:13]
    taken = take(whole, order)
    expected = TransitionBlock.concat([whole.rows(int(row), int(row) + 1) for row in order])
    for name in names_of(FeatureColumns):
        np.testing.assert_array_equal(getattr(taken.columns.features, name), getattr(expected.columns.features, name))
    np.testing.assert_array_equal(taken.columns.propensities, expected.columns.propensities)
    np.testing.assert_array_equal(taken.positions, expected.positions)


def test_python_calls_per_block_do_not_grow_with_its_rows() -> None:
    import sys

    def calls(num_rows: int) -> int:
        merge = Merge(1, 100)
        whole = block(list(range(num_rows)), list(range(num_rows)))
        count = 0

        def trace(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(trace)
        try:
            merge.offer(0, 0, whole)
            merge.offer(0, 1, progress(0, 10**6, {A: num_rows - 1}))
            merge.take()
        finally:
            sys.setprofile(None)
        return count

    assert calls(10) == calls(5000)


@dataclass(frozen=True)
class Log:
    """Records per partition, and every row in the order that any reader must see."""

    partitions: list[list[TransitionBlock | Progress]]
    expected: dict[bytes, list[int]]
    end_ms: int


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Two tasks in up to three partitions; blocks of any size, written twice or overlapping, Progress in between."""
    partitions: list[list[TransitionBlock | Progress]] = []
    keys: dict[bytes, list[tuple[int, int, int]]] = {A: [], B: []}
    for partition in range(draw(st.integers(1, 3))):
        records: list[TransitionBlock | Progress] = []
        hwm: dict[bytes, int] = {}
        chains: dict[bytes, tuple[list[int], list[int]]] = {A: ([], []), B: ([], [])}
        position, time_ms = 0, 0
        for _ in range(draw(st.integers(0, 12))):
            fingerprint = draw(st.sampled_from(FINGERPRINTS))
            positions, closed = chains[fingerprint]
            at = max(time_ms, closed[-1] if closed else 0)
            for step in draw(st.lists(st.integers(0, 120), max_size=5)):
                position += draw(st.integers(1, 3))
                at += step
                positions.append(position)
                closed.append(at)
                keys[fingerprint].append((at, partition, position))
            if positions:
                first = draw(st.integers(0, positions.index(hwm[fingerprint]) + 1 if fingerprint in hwm else 0))
                prev = positions[first - 1] if first else -1
                if first < len(positions):
                    records.append(block(positions[first:], closed[first:], partition, prev, fingerprint))
                    hwm[fingerprint] = positions[-1]
            if draw(st.booleans()):
                time_ms = max([time_ms, *(c[-1] + 1 for _, c in chains.values() if c)]) + draw(st.integers(0, 150))
                records.append(progress(partition, time_ms, dict(hwm)))
        records.append(progress(partition, 10**6, dict(hwm)))
        partitions.append(records)
    expected = {
        fingerprint: [position + 1000 * partition for _, partition, position in sorted(rows)]
        for fingerprint, rows in keys.items()
    }
    return Log(partitions, expected, 10**6)


@settings(max_examples=150, deadline=None)
@given(log=logs(), random=st.randoms(use_true_random=False))
def test_any_arrival_order_and_restarts_anywhere_give_the_same_sequence(log: Log, random: Random) -> None:
    merge = Merge(len(log.partitions), 100)
    seen: dict[bytes, list[int]] = {A: [], B: []}

    def collect() -> None:
        until = random.choice([None, merge.done_ms - random.choice([0, 100, 300])])
        cut = merge.take(until)
        for fingerprint in cut.rows:
            seen[fingerprint] += marks(cut.rows, fingerprint)

    for _ in range(10_000):
        behind = [p for p, records in enumerate(log.partitions) if merge.next_offsets[p] < len(records)]
        if not behind:
            break
        partition = random.choice(behind)
        offset = merge.next_offsets[partition]
        assert merge.offer(partition, offset, log.partitions[partition][offset], 100) is None
        if random.random() < 0.3:
            collect()
        if random.random() < 0.15:
            merge = Merge(len(log.partitions), 100, merge.positions())
    cut = merge.take()
    for fingerprint in cut.rows:
        seen[fingerprint] += marks(cut.rows, fingerprint)
    assert seen == log.expected
    assert merge.num_bytes == 0


def test_merge_never_takes_part_of_a_bucket() -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, block([1, 2, 3], [10, 110, 190]))
    merge.offer(0, 1, progress(0, 195, {A: 3}))
    assert marks(merge.take().rows) == [1]
    assert merge.first_ms() is None


@pytest.mark.parametrize("until_ms", [100, 200])
def test_rows_taken_are_the_same_through_any_boundary(until_ms: int) -> None:
    merge = Merge(1, 100)
    merge.offer(0, 0, block([1, 2, 3], [10, 110, 210]))
    merge.offer(0, 1, progress(0, 400, {A: 3}))
    assert marks(merge.take(until_ms).rows) + marks(merge.take().rows) == [1, 2, 3]
