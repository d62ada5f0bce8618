"""The learner of a namespace: the same cuts, versions and bytes from the same log, wherever it was killed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner import checkpoint
from learner.cuts import CutRules, CutState
from learner.merge import Merge
from learner.namespace import RETIRE_GRACE_MS, Definition, NamespaceLearner, Snapshot, UnknownTask
from learner.restore import of_checkpoint, to_checkpoint
from schemas.blocks import TransitionBlock
from schemas.records import Progress
from schemas.registry import FileRegistry
from schemas.task import Task, parse
from tests.learner.transition_rows import block, progress

REGISTRY = FileRegistry()
RULES = CutRules(bucket_ms=100, publish_ms=500, publish_bytes_per_s=100_000)
TOML = """
[namespace]
name = "made-up"
[[tasks]]
name = "{name}"
[tasks.context]
x = {{ kind = "vector", size = 3 }}
words = {{ kind = "text" }}
[tasks.action]
a = {{ kind = "vector", size = 2 }}
words = {{ kind = "text" }}
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""
TASKS = [parse(TOML.format(name=name)).tasks[0] for name in ("one", "two")]
ONE, TWO = (task.fingerprint for task in TASKS)


class OrderedSum:
    """A row learner that any swapped, lost or repeated row changes for good, and whose `weights` count as a step."""

    def __init__(self, task: Task) -> None:
        self._state = np.array([0.0, 0.0, 1.0])

    def learn(self, rows: TransitionBlock) -> None:
        for mark in rows.snapshot_versions.tolist():
            self._state = self._state * [1.0, 1.0, 0.999] + [1.0, mark, float(mark) + 0.1]

    def weights(self) -> Mapping[str, np.ndarray[Any, Any]]:
        self._state[2] *= 1.5
        return {"w": self._state}

    def state(self) -> Mapping[str, np.ndarray[Any, Any]]:
        return {"state": self._state.copy()}

    def load_state(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._state = np.array(state["state"])

    @property
    def num_rows(self) -> int:
        return int(self._state[0])

    @property
    def num_failed_solves(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are computed by the real forward pass, which knows nothing of `OrderedSum`; see test_probes.py."""
    monkeypatch.setattr("learner.policy.probes.pack", lambda inputs, tasks, weights: b"probes")


def definitions(**retired_ms: int) -> dict[bytes, Definition]:
    return {task.fingerprint: Definition(task, retired_ms.get(task.name)) for task in TASKS}


def learner_of(merge: Merge, known: dict[bytes, Definition] | None = None) -> NamespaceLearner:
    start = CutState.start(merge.positions(), 0)
    found = definitions() if known is None else known
    return NamespaceLearner(OrderedSum, found.get, RULES, start, {"torch": "none"})


def offered(merge: Merge, *records: TransitionBlock | Progress) -> Merge:
    for record in records:
        merge.offer(record.partition, merge.next_offsets[record.partition], record, 10)
    return merge


def test_cut_falls_where_log_time_passes_a_publish_period_in_which_something_was_learnt() -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge)
    offered(merge, block([1, 2], [10, 320], fingerprint=ONE), progress(0, 500, {ONE: 2}))
    assert [snapshot.draft.cut_ms for snapshot in learner.advance(merge)] == [100]
    offered(merge, progress(0, 5000, {ONE: 2}))
    second = list(learner.advance(merge))
    assert [snapshot.draft.cut_ms for snapshot in second] == [600]
    assert second[0].draft.trained[0].time_ms == 600
    assert second[0].draft.trained[0].chains[0].hwm == 2
    assert second[0].draft.rows_learnt == {ONE.hex(): 2}
    assert list(learner.advance(offered(merge, progress(0, 9000, {ONE: 2})))) == []


def test_manifest_names_the_cut_before_as_parent() -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge)
    offered(merge, block([1, 2], [10, 620], fingerprint=ONE), progress(0, 2000, {ONE: 2}))
    first, second = learner.advance(merge)
    assert (first.draft.version, first.draft.parent_sha256) == (1, b"")
    assert (second.draft.version, second.draft.parent_sha256) == (2, first.draft.sha256)


def test_rows_of_an_unknown_task_wait_for_its_definition() -> None:
    merge = Merge(1, 100)
    known: dict[bytes, Definition] = {}
    learner = learner_of(merge, known)
    offered(merge, block([1], [10], fingerprint=ONE), progress(0, 2000, {ONE: 1}))
    with pytest.raises(UnknownTask, match=ONE.hex()):
        list(learner.advance(merge))
    known |= definitions()
    assert len(list(learner.advance(merge))) == 1


def test_rows_that_are_not_learnt_make_no_cut() -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge)
    offered(merge, block([1, 2], [10, 20], fingerprint=ONE, buckets=[2, 3]), progress(0, 2000, {ONE: 2}))
    assert list(learner.advance(merge)) == []
    assert learner.num_accepted["duplicate"] == 1
    assert learner.num_accepted["conflict"] == 1


def test_heads_of_a_retired_task_leave_the_snapshot_when_nothing_can_close_under_it_any_more() -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge, definitions(one=5000))
    gone_ms = 5000 + 1000 + RETIRE_GRACE_MS
    offered(
        merge,
        block([1, 4], [100, gone_ms + 700], fingerprint=ONE),
        block([2, 3, 5], [150, gone_ms + 200, gone_ms + 5000], fingerprint=TWO),
        progress(0, gone_ms + 10_000, {ONE: 4, TWO: 5}),
    )
    snapshots = list(learner.advance(merge))
    assert [len(snapshot.draft.tasks) for snapshot in snapshots] == [2, 1, 1]
    assert learner.num_rows == {TWO.hex(): 3}


def test_size_of_a_snapshot_spaces_the_next_cut_by_log_time() -> None:
    slow = CutRules(bucket_ms=100, publish_ms=500, publish_bytes_per_s=50)
    merge = Merge(1, 100)
    learner = NamespaceLearner(OrderedSum, definitions().get, slow, CutState.start(merge.positions(), 0), {})
    closing = list(range(50, 20_000, 100))
    offered(merge, block(list(range(len(closing))), closing, fingerprint=ONE), progress(0, 30_000, {ONE: 199}))
    ends = [snapshot.draft.cut_ms for snapshot in learner.advance(merge)]
    size = learner.cut.size_bytes
    assert set(np.diff(ends)) == {-(-size * 1000 // 50 // 100) * 100}


def test_rows_that_do_not_fit_their_definition_are_counted_and_spoil_no_other() -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge)
    wide = block([1, 2], [10, 20], fingerprint=ONE)
    columns = replace(wide.columns, features=replace(wide.columns.features, context=np.zeros((2, 9), np.float32)))
    offered(merge, replace(wide, columns=columns))
    choice = block([3, 4, 5], [30, 40, 50], prev=2, fingerprint=ONE)
    columns = replace(choice.columns, chosen=np.array([[0], [7], [-1]], np.int32))
    offered(merge, replace(choice, columns=columns), progress(0, 2000, {ONE: 5}))
    assert len(list(learner.advance(merge))) == 1
    assert learner.num_rows == {ONE.hex(): 2}
    assert learner.num_unfit == 3


@pytest.mark.parametrize(
    "names",
    [
        ("actions",),
        ("action_keys",),
        ("context_token_counts", "context_tokens", "context_token_values"),
        ("action_token_counts", "action_tokens", "action_token_values"),
    ],
)
def test_rows_that_lack_columns_of_their_task_are_not_learnt(names: tuple[str, ...]) -> None:
    merge = Merge(1, 100)
    learner = learner_of(merge)
    first = block([1, 2], [10, 20], fingerprint=ONE)
    left: dict[str, Any] = {name: getattr(first.columns.features, name)[:0] for name in names}
    columns = replace(first.columns, features=replace(first.columns.features, **left))
    rest = block([3, 4], [30, 40], prev=2, fingerprint=ONE)
    offered(merge, replace(first, columns=columns), rest, progress(0, 2000, {ONE: 4}))
    assert len(list(learner.advance(merge))) == 1
    assert (learner.num_rows, learner.num_unfit) == ({ONE.hex(): 2}, 2)


def clipped(rows: TransitionBlock, *flags: int) -> TransitionBlock:
    return replace(rows, flags=np.array(flags, np.uint8))


def test_clipped_rewards_are_counted_per_task_also_after_a_restart_while_its_heads_live() -> None:
    merge = Merge(1, 100)
    gone_ms = 5000 + 1000 + RETIRE_GRACE_MS
    learner = learner_of(merge, definitions(one=5000))
    offered(
        merge,
        clipped(block([1, 2, 3], [10, 20, 30], fingerprint=ONE, buckets=[0, 1, 3]), 2, 3, 2),
        clipped(block([4, 5], [15, 25], fingerprint=TWO), 1, 0),
        progress(0, 2000, {ONE: 3, TWO: 5}),
    )
    assert list(learner.advance(merge))
    assert learner.num_clipped == {ONE.hex(): 2, TWO.hex(): 0}, "rows that are learnt, whatever else is flagged"

    again = learner_of(merge, definitions(one=5000))
    again.load_state(*learner.state())
    offered(
        merge,
        clipped(block([6, 7], [2100, gone_ms + 500], prev=5, fingerprint=TWO), 2, 2),
        progress(0, gone_ms + 10_000, {ONE: 3, TWO: 7}),
    )
    assert list(again.advance(merge))
    assert again.num_clipped == {TWO.hex(): 2}

    arrays, values = learner.state()
    del values["num_clipped"]  # a checkpoint of a version that did not count them
    older = learner_of(merge)
    older.load_state(arrays, values)
    assert older.num_clipped == {ONE.hex(): 0, TWO.hex(): 0}


def records_of(random: Random) -> list[list[TransitionBlock | Progress]]:
    """Three partitions of made-up log, two tasks, a few hundred rows over some seconds of log time."""
    partitions: list[list[TransitionBlock | Progress]] = []
    for partition in range(3):
        records: list[TransitionBlock | Progress] = []
        last, hwm, position, now = {ONE: 0, TWO: 0}, {}, 0, 0
        for _ in range(random.randrange(5, 25)):
            for fingerprint in (ONE, TWO):
                count = random.randrange(4)
                if not count:
                    continue
                positions = [position + index + 1 for index in range(count)]
                closing = np.sort([max(now, last[fingerprint]) + random.randrange(300) for _ in range(count)]).tolist()
                prev = hwm.get(fingerprint, -1)
                records.append(block(positions, closing, partition, prev, fingerprint))
                position, last[fingerprint], hwm[fingerprint] = positions[-1], closing[-1], positions[-1]
            now = max(now, *last.values()) + 1
            records.append(progress(partition, now, dict(hwm)))
        records.append(progress(partition, 100_000, dict(hwm)))
        partitions.append(records)
    return partitions


def run(partitions: list[list[TransitionBlock | Progress]], random: Random, folder: Path | None) -> Iterator[Snapshot]:
    """Read in random order; with a `folder`, die at random moments and go on from the checkpoint there."""
    merge = Merge(len(partitions), 100)
    learner = learner_of(merge)
    for _ in range(100_000):
        behind = [p for p, records in enumerate(partitions) if merge.next_offsets[p] < len(records)]
        if not behind:
            break
        partition = random.choice(behind)
        for _ in range(random.randrange(1, 4)):
            offset = merge.next_offsets[partition]
            if offset < len(partitions[partition]):
                assert merge.offer(partition, offset, partitions[partition][offset], 10) is None
        for snapshot in learner.advance(merge):
            yield snapshot
            if folder is not None and random.random() < 0.2:
                checkpoint.write(folder, to_checkpoint(learner, merge, "topic", REGISTRY), keep=2)
            if random.random() < 0.1:
                break
        if folder is not None and random.random() < 0.1:
            checkpoint.write(folder, to_checkpoint(learner, merge, "topic", REGISTRY), keep=2)
        if folder is not None and random.random() < 0.15:
            found = checkpoint.newest(folder)
            merge = Merge(len(partitions), 100)
            learner = learner_of(merge)
            if found is not None:
                merge = Merge(len(partitions), 100, of_checkpoint(found, learner, REGISTRY))
    yield from learner.advance(merge)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_killed_at_random_moments_it_makes_the_same_cuts_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    partitions = records_of(Random(seed))
    whole = {snapshot.draft.version: snapshot for snapshot in run(partitions, Random(seed + 1), None)}
    assert list(whole) == list(range(1, len(whole) + 1))
    folder = tmp_path_factory.mktemp("checkpoints")
    killed: dict[int, Snapshot] = {}
    for snapshot in run(partitions, Random(seed + 2), folder):
        version = snapshot.draft.version
        assert killed.setdefault(version, snapshot) == snapshot, "made again after a restart, with other bytes"
    assert killed == whole
    assert killed[len(killed)].draft.chain_hash == whole[len(whole)].draft.chain_hash


def test_chains_of_a_definition_that_is_gone_stand_in_no_later_manifest() -> None:
    def chains(retired_ms: int | None) -> list[set[bytes]]:
        known = definitions() if retired_ms is None else definitions(one=retired_ms)
        merge = Merge(1, 100)
        learner = learner_of(merge, known)
        far = 1_000 + RETIRE_GRACE_MS + 2_000
        first = [block([1], [10], fingerprint=ONE), block([1], [20], fingerprint=TWO), progress(0, 500, {ONE: 1})]
        second = [block([2], [far], prev=1, fingerprint=TWO), progress(0, far + 1000, {TWO: 2})]
        made = [*learner.advance(offered(merge, *first)), *learner.advance(offered(merge, *second))]
        return [{chain.fingerprint for chain in each.draft.trained[0].chains} for each in made]

    assert chains(retired_ms=None) == [{ONE, TWO}, {ONE, TWO}]
    assert chains(retired_ms=400) == [{ONE, TWO}, {TWO}]
