"""Small worlds for the join: tasks, journals made from a seed, and the same things for the brute-force join.

Times are multiples of 10 s and windows too, so that equal T and the exact end of a window are common.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from schemas.blocks import DecisionBlock, OutcomeBlock, Tick
from schemas.bounds import BadRecord
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.keys import action_key
from schemas.task import Task, TaskTable, parse
from tests.oracle.brute_force_join import BruteForceJoin, Counted, Definition

SECOND = 1_000
Journal = list[tuple[int, int, Any]]

_TASK = """
[[tasks]]
name = "{name}"
{catalogue}
[tasks.context]
x = {{ kind = "number" }}
[tasks.reward]
window = "{window}s"
backward_window = "{backward}s"
default = {default}
min = -2.0
max = 6.0
"""
_TYPE = '[tasks.reward.outcomes.{name}]\naggregate = "{aggregate}"\nweight = {weight}\nwindow = "{window}s"\n'
_ACTIONS = '[tasks.action]\nz = { kind = "number" }\n'

ACTION_IDS = ("left", "middle", "right")


@cache
def make_task(
    name: str, window: int = 100, backward: int = 0, default: float = 0.0, catalogue: bool = False, slots: int = 1,
    types: tuple[tuple[str, str, float, int], ...] = (),
) -> Task:  # fmt: skip
    """A task with windows in seconds; `types` are (name, aggregate, weight, window)."""
    actions = f"actions = {list(ACTION_IDS)}" if catalogue else ""
    text = _TASK.format(name=name, window=window, backward=backward, default=default, catalogue=actions)
    for each in types or (("click", "sum", 1.0, window),):
        text += _TYPE.format(name=each[0], aggregate=each[1], weight=each[2], window=each[3])
    text += "" if catalogue else _ACTIONS
    task = parse('[namespace]\nname = "t"\npartitions = 1\n' + text).tasks[0]
    if slots == 1:
        return task
    return replace(task, num_slots=slots, fingerprint=bytes(reversed(task.fingerprint)))


def definition_of(task: Task) -> Definition:
    """The same for the brute-force join."""
    reward = task.reward
    return Definition(
        fingerprint=task.fingerprint,
        name=task.name,
        window=reward.window_ms,
        backward=reward.backward_ms,
        default=reward.default,
        smallest=reward.min,
        largest=reward.max,
        types=tuple(Counted(each.name, each.aggregate, each.weight, each.window_ms) for each in reward.types),
        catalogue=tuple(action_key(each) for each in task.actions),
    )


def decisions(
    task: Task, rows: list[tuple[int, int, tuple[int, ...]]], version: int = 1, bad: frozenset[int] = frozenset()
) -> DecisionBlock:
    """A block of (decision id, subject, chosen per slot); actions have the keys 1, 2, 3 or those of the catalogue."""
    num_rows, slots, size = len(rows), task.num_slots, len(ACTION_IDS)
    propensities = np.full((num_rows, slots, size), PROPENSITY_ONE // size, np.int32)
    propensities[:, :, 0] += PROPENSITY_ONE - int(propensities[0, 0].sum())
    context = np.array([[1000 * row[0] + index] for index, row in enumerate(rows)], np.float32)
    for row in bad:
        context[row] = np.nan
    listed = 0 if task.catalogue else num_rows * size
    features = FeatureColumns(
        context=context,
        num_candidates=np.full(num_rows, size, np.int32),
        actions=np.ones((listed, 0 if task.catalogue else 1), np.float32),
        action_keys=np.tile(np.arange(1, size + 1, dtype=np.uint64), listed // size),
        context_token_counts=np.empty(0, np.int32),
        context_tokens=np.empty(0, np.int32),
        context_token_values=np.empty(0, np.float32),
        action_token_counts=np.empty(0, np.int32),
        action_tokens=np.empty(0, np.int32),
        action_token_values=np.empty(0, np.float32),
    )
    columns = DecisionColumns(
        features=features,
        catalogue=task.catalogue,
        chosen=np.array([row[2] for row in rows], np.int32).reshape(num_rows, slots),
        propensities=propensities.reshape(-1),
        reasons=np.zeros(num_rows, np.uint8),
        values=np.empty((0, slots)),
        bounds=np.empty((0, 2)),
        terminal=np.empty(0, np.uint8),
        steps=np.empty(0, np.int32),
        episode_keys=np.empty(0, np.uint64),
    )
    return DecisionBlock(
        task=task.name,
        fingerprint=task.fingerprint,
        snapshot_version=version,
        request_topic="t.requests",
        decision_keys=np.array([(row[0], 7) for row in rows], np.uint64),
        subject_keys=np.array([row[1] for row in rows], np.uint64),
        request_partitions=np.zeros(num_rows, np.int32),
        request_offsets=np.arange(num_rows, dtype=np.int64),
        columns=columns,
    )


@dataclass(frozen=True)
class Told:
    """One outcome."""

    key: int
    subject: int
    decision: int = 0
    """0: names none."""
    kind: str = "click"
    action: int = 0
    slot: int = -1
    value: float = 1.0


def outcomes(told: list[Told], first_offset: int, partition: int = 0) -> OutcomeBlock:
    """A block of outcomes from one source partition, its source offsets rising by one."""
    names = tuple(sorted({each.kind for each in told}))
    num_rows = len(told)
    return OutcomeBlock(
        source_topic="t.outcomes",
        source_partition=partition,
        source_offsets=np.arange(first_offset, first_offset + num_rows, dtype=np.int64),
        outcome_keys=np.array([(each.key, 9) for each in told], np.uint64),
        subject_keys=np.array([each.subject for each in told], np.uint64),
        decision_keys=np.array([(each.decision, 7) if each.decision else (0, 0) for each in told], np.uint64),
        action_keys=np.array([each.action for each in told], np.uint64),
        slots=np.array([each.slot for each in told], np.int32),
        types=np.array([names.index(each.kind) for each in told], np.int32),
        values=np.array([each.value for each in told]),
        times_ms=np.zeros(num_rows, np.int64),
        type_names=names,
    )


def world_tasks(variant: int) -> list[Task]:
    """Tasks of one name and of two, short and long windows, with and without a backward window, redefined in flight."""
    short = make_task("short", 100, 0, types=(("click", "sum", 1.0, 60), ("order", "max", 2.0, 100)))
    again = make_task("short", 160, 40, types=(("click", "last", 0.5, 160),))
    long = make_task(
        "long", 400, 50, default=0.25, types=(("click", "count", 0.5, 400), ("refund", "min", -1.0, 300)),
        catalogue=True,
    )  # fmt: skip
    slate = make_task("slate", 200, 100, slots=2, types=(("click", "mean", 1.0, 200), ("order", "first", 1.0, 150)))
    return [[short], [short, long], [short, again, long], [slate, again], [short, long, slate, again]][variant % 5]


def table_of(tasks: list[Task]) -> TaskTable:
    """A task table with all of them."""
    return TaskTable(tasks)


def brute_of(tasks: list[Task], journal: Journal, **limits: int) -> BruteForceJoin:
    """The brute-force join over the whole journal."""
    join = BruteForceJoin({task.fingerprint: definition_of(task) for task in tasks}, **limits)
    for offset, append_ms, record in journal:
        join.fold(offset, append_ms, record)
    return join


def make_journal(seed: int, tasks: list[Task], num_records: int = 60, steps: bool = True) -> Journal:
    """Decisions, outcomes, copies of both, ticks and undecodable records; append time may step back for a while."""
    rng = random.Random(seed)
    journal: Journal = []
    sent: list[list[Told]] = [[], []]
    now, step, key = 10_000 * SECOND, 0, 0
    ids = rng.choice([4, 8, 30])
    for offset in range(num_records):
        now += rng.choice([0, 0, 0, 10, 20, 20, 50, 120, 300 if rng.random() < 0.2 else 30]) * SECOND
        if steps and rng.random() < 0.05:
            step = rng.choice([0, -150, -20, 20, 100, -1500]) * SECOND
        kind = rng.random()
        record: Any = Tick()
        if kind < 0.42:
            usable = tasks if offset > num_records // 3 else tasks[:-1] or tasks
            record = _some_decisions(rng, rng.choice(usable), ids)
        elif kind < 0.8:
            source = rng.randrange(2)
            if sent[source] and rng.random() < 0.2:  # ingest starts again from its last contiguous ack
                first = rng.randrange(max(0, len(sent[source]) - 6), len(sent[source]))
            else:
                first = len(sent[source])
            count = rng.choice([1, 1, 2, 4])
            while len(sent[source]) < first + count:
                key += 1
                sent[source].append(_some_outcome(rng, tasks, ids, key))
            record = outcomes(sent[source][first : first + count], first, source)
        elif kind < 0.83:
            record = BadRecord("truncated", "made by hand")
        journal.append((offset, now + step, record))
    for more in range(4):
        now += 300 * SECOND
        journal.append((num_records + more, now, Tick()))
    return journal


def _some_decisions(rng: random.Random, task: Task, ids: int) -> DecisionBlock:
    rows = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        decision = rng.randint(1, ids)
        rows.append((decision, decision % 3 + 1, tuple(rng.sample(range(3), task.num_slots))))
    bad = frozenset(row for row in range(len(rows)) if rng.random() < 0.05)
    return decisions(task, rows, rng.randint(0, 5), bad)


def _some_outcome(rng: random.Random, tasks: list[Task], ids: int, key: int) -> Told:
    decision = rng.randint(1, ids)
    subject = decision % 3 + 1 if rng.random() < 0.95 else rng.randint(1, 4)
    actions = [0, 0, 1, 2, 3, *(action_key(each) for each in ACTION_IDS)]
    return Told(
        key=rng.randint(1, key) if rng.random() < 0.15 else key,
        subject=subject,
        decision=decision if rng.random() < 0.5 else 0,
        kind=rng.choice(["click", "click", "order", "refund", "view"]),
        action=rng.choice(actions) if rng.random() < 0.4 else 0,
        slot=rng.choice([-1, 0, 1, 2]) if rng.random() < 0.15 else -1,
        value=rng.choice([0.0, 0.5, 1.0, 2.0, -1.0, 8.0]),
    )


def many_decisions(task: Task, num_rows: int, first: int = 0) -> DecisionBlock:
    """A block of decisions with ids and subjects of their own."""
    template = decisions(task, [(0, 0, (0,))])
    columns = type(template.columns).concat([template.columns] * num_rows)
    keys = np.stack([np.arange(first, first + num_rows), np.full(num_rows, 7)], axis=1).astype(np.uint64)
    return replace(
        template,
        decision_keys=keys * np.uint64(0x9E3779B97F4A7C15),
        subject_keys=keys[:, 0].copy(),
        request_partitions=np.zeros(num_rows, np.int32),
        request_offsets=np.arange(num_rows, dtype=np.int64),
        columns=columns,
    )
