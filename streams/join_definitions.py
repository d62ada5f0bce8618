"""What the join needs of the task definitions, as arrays that numba functions index by definition and outcome type.

Definitions and outcome types get their indices in the order in which this process met them; nothing that leaves the
join depends on those indices.

A definition is *known* when the task table has it, and *in force* in a partition from the first journal record that
refers to it (docs/decisions/0012). D, Wmax, bwmax, which outcome types anyone counts and which task names take one of
the `NUM_NAMES_MAX` places go by what is in force: when a process happened to read the tasks topic decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from schemas.arrays import F64, I32, I64, U64
from schemas.errors import UserError
from schemas.keys import action_key
from schemas.records import NO_TIME_MS, DefinitionPosition
from schemas.task import AGGREGATES, DEDUPE_MS_MIN, NUM_NAMES_MAX, Task, TaskTable
from schemas.task_shape import Shape


class Rules(NamedTuple):
    """Columns over F definitions and Y outcome types."""

    names: I64
    """(F,) place of the task's name, -1: it has none before the definition is in force."""
    windows_ms: I64
    """(F,) W."""
    backward_ms: I64
    """(F,) bw."""
    type_windows_ms: I64
    """(F, Y) how long outcomes of the type count, -1: the definition does not count it."""
    types: I64
    """(F, 64) the definition's types in order of name, -1 beyond the last."""
    aggregates: I64
    """(F, Y) index into `AGGREGATES`."""
    weights: F64
    """(F, Y)"""
    bounds: F64
    """(F, 3) default reward, smallest, largest."""
    names_counting: I64
    """(Y,) task names with a definition in force that counts the type."""


class Definitions:
    """All definitions of a growing `TaskTable`, compiled. `refresh` before use costs nothing while none came."""

    def __init__(self, table: TaskTable, in_force: tuple[DefinitionPosition, ...] | None = None) -> None:
        """`in_force` where the fold starts; None: whatever the table has counts, as it comes."""
        self._table = table
        self._tasks: list[Task] = []
        self._index: dict[bytes, int] = {}
        self.names: dict[str, int] = {}
        """Places of the task names in force, by which duplicates are told: in order of their first records."""
        self._types: dict[str, int] = {}
        self.shapes: list[Shape] = []
        """Per definition: what its blocks must look like."""
        self.catalogue_keys: list[U64] = []
        """Per definition: action keys of the declared catalogue, () without."""
        self._by_log = in_force is not None
        self.in_force: tuple[DefinitionPosition, ...] = in_force or ()
        """In order of their first records."""
        self._forced = {each.fingerprint for each in self.in_force}
        self._floor_ms = NO_TIME_MS
        """T before which nothing is remembered: a horizon that grows does not bring back what was let go."""
        self.missing: bytes = b""
        """A definition in force that the table does not have yet."""
        self.rules: Rules
        """Everything known, compiled."""
        self.window_ms = self.backward_ms = 0
        """Wmax and bwmax."""
        self.dedupe_ms = DEDUPE_MS_MIN
        """D once the partition has gone on for so long; see `dedupe_at`."""
        self.slots_max = 1
        self._num_seen = -1
        self.refresh()

    def refresh(self) -> None:
        """Take in what the table has got since."""
        if len(self._table) == self._num_seen:
            return
        self._num_seen = len(self._table)
        for task in self._table.tasks:
            if task.fingerprint not in self._index:
                self._add(task)
                if not self._by_log:
                    self._forced.add(task.fingerprint)
                    self.in_force += (DefinitionPosition(task.fingerprint, NO_TIME_MS),)
        self._settle()

    def require_place(self, fingerprint: bytes) -> None:
        """Raise UserError if the name of a known definition is one more than the join holds in a partition."""
        name = self._tasks[self._index[fingerprint]].name
        if name not in self.names and len(self.names) == NUM_NAMES_MAX:
            raise UserError(
                f"task {name!r} is the {NUM_NAMES_MAX + 1}th task name that decides in this partition of the journal, "
                f"the join holds {NUM_NAMES_MAX}",
                "use another namespace: `headrace apply` does not let a namespace have more names",
            )

    def put_in_force(self, fingerprint: bytes, time_ms: int) -> None:
        """The first record that refers to a known definition is folded, at T = `time_ms`."""
        if fingerprint not in self._forced:
            self._forced.add(fingerprint)
            self.in_force += (DefinitionPosition(fingerprint, time_ms),)
            self._settle()

    def is_in_force(self, fingerprint: bytes) -> bool:
        """Whether a record of the partition has referred to a known definition before."""
        return fingerprint in self._forced and fingerprint in self._index

    def dedupe_at(self, time_ms: int) -> int:
        """How far back a record at T = `time_ms` may be a duplicate of another: D, and not beyond what was kept when a
        longer window came into force."""
        return min(self.dedupe_ms, time_ms - self._floor_ms)

    def dedupe_at_each(self, times_ms: I64) -> I64:
        """`dedupe_at` of every time."""
        return np.minimum(self.dedupe_ms, times_ms - self._floor_ms)

    def _settle(self) -> None:
        """Work out what follows from the definitions in force."""
        self.window_ms = self.backward_ms = 0
        self.dedupe_ms, self._floor_ms = DEDUPE_MS_MIN, NO_TIME_MS
        self.missing = next((each.fingerprint for each in self.in_force if each.fingerprint not in self._index), b"")
        for each in self.in_force:
            if each.fingerprint not in self._index:
                continue
            reward = self._tasks[self._index[each.fingerprint]].reward
            self._floor_ms = max(self._floor_ms, each.time_ms - self.dedupe_at(each.time_ms))
            self.window_ms = max(self.window_ms, reward.window_ms)
            self.backward_ms = max(self.backward_ms, reward.backward_ms)
            self.dedupe_ms = max(self.dedupe_ms, reward.window_ms)
        in_force = [self._tasks[self._index[key]].name for key in self._in_order() if key in self._index]
        self.names = _numbered(in_force)
        self.rules = _compiled(tuple(self._tasks), self._in_order())

    def _in_order(self) -> tuple[bytes, ...]:
        """Fingerprints in force, in order of their first records."""
        return tuple(each.fingerprint for each in self.in_force)

    def index_of(self, fingerprint: bytes) -> int:
        """Index of a definition, -1 when the table does not have it."""
        return self._index.get(fingerprint, -1)

    def task(self, index: int) -> Task:
        """The definition at `index`."""
        return self._tasks[index]

    def type_indices(self, names: tuple[str, ...]) -> I32:
        """Indices of the outcome types of a block, -1 for one that no definition in force counts; one more -1 at the
        end."""
        counting = self.rules.names_counting
        indices = [self._types.get(name, -1) for name in names]
        return np.array([*(each if each >= 0 and counting[each] else -1 for each in indices), -1], np.int32)

    def _add(self, task: Task) -> None:
        for kind in task.reward.types:
            self._types.setdefault(kind.name, len(self._types))
        self._index[task.fingerprint] = len(self._tasks)
        self._tasks.append(task)
        self.shapes.append(Shape.of(task))
        self.catalogue_keys.append(_catalogue_keys(task))
        self.slots_max = max(self.slots_max, task.num_slots)


