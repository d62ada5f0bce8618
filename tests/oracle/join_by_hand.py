"""A journal partition fed to the join by hand, one record after the other."""

from __future__ import annotations

from typing import Any

from schemas.blocks import Tick, TransitionBlock
from schemas.records import DecisionBucket
from schemas.task import Task, TaskTable
from streams.join import JoinLimits, JoinPartition
from tests.oracle.join_world import SECOND, decisions, outcomes

START_S = 10_000
LATER_S = START_S + 5_000


class Run:
    """A partition fed by hand; times in seconds after the start."""

    def __init__(self, *tasks: Task, limits: JoinLimits | None = None) -> None:
        self.join = JoinPartition(0, TaskTable(tasks), limits=limits)
        self.offset = self.source = 0

    def at(self, second: float, record: Any) -> Run:
        if isinstance(record, list):
            record, self.source = outcomes(record, self.source), self.source + len(record)
        self.join.fold(self.offset, int((START_S + second) * SECOND), record)
        self.offset += 1
        return self

    def end(self, second: float = LATER_S) -> list[TransitionBlock]:
        self.at(second, Tick())
        return self.join.emit()

    def rows(self, second: float = LATER_S) -> list[tuple[str, float, int]]:
        """(bucket, reward of the first slot, outcomes) of every row, in position order over all chains."""
        found = [
            (int(p), DecisionBucket(int(b)).label, float(r), int(n))
            for block in self.end(second)
            for p, b, r, n in zip(block.positions, block.buckets, block.rewards[:, 0], block.num_outcomes, strict=True)
        ]
        return [row[1:] for row in sorted(found)]

    @property
    def outcomes(self) -> dict[str, int]:
        return {name: count for name, count in self.join.stats["outcomes"].items() if count}


def one(task: Task, decision: int = 1, subject: int = 5, chosen: int = 0, version: int = 1) -> Any:
    """A block of one decision."""
    return decisions(task, [(decision, subject, (chosen,))], version)
