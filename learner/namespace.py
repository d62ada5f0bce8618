"""The learner of a namespace: every task's own learner, stepped by the merge, frozen into snapshots at cuts.

Owns what happens between two positions of the log: rows to the learner of their task, cuts when they are due, the
bytes of a snapshot, and the whole state as named arrays. Knows nothing of Kafka, files, threads or the wall clock, so
a learner restored from its state at any moment goes on to the same cuts with the same bytes.

Heads are per task fingerprint and never share anything (learning.md rules 13 and 14). Heads of a retired task are
dropped at the first cut whose log time lies `RETIRE_GRACE_MS` after the last row that can still close under it.
Simplification: a definition that is retired, dropped and then applied again starts with new heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from learner.cuts import CutRules, CutState
from learner.environment import ANCHOR, GENESIS
from learner.merge import Cut, Merge, Position
from learner.policy import probes
from learner.policy.probes import ProbeInputs
from schemas import weights as tensors
from schemas.blocks import FLAG_CLIPPED, TransitionBlock
from schemas.decision_columns import FeatureColumns
from schemas.records import ChainPosition, SnapshotManifest, TrainedPosition
from schemas.task import Task
from schemas.task_shape import Shape

Arrays = dict[str, npt.NDArray[Any]]

RETIRE_GRACE_MS = 600_000
"""Workers that have not yet heard of the retirement may still decide under it, for minutes at most."""


class RowLearner(Protocol):
    """What is needed of `learner.update.TaskLearner`; the tests have a small one of their own."""

    def learn(self, rows: TransitionBlock) -> None:
        """Learn rows in order; any split of them gives the same state."""

    def weights(self) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays of the policy as of all rows learnt."""

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Everything that decides the future, as arrays that nobody writes to afterwards."""

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state."""

    @property
    def num_rows(self) -> int:
        """Rows learnt."""

    @property
    def num_failed_solves(self) -> int:
        """Solves that failed; the weights before were kept (learning.md rule 3)."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A task as the `tasks` topic has it now."""

    task: Task
    retired_ms: int | None = None
    """Append time of its retirement, None while it is in force."""