@lru_cache(maxsize=256)
def _catalogue_keys(task: Task) -> U64:
    return np.array([action_key(action) for action in task.actions], np.uint64)


@lru_cache(maxsize=256)
def _compiled(tasks: tuple[Task, ...], in_force: tuple[bytes, ...]) -> Rules:
    """Columns of `tasks` with these in force. Partitions often ask for the same, and again when they start anew."""
    known = {task.fingerprint: task for task in tasks}
    name_of = _numbered(known[fingerprint].name for fingerprint in in_force if fingerprint in known)
    forced = frozenset(in_force)
    type_of = _numbered(kind.name for task in tasks for kind in task.reward.types)
    shape = (len(tasks), max(1, len(type_of)))
    windows, aggregates = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    weights, types = np.zeros(shape), np.full((len(tasks), 64), -1, np.int64)
    counting = np.zeros((shape[1], NUM_NAMES_MAX), bool)
    for f, task in enumerate(tasks):
        for place, kind in enumerate(task.reward.types):
            y = type_of[kind.name]
            types[f, place] = y
            windows[f, y] = kind.window_ms
            aggregates[f, y] = AGGREGATES.index(kind.aggregate)
            weights[f, y] = kind.weight
            if task.fingerprint in forced:
                counting[y, name_of[task.name]] = True
    rewards = [task.reward for task in tasks]
    return Rules(
        names=np.array([name_of.get(task.name, -1) for task in tasks], np.int64),
        windows_ms=np.array([reward.window_ms for reward in rewards], np.int64),
        backward_ms=np.array([reward.backward_ms for reward in rewards], np.int64),
        type_windows_ms=windows,
        types=types,
        aggregates=aggregates,
        weights=weights,
        bounds=np.array([(r.default, r.min, r.max) for r in rewards], np.float64).reshape(-1, 3),
        names_counting=counting.sum(axis=1).astype(np.int64),
    )


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """In order of first appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}
