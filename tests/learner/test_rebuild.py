"""Replay's choice of a start: of the same history, before the version, with the log after it still whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner import checkpoint, rebuild
from learner.checkpoint import Checkpoint
from learner.consume import Received
from learner.cuts import CutState
from learner.merge import Position
from learner.namespace import Definition, Snapshot
from learner.rebuild import Goal, Rebuild, Start, before, opened, starts_of
from schemas import codec
from schemas.blocks import TransitionBlock
from schemas.errors import UserError
from schemas.records import Progress, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from tests.learner.test_namespace import ONE, TASKS, OrderedSum
from tests.learner.transition_rows import block, progress

REGISTRY = FileRegistry()
BEGINNING = (Position(0), Position(1))
RULES = {"bucket_ms": "100", "publish_ms": "500", "publish_bytes_per_s": "1000"}


def goal_of(cut_number: int, version_base: int = 0, **environment: str) -> Goal:
    genesis = CutState.start(BEGINNING, 0).genesis
    manifest = SnapshotManifest(
        version=version_base + cut_number,
        parent_sha256=b"",
        sha256=b"",
        size_bytes=1,
        chunk_offsets=(),
        cut_ms=0,
        trained=(),
        chain_hash=b"",
        cut_number=cut_number,
        tasks=(),
        environment={"genesis": genesis, **RULES, **environment},
        rows_learnt={},
        probes=b"",
        channel="main",
    )
    return Goal(manifest)


def written(
    folder: Path, number: int, offsets: Sequence[int], topic_id: str = "here", genesis: str | None = None
) -> Path:
    """A checkpoint after the cut `number`, whose partitions go on at `offsets`."""
    cut = replace(CutState.start(BEGINNING, 0), number=number)
    cut = replace(cut, genesis=genesis) if genesis else cut
    positions = [
        {"partition": p, "offset": offset, "time_ms": 0, "hwm": [], "taken_offset": 0}
        for p, offset in enumerate(offsets)
    ]
    document = {"topic_id": topic_id, "learner": {"cut": cut.to_json()}, "positions": positions}
    return checkpoint.write(folder, Checkpoint({"n": np.array([number])}, document), keep=100)


def numbers(goal: Goal, folder: Path, lows: Sequence[int] = (0, 0), beginning: bool = True) -> list[int]:
    found = starts_of(goal, folder, "here", BEGINNING if beginning else None, lows)
    return [start.cut.number for start in found]


def test_starts_are_those_of_the_same_history_whose_log_is_whole_earliest_first(tmp_path: Path) -> None:
    written(tmp_path, 9, (90, 95))
    written(tmp_path, 4, (40, 45))
    written(tmp_path, 5, (50, 55), topic_id="another log")
    written(tmp_path, 6, (60, 65), genesis="another history")
    (tmp_path / "checkpoint-000000000099.safetensors").write_bytes(b"rubbish")
    goal = goal_of(12)
    assert numbers(goal, tmp_path) == [0, 4, 9]
    assert numbers(goal, tmp_path, lows=(40, 45), beginning=False) == [4, 9]
    assert numbers(goal, tmp_path, lows=(41, 45), beginning=False) == [9]


def test_a_version_is_rebuilt_from_before_it_and_never_read_off(tmp_path: Path) -> None:
    written(tmp_path, 4, (40, 45))
    starts = starts_of(goal_of(4), tmp_path, "here", BEGINNING, (0, 0))
    assert [start.cut.number for start in before(goal_of(4), starts)] == [0]


def test_out_of_reach_names_the_earliest_version_within_reach(tmp_path: Path) -> None:
    written(tmp_path, 4, (40, 45))
    goal = goal_of(4, version_base=100)
    starts = starts_of(goal, tmp_path, "here", None, (40, 45))
    with pytest.raises(UserError, match="the earliest version that can be rebuilt is 105, from checkpoint-0"):
        before(goal, starts)
    with pytest.raises(UserError, match="every version of its history"):
        before(goal, [])


def test_a_damaged_start_and_an_anchor_that_is_not_the_one_named_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged, anchor = (written(tmp_path, number, (0, 0)) for number in (3, 5, 6))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    other = tmp_path / "anchor-00000007.safetensors"
    anchor.rename(other)
    goal = goal_of(9, anchor=f"anchor-00000007 {'0' * 64}")
    starts = before(goal, starts_of(goal, tmp_path, "here", None, (0, 0)))[::-1]
    start, found = opened(goal, starts)
    assert start.path == whole
    assert found is not None
    assert other.name in caplog.text
    assert damaged.name in caplog.text
    right = goal_of(9, anchor=f"anchor-00000007 {checkpoint.digest_of(other)}")
    assert opened(right, starts)[0].path == other


def test_a_manifest_without_rules_for_cuts_is_refused() -> None:
    assert goal_of(1).rules.publish_ms == 500
    with pytest.raises(UserError, match="does not record its rules"):
        _ = goal_of(1, publish_ms="often").rules


class Reader:
    """All records of a log at once, then nothing."""

    def __init__(self, *log: list[TransitionBlock | Progress]) -> None:
        self.left = [
            Received(partition, offset, codec.encode(record, REGISTRY), 0)
            for partition, records in enumerate(log)
            for offset, record in enumerate(records)
        ]
        self.paused: set[int] = set()

    def read(self, _: float) -> list[Received]:
        given, self.left = self.left, []
        return given

    def pause_only(self, partitions: Iterable[int]) -> None:
        self.paused = set(partitions)

    def close(self) -> None:
        pass


def rebuilt(monkeypatch: pytest.MonkeyPatch, cut_number: int, *log: list[TransitionBlock | Progress]) -> Snapshot:
    monkeypatch.setattr(rebuild, "TransitionsReader", lambda *_: Reader(*log))
    monkeypatch.setattr("learner.policy.probes.pack", lambda *_: b"probes")
    start = Start(CutState.start(BEGINNING, 0), BEGINNING)
    known = {TASKS[0].fingerprint: Definition(TASKS[0])}
    settings = CommonSettings(bootstrap="127.0.0.1:1", namespace="unit")
    run = Rebuild(settings, REGISTRY, goal_of(cut_number), start, None, known.get, OrderedSum, len(log))
    return run.run([len(records) for records in log])


FORKED: list[TransitionBlock | Progress] = [
    block([1, 3], [10, 20], fingerprint=ONE),
    progress(0, 600, {ONE: 3}),
    block([1, 4], [610, 630], fingerprint=ONE),
    block([6], [640], prev=4, fingerprint=ONE),
    progress(0, 5000, {ONE: 6}),
]


def test_what_stands_before_a_fork_is_rebuilt_and_what_stands_behind_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other: list[TransitionBlock | Progress] = [progress(1, 9000, {})]
    assert rebuilt(monkeypatch, 1, FORKED, other).draft.cut_number == 1
    with pytest.raises(UserError, match="fork in partition 0 at offset 2, before version 2's cut") as caught:
        rebuilt(monkeypatch, 2, FORKED, other)
    assert "take version 1 or one before it" in caught.value.remedy


def test_a_log_that_ends_before_a_fork_could_hold_it_up_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="fork in partition 0"):
        rebuilt(monkeypatch, 2, FORKED, [progress(1, 300, {})])
    with pytest.raises(UserError, match="the log ends at version 1"):
        rebuilt(monkeypatch, 2, FORKED[:2], [progress(1, 9000, {})])