Find = Callable[[bytes], Definition | None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One cut, ready to be uploaded."""

    draft: SnapshotManifest
    """Complete but for chunk offsets and signature."""
    payload: bytes
    """safetensors; its sha256 is the draft's."""


class UnknownTask(Exception):
    """Rows wait whose task has not been read from the `tasks` topic (join.md rule 13): try again later."""

    def __init__(self, fingerprint: bytes) -> None:
        super().__init__(f"task fingerprint {fingerprint.hex()} is not in the tasks topic yet")
        self.fingerprint = fingerprint


class NamespaceLearner:
    """Feed it a merge with `advance`; it yields snapshots at their cuts."""

    def __init__(
        self,
        make: Callable[[Task], RowLearner],
        find: Find,
        rules: CutRules,
        cut: CutState,
        environment: Mapping[str, str],
        channel: str = "main",
    ) -> None:
        """`make` builds the learner of a task at n = 0; `find` looks a fingerprint up in the `tasks` topic."""
        self._make, self._find, self._rules = make, find, rules
        self.environment, self._channel = dict(environment), channel
        self._learners: dict[bytes, RowLearner] = {}
        self._tasks: dict[bytes, Task] = {}
        self._probes: dict[bytes, ProbeInputs] = {}
        self._due_ms: int | None = None
        self.cut = cut
        self.anchor = ""
        """Names the newest anchor checkpoint; decides nothing."""
        self.last: Snapshot | None = None
        """The newest cut's snapshot, for uploads after a restart."""
        self.num_accepted: dict[str, int] = {}
        """Rows taken from the merge so far, by decision bucket."""
        self.num_unfit = 0
        """Rows that did not fit their task's definition."""
        self._clipped: dict[bytes, int] = {}
        """Rows learnt whose reward the join clipped, by fingerprint."""

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows learnt by fingerprint in hex."""
        return {fingerprint.hex(): self._learners[fingerprint].num_rows for fingerprint in sorted(self._learners)}

    @property
    def num_clipped(self) -> dict[str, int]:
        """Rows learnt whose reward was clipped to the task's bounds, by fingerprint in hex (learning.md rule 6)."""
        return {fingerprint.hex(): self._clipped[fingerprint] for fingerprint in sorted(self._clipped)}

    @property
    def num_failed_solves(self) -> dict[str, int]:
        """Solves that failed, by fingerprint in hex."""
        return {key.hex(): self._learners[key].num_failed_solves for key in sorted(self._learners)}

    def advance(self, merge: Merge) -> Iterator[Snapshot]:
        """Learn all complete buckets and yield a snapshot at every cut; between two items the state is consistent.

        Raises UnknownTask before anything of an unknown task is taken.
        """
        while True:
            for fingerprint in sorted(merge.fingerprints()):
                if self._find(fingerprint) is None:
                    raise UnknownTask(fingerprint)
            due_ms = self._due_ms
            if due_ms is None:
                first_ms = merge.first_ms()
                if first_ms is None:
                    return
                due_ms = self._rules.due_ms(first_ms, self.cut)
            learnt = self._learn(merge.take(due_ms, self._judge))
            if learnt and self._due_ms is None:
                self._due_ms = due_ms
            if merge.done_ms < due_ms:
                return
            if self._due_ms is not None:
                yield self._freeze(due_ms, merge.taken(due_ms))

    def _judge(self, block: TransitionBlock) -> npt.NDArray[np.bool_]:
        definition = self._find(block.fingerprint)
        assert definition is not None, "advance looks every fingerprint up before it takes rows"
        return fits(block, definition.task)

    def _learn(self, cut: Cut) -> bool:
        """Whether anything was learnt of these rows."""
        self.num_unfit += cut.num_unfit
        for bucket, count in cut.num_accepted.items():
            self.num_accepted[bucket] = self.num_accepted.get(bucket, 0) + count
        learnt = False
        for fingerprint, rows in cut.rows.items():
            definition = self._find(fingerprint)
            assert definition is not None, "advance looks every fingerprint up before it takes rows"
            if self._is_gone(definition, self.cut.end_ms):  # by the cut before, never by how far was read
                continue
            if fingerprint not in self._learners:
                self._learners[fingerprint] = self._make(definition.task)
                self._tasks[fingerprint] = definition.task
            self._learners[fingerprint].learn(rows)
            num_clipped = int(np.count_nonzero(rows.flags & FLAG_CLIPPED))
            self._clipped[fingerprint] = self._clipped.get(fingerprint, 0) + num_clipped
            self._probes[fingerprint] = probes.newest(rows.columns, self._probes.get(fingerprint))
            learnt = True
        return learnt

    def _is_gone(self, definition: Definition, at_ms: int) -> bool:
        if definition.retired_ms is None:
            return False
        return at_ms > definition.retired_ms + definition.task.reward.window_ms + RETIRE_GRACE_MS

    def _trained(self, taken: tuple[Position, ...], end_ms: int) -> tuple[TrainedPosition, ...]:
        """Without the chains of definitions that are gone: they hold nothing of this snapshot, and would pile up."""
        found = {fingerprint: self._find(fingerprint) for position in taken for fingerprint, _ in position.hwm}
        gone = {key for key, each in found.items() if each is not None and self._is_gone(each, end_ms)}
        return tuple(
            TrainedPosition(
                position.partition,
                position.offset,
                position.time_ms,
                tuple(
                    ChainPosition(fingerprint, kind, hwm)
                    for (fingerprint, kind), hwm in sorted(position.hwm.items())
                    if fingerprint not in gone
                ),
            )
            for position in taken
        )

    def _freeze(self, end_ms: int, taken: tuple[Position, ...]) -> Snapshot:
        """Make the cut at `end_ms`."""
        self._due_ms = None
        for fingerprint in list(self._learners):
            definition = self._find(fingerprint)
            if definition is not None and self._is_gone(definition, end_ms):
                del self._learners[fingerprint], self._tasks[fingerprint], self._probes[fingerprint]
                del self._clipped[fingerprint]
        weights = {fingerprint: self._learners[fingerprint].weights() for fingerprint in sorted(self._learners)}
        payload = tensors.pack(
            {f"{key.hex()}/{name}": array for key, arrays in weights.items() for name, array in arrays.items()}, {}
        )
        parent, self.cut = self.cut, self.cut.next(end_ms, payload)
        draft = SnapshotManifest(
            version=self.cut.version,
            parent_sha256=bytes.fromhex(parent.sha256),
            sha256=bytes.fromhex(self.cut.sha256),
            size_bytes=len(payload),
            chunk_offsets=(),
            cut_ms=end_ms,
            trained=self._trained(taken, end_ms),
            chain_hash=bytes.fromhex(self.cut.chain_hash),
            cut_number=self.cut.number,
            tasks=tuple(weights),
            environment={**self.environment, GENESIS: self.cut.genesis, ANCHOR: self.anchor},
            rows_learnt=self.num_rows,
            probes=probes.pack(self._probes, self._tasks, weights),
            channel=self._channel,
        )
        self.last = Snapshot(draft, payload)
        return self.last

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything that decides the future, as arrays of its own and as JSON values; `last` is not in it."""
        arrays: Arrays = {}
        for fingerprint, learner in self._learners.items():
            prefix = fingerprint.hex()
            for name, array in learner.state().items():
                arrays[f"task/{prefix}/{name}"] = np.asarray(array, order="C")
            inputs = self._probes[fingerprint]
            for name in probes.COLUMNS:
                arrays[f"probe/{prefix}/{name}"] = np.asarray(getattr(inputs.features, name), order="C")
            arrays[f"probe/{prefix}/allowed"] = inputs.allowed.astype(np.uint8)
        values = {
            "cut": self.cut.to_json(),
            "due_ms": self._due_ms,
            "num_accepted": dict(self.num_accepted),
            "num_unfit": self.num_unfit,
            "num_clipped": self.num_clipped,
            "tasks": sorted(fingerprint.hex() for fingerprint in self._learners),
        }
        return arrays, values

    def load_state(self, arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go on from a state. Raises UnknownTask when the `tasks` topic does not hold one of its tasks."""
        by_prefix: dict[str, Arrays] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            prefix, _, column = rest.partition("/")
            by_prefix.setdefault(f"{kind}/{prefix}", {})[column] = array
        for prefix in values["tasks"]:
            fingerprint = bytes.fromhex(prefix)
            definition = self._find(fingerprint)
            if definition is None:
                raise UnknownTask(fingerprint)
            learner = self._make(definition.task)
            learner.load_state(by_prefix[f"task/{prefix}"])
            self._learners[fingerprint], self._tasks[fingerprint] = learner, definition.task
            columns = by_prefix[f"probe/{prefix}"]
            features = FeatureColumns(**{name: columns[name] for name in probes.COLUMNS})
            self._probes[fingerprint] = ProbeInputs(features, columns["allowed"] != 0)
            self._clipped[fingerprint] = values.get("num_clipped", {}).get(prefix, 0)  # not in early checkpoints
        self.cut = CutState(**values["cut"])
        self._due_ms = values["due_ms"]
        self.num_accepted, self.num_unfit = dict(values["num_accepted"]), values["num_unfit"]


def fits(block: TransitionBlock, task: Task) -> npt.NDArray[np.bool_]:
    """(N,) rows that the task's learner can take: the columns that the task has, a choice among the candidates."""
    if not Shape.of(task).fits(block.columns):
        return np.zeros(len(block), np.bool_)
    num_candidates = block.columns.features.num_candidates
    right = num_candidates == len(task.actions) if task.actions else num_candidates > 0
    in_row: npt.NDArray[np.bool_] = (block.columns.chosen < num_candidates[:, None]).all(1) & right
    return in_row
