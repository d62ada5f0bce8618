"""What a seed decides about the world: tasks and their windows, and what stands in each journal partition.

The journals are made to fall on edges often: times and windows are multiples of 10 s, ids are few, an id comes back
just inside and just outside its horizon, records that need the oldest thing a rebuild must know stand where one
restarts. Blocks of decisions are shared between seeds; the join does not write to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

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
        "day": make_task("day", 900, 100, types=(("click", "sum", 1.0, 900), ("view", "max", 1.0, 600))),
        "slate": make_task("slate", 200, 100, slots=2, types=of_slate),
    }  # fmt: skip


WORLDS = (
    ("short",), ("short", "long"), ("short", "again"), ("long", "brief", "again"), ("slate", "again"),
    ("short", "long", "slate", "again"), ("brief", "short"), ("long", "again"), ("short", "day"),
    ("brief", "again", "day"),
)  # fmt: skip
"""Tasks of a world; the last of several is applied in flight."""


@dataclass(frozen=True)
class World:
    """Everything that the log holds before a join reads it."""

    tasks: tuple[Task, ...]
    journals: list[list[Record]]
    """One per partition."""
    num_known: int
    """Tasks that are applied before anything starts; the others come in flight."""
    stops: list[list[int]]
    """Per partition: journal offsets at which nothing comes for a while, and then mostly everyone starts again."""


def make_world(rng: Random, num_records: int) -> World:
    """A world of one to three partitions and about `num_records` records."""
    tasks = tuple(all_tasks()[name] for name in rng.choice(WORLDS))
    num_partitions = rng.choice((1, 1, 1, 2, 2, 3))
    share = max(8, num_records // num_partitions)
    made = [_journal(rng, tasks, partition, share) for partition in range(num_partitions)]
    num_known = len(tasks) - (len(tasks) > 1 and rng.random() < 0.5)
    return World(tasks, [journal for journal, _ in made], num_known, [stops for _, stops in made])


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
        return outcomes(self.sent[first : first + count], first, number)


def _journal(rng: Random, tasks: tuple[Task, ...], partition: int, num_records: int) -> tuple[list[Record], list[int]]:
    """The records, and where to stop."""
    journal: list[Record] = []
    sources = (_Source(), _Source())
    now, step = START_MS + rng.randrange(10) * 10 * SECOND, 0
    ids = rng.choice((3, 5, 12))
    pace = rng.choice(((0, 0, 10, 20, 50), (0, 10, 50, 100, 150), (0, 0, 20, 100, 300), (10, 40, 100, 200, 600)))
    steps = rng.choice(_STEPS)
    edge = rng.choice((_at_the_edge, _again_and_again))(rng, tasks, partition) if rng.random() < 0.3 else []
    is_edgy, edge_at = bool(edge), rng.randrange(num_records // 2)
    for index in range(num_records):
        if index >= edge_at and edge:
            wait, record = edge.pop(0)
            now += wait
        else:
            now += rng.choice(pace) * SECOND
            if rng.random() < steps[0]:
                step = rng.choice(steps[1:]) * SECOND
            record = _some_record(rng, tasks, ids, partition, 3 * index > num_records, sources)
        journal.append((now + step, record))
    last = max(time_ms for time_ms, _ in journal)
    ticks = [offset + 1 for offset, (_, record) in enumerate(journal) if record is TICK]
    stops = set(rng.sample(ticks, min(len(ticks), rng.choice((0, 1, 2)))))
    stops |= {tick for tick in ticks if is_edgy and edge_at < tick and rng.random() < 0.6}
    journal += [(last + END_MS * (1 + more), TICK) for more in range(2)]
    return journal, sorted(stops)[:3]


_STEPS = (
    (0.0, 0), (0.0, 0), (0.08, 0, -3600, 3600, -150), (0.3, -20, -10, 0, 20), (0.15, -150, 0, 100),
)  # fmt: skip
"""How often a partition's leader changes, and by how many seconds its clock may then be off."""


def _some_record(
    rng: Random, tasks: tuple[Task, ...], ids: int, partition: int, is_late: bool, sources: tuple[_Source, _Source]
) -> Any:
    kind = rng.random()
    if kind < 0.4:
        usable = tasks if is_late else tasks[:-1] or tasks
        return _some_decisions(rng, rng.choice(usable), ids, partition)
    if kind < 0.75:
        number = rng.randrange(2)
        return sources[number].block(rng, ids, partition, number)
    return BAD if kind < 0.77 else TICK


def _at_the_edge(rng: Random, tasks: tuple[Task, ...], partition: int) -> list[Record]:
    """(wait, record): what depends on the oldest record that anything can depend on.

    A decision; its duplicate almost a horizon later; an outcome that only the first of them could have had, almost a
    window later; the decision that gets it instead, almost a backward window after that. Whoever starts between the
    first and the second takes the duplicate for a decision and gives it the outcome.
    """
    task = max(tasks, key=lambda task: task.reward.backward_ms)
    kind = task.reward.types[0]
    other = max(tasks, key=lambda task: task.reward.window_ms)
    horizon = max(600 * SECOND, other.reward.window_ms)
    first, later, subject = 100 * partition + 60, 100 * partition + 61, 77
    chosen = (0,) if other.num_slots == 1 else (0, 1)
    mine = (0,) if task.num_slots == 1 else (0, 1)
    heir = _decisions(task.fingerprint, ((later, subject, mine),), 2, frozenset())
    shared = next((each for each in other.reward.types if each.name == kind.name), other.reward.types[0])
    told = Told(key=9_000 + partition, subject=subject, kind=shared.name, value=1.0)
    source = outcomes([told], 0, 2)
    near = (0, 0, 0, -10 * SECOND, 10 * SECOND)
    return [
        (0, _decisions(other.fingerprint, ((first, subject, chosen),), 1, frozenset())),
        (horizon + rng.choice(near), _decisions(other.fingerprint, ((first, subject, chosen),), 1, frozenset())),
        (shared.window_ms + rng.choice(near), source),
        (task.reward.backward_ms + rng.choice(near), heir),
        (0, TICK),
    ]  # fmt: skip


def _again_and_again(rng: Random, tasks: tuple[Task, ...], partition: int) -> list[Record]:
    """(wait, record): one id that comes back before the window of its last record has passed, time after time."""
    task = max(tasks, key=lambda task: task.reward.window_ms)
    rows = ((100 * partition + 62, 78, (0,) if task.num_slots == 1 else (0, 1)),)
    block = _decisions(task.fingerprint, rows, 1, frozenset())
    records: list[Record] = [(int(task.reward.window_ms * rng.uniform(0.4, 0.95)), block) for _ in range(9)]
    return [*records[:7], (0, TICK), *records[7:]]


def _some_decisions(rng: Random, task: Task, ids: int, partition: int) -> DecisionBlock:
    slots = task.num_slots
    rows = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        decision = 100 * partition + rng.randint(1, ids)
        chosen = (rng.randrange(2),) if slots == 1 else tuple(rng.sample(range(3), slots))
        rows.append((decision, decision % 3 + 1, chosen))
    bad = frozenset((0,)) if rng.random() < 0.05 else frozenset()
    return _decisions(task.fingerprint, tuple(rows), rng.randint(0, 3), bad)


@lru_cache(maxsize=4_000)  # half of them; five times as many would be three in five, and a heap to walk through
def _decisions(fingerprint: bytes, rows: Any, version: int, bad: frozenset[int]) -> DecisionBlock:
    task = next(task for task in all_tasks().values() if task.fingerprint == fingerprint)
    return decisions(task, list(rows), version, bad)


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
