"""What the join needs of the task definitions, as arrays that numba functions index by definition and outcome type.

Definitions and outcome types get their indices in the order in which this process met them; nothing that leaves the
join depends on those indices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from schemas.blocks import F64, I32, I64, U64
from schemas.errors import UserError
from schemas.keys import action_key
from schemas.task import AGGREGATES, Task, TaskTable
from streams.join_intake import Shape

NUM_NAMES_MAX = 128
"""Task names per partition: a pending outcome has one bit for each."""


class Rules(NamedTuple):
    """Columns over F definitions and Y outcome types."""

    names: I64
    """(F,) index of the task's name."""
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
    """(Y,) task names with a definition that counts the type."""


class Definitions:
    """All definitions of a growing `TaskTable`, compiled. `refresh` before use costs nothing while none came."""

    def __init__(self, table: TaskTable) -> None:
        self._table = table
        self._tasks: list[Task] = []
        self._index: dict[bytes, int] = {}
        self.names: dict[str, int] = {}
        """Task names, by which duplicates are told."""
        self._types: dict[str, int] = {}
        self.shapes: list[Shape] = []
        """Per definition: what its blocks must look like."""
        self.catalogue_keys: list[U64] = []
        """Per definition: action keys of the declared catalogue, () without."""
        self.rules = self._compile()
        self.window_ms = self.backward_ms = self.dedupe_ms = 0
        """Wmax, bwmax and D of the namespace."""
        self.slots_max = 1
        self.refresh()

    def refresh(self) -> None:
        """Take in what the table has got since. Raises UserError beyond `NUM_NAMES_MAX` task names."""
        if len(self._table) == len(self._tasks) and self.dedupe_ms:
            return
        for task in self._table.tasks:
            if task.fingerprint not in self._index:
                self._add(task)
        self.rules = self._compile()
        self.window_ms = max(self.window_ms, self._table.max_window_ms)
        self.backward_ms = max(self.backward_ms, self._table.max_backward_ms)
        self.dedupe_ms = max(self.dedupe_ms, self._table.dedupe_ms)

    def index_of(self, fingerprint: bytes) -> int:
        """Index of a definition, -1 when the table does not have it."""
        return self._index.get(fingerprint, -1)

    def task(self, index: int) -> Task:
        """The definition at `index`."""
        return self._tasks[index]

    def type_indices(self, names: tuple[str, ...]) -> I32:
        """Indices of the outcome types of a block, -1 for one that no definition counts; one more -1 at the end."""
        return np.array([*(self._types.get(name, -1) for name in names), -1], np.int32)

    def _add(self, task: Task) -> None:
        if task.name not in self.names and len(self.names) == NUM_NAMES_MAX:
            raise UserError(
                f"task {task.name!r} is the {NUM_NAMES_MAX + 1}th task name of the namespace, the join holds "
                f"{NUM_NAMES_MAX}",
                "use another namespace for more tasks",
            )
        self.names.setdefault(task.name, len(self.names))
        for kind in task.reward.types:
            self._types.setdefault(kind.name, len(self._types))
        self._index[task.fingerprint] = len(self._tasks)
        self._tasks.append(task)
        self.shapes.append(Shape.of(task))
        self.catalogue_keys.append(np.array([action_key(action) for action in task.actions], np.uint64))
        self.slots_max = max(self.slots_max, task.num_slots)

    def _compile(self) -> Rules:
        shape = (len(self._tasks), max(1, len(self._types)))
        windows, aggregates = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        weights, types = np.zeros(shape), np.full((len(self._tasks), 64), -1, np.int64)
        counting = np.zeros((shape[1], NUM_NAMES_MAX), bool)
        for f, task in enumerate(self._tasks):
            for place, kind in enumerate(task.reward.types):
                y = self._types[kind.name]
                types[f, place] = y
                windows[f, y] = kind.window_ms
                aggregates[f, y] = AGGREGATES.index(kind.aggregate)
                weights[f, y] = kind.weight
                counting[y, self.names[task.name]] = True
        rewards = [task.reward for task in self._tasks]
        return Rules(
            names=np.array([self.names[task.name] for task in self._tasks], np.int64),
            windows_ms=np.array([reward.window_ms for reward in rewards], np.int64),
            backward_ms=np.array([reward.backward_ms for reward in rewards], np.int64),
            type_windows_ms=windows,
            types=types,
            aggregates=aggregates,
            weights=weights,
            bounds=np.array([(r.default, r.min, r.max) for r in rewards], np.float64).reshape(-1, 3),
            names_counting=counting.sum(axis=1).astype(np.int64),
        )
