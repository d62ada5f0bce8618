"""What a seed decides about the world: tasks and their windows, and what stands in each journal partition.

The journals are made to fall on edges often: times and windows are multiples of 10 s, ids are few, an id comes back
just inside and just outside its horizon, records that need the oldest thing a rebuild must know stand where one
restarts. Blocks are made once per process and shared between seeds; the join does not write to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from schemas.blocks import DecisionBlock, OutcomeBlock, Tick
from schemas.bounds import BadRecord
from schemas.keys import action_key
from schemas.task import Task
from tests.oracle.join_world import ACTION_IDS, SECOND, Told, decisions, make_task, outcomes

HOUR = 3_600 * SECOND
START_MS = 10_000_000 * SECOND
END_MS = 4 * HOUR
"""What the last ticks are apart: longer than any window, look-back or step of a clock."""

Record = tuple[int, Any]
"""(append time in ms, block)."""

TICK = Tick()
BAD = BadRecord("truncated", "made by hand")


@lru_cache(maxsize=1)
def all_tasks() -> dict[str, Task]:
    """Every task that a world may have."""
    of_slate = (("click", "mean", 1.0, 200), ("order", "first", 1.0, 150))
    return {
        "short": make_task("short", 100, 0, types=(("click", "sum", 1.0, 60), ("order", "max", 2.0, 100))),
        "again": make_task("short", 160, 40, types=(("click", "last", 0.5, 160),)),
        "brief": make_task("short", 30, 30, types=(("click", "sum", 1.0, 30), ("refund", "count", 0.5, 20))),
        "long": make_task(
            "long", 400, 50, default=0.25, types=(("click", "count", 0.5, 400), ("refund", "min", -1.0, 300)),
            catalogue=True,
        ),
        "slate": make_task("slate", 200, 100, slots=2, types=of_slate),
    }  # fmt: skip


WORLDS = (
    ("short",), ("short", "long"), ("short", "again"), ("long", "brief", "again"), ("slate", "again"),
    ("short", "long", "slate", "again"), ("brief", "short"), ("long", "again"),
)  # fmt: skip
"""Tasks of a world; the last of several is applied in flight."""


@dataclass(frozen=True)
class World:
    """Everything that the log holds before a join reads it."""

    tasks: tuple[Task, ...]
    journals: list[list[Record]]
    """One per partition."""


def make_world(rng: Random, num_records: int) -> World:
    """A world of one to three partitions and about `num_records` records."""
    tasks = tuple(all_tasks()[name] for name in rng.choice(WORLDS))
    num_partitions = rng.choice((1, 1, 1, 2, 2, 3))
    share = max(8, num_records // num_partitions)
    return World(tasks, [_journal(rng, tasks, partition, share) for partition in range(num_partitions)])


class _Source:
    """One partition of a users' topic, as ingest copied it into one journal partition."""

    def __init__(self) -> None:
        self.sent: list[Told] = []

    def block(self, rng: Random, ids: int, partition: int, number: int) -> OutcomeBlock:
        """The next rows; now and then from further back, as after a restart of ingest."""
        first = len(self.sent)
        if first and rng.random() < 0.2:
            first = rng.randrange(max(0, first - 6), first)
        count = rng.choice((1, 1, 2, 3))
        while len(self.sent) < first + count:
            self.sent.append(_some_outcome(rng, ids, 2 * len(self.sent) + number + 1, partition))
        told = tuple(self.sent[first : first + count])
        offsets = np.arange(first, first + count, dtype=np.int64)
        return replace(_outcomes(told), source_partition=number, source_offsets=offsets)


def _journal(rng: Random, tasks: tuple[Task, ...], partition: int, num_records: int) -> list[Record]:
    journal: list[Record] = []
    sources = (_Source(), _Source())
    now, step = START_MS + rng.randrange(10) * 10 * SECOND, 0
    ids = rng.choice((3, 5, 12))
    pace = rng.choice(((0, 0, 10, 20, 50), (0, 10, 50, 100, 150), (0, 0, 20, 100, 300), (10, 40, 100, 200, 600)))
    steps = rng.random() < 0.3
    for index in range(num_records):
        now += rng.choice(pace) * SECOND
        if steps and rng.random() < 0.08:
            step = rng.choice((0, -HOUR, HOUR, -150 * SECOND, 100 * SECOND))
        kind = rng.random()
        record: Any = TICK
        if kind < 0.4:
            usable = tasks if 3 * index > num_records else tasks[:-1] or tasks
            record = _some_decisions(rng, rng.randrange(len(usable)), usable, ids, partition)
        elif kind < 0.75:
            number = rng.randrange(2)
            record = sources[number].block(rng, ids, partition, number)
        elif kind < 0.77:
            record = BAD
        journal.append((now + step, record))
    last = max(time_ms for time_ms, _ in journal)
    return [*journal, *((last + END_MS * (1 + more), TICK) for more in range(2))]


def _some_decisions(rng: Random, which: int, tasks: tuple[Task, ...], ids: int, partition: int) -> DecisionBlock:
    slots = tasks[which].num_slots
    rows = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        decision = 100 * partition + rng.randint(1, ids)
        chosen = (rng.randrange(2),) if slots == 1 else tuple(rng.sample(range(3), slots))
        rows.append((decision, decision % 3 + 1, chosen))
    bad = frozenset((0,)) if rng.random() < 0.05 else frozenset()
    return _decisions(tasks[which].fingerprint, tuple(rows), rng.randint(0, 3), bad)


@lru_cache(maxsize=20_000)
def _decisions(fingerprint: bytes, rows: Any, version: int, bad: frozenset[int]) -> DecisionBlock:
    task = next(task for task in all_tasks().values() if task.fingerprint == fingerprint)
    return decisions(task, list(rows), version, bad)


@lru_cache(maxsize=20_000)
def _outcomes(told: tuple[Told, ...]) -> OutcomeBlock:
    return outcomes(list(told), 0)


_ACTIONS = (0, 0, 1, 2, *(action_key(each) for each in ACTION_IDS[:2]))
_KINDS = ("click", "click", "order", "refund", "view")


def _some_outcome(rng: Random, ids: int, key: int, partition: int) -> Told:
    decision = 100 * partition + rng.randint(1, ids)
    fate = rng.random()
    return Told(
        key=rng.randint(1, key) if rng.random() < 0.2 else key,
        subject=decision % 3 + 1 if fate < 0.95 else rng.randint(1, 4),
        decision=decision if fate < 0.5 else 0,
        kind=rng.choice(_KINDS),
        action=rng.choice(_ACTIONS) if rng.random() < 0.3 else 0,
        slot=rng.choice((-1, 0, 1, 2)) if rng.random() < 0.1 else -1,
        value=rng.choice((0.0, 0.5, 1.0, 2.0, -1.0, 8.0)),
    )
