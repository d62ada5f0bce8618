"""Tasks: what a namespace decides, as every process sees it. `headrace.toml` becomes these records once.

A task travels as canonical JSON (sorted keys, no whitespace, defaults filled in, durations in ms) in the `tasks`
topic; its fingerprint is the BLAKE2b-128 of that text. Everything that changes what is decided, joined or learnt is
part of it, the learner's options too: a changed task is a new fingerprint, hence a new chain and new heads.
`from_canonical` hashes the text as given, so an older definition keeps its fingerprint under newer code.

The kind of task here is `choice`. The shape of the file stands in `schemas.task_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from schemas.decision_columns import FeatureColumns
from schemas.errors import UserError
from schemas.feature_spec import Feature, FeatureSpec
from schemas.records import TaskRecord
from schemas.task_parts import AGGREGATES, Exploration, Guardrail, LearnerOptions, OutcomeType, Reward

__all__ = [  # what a task is made of is defined beside its own rules; everything is imported from here
    "AGGREGATES",
    "Exploration",
    "Feature",
    "FeatureSpec",
    "Guardrail",
    "LearnerOptions",
    "OutcomeType",
    "Reward",
]

NUM_CANDIDATES_MAX = 1 << 16
"""learning.md rule 15: more could not each get the smallest probability."""
DEDUPE_MS_MIN = 600_000
"""join.md: the dedupe horizon D is at least ten minutes."""
NUM_NAMES_MAX = 128
"""Task names per namespace, retired ones included: a pending outcome of the join has one bit for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One decision problem. Equal when the fingerprints are."""

    name: str
    kind: str
    canonical: str
    """Canonical JSON, what the `tasks` topic holds."""
    fingerprint: bytes
    """16 bytes: BLAKE2b-128 of `canonical`."""
    actions: tuple[str, ...]
    """Ids of the declared catalogue, () when candidates come with each request."""
    action_values: tuple[Mapping[str, Any], ...]
    """Declared named features per action of the catalogue."""
    catalogue: bytes
    """16-byte fingerprint of the catalogue (ids and features), or b""."""
    catalogue_features: FeatureColumns | None
    """The catalogue encoded as the candidates of one row (K, Da), action keys and tokens included; None without."""
    context: FeatureSpec
    action: FeatureSpec
    reward: Reward
    reply: str
    """journal-first (answer after the broker's ack) or immediate."""
    baseline: str | None
    """Action id taken without a policy; None: uniform."""
    epsilon: float
    """Share of uniform choice mixed into the baseline (learning.md rule 18)."""
    exploration: Exploration
    learner: LearnerOptions
    guardrails: tuple[Guardrail, ...]
    num_slots: int = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def baseline_index(self) -> int | None:
        """Place of the baseline action in the catalogue, None when there is none."""
        return self.actions.index(self.baseline) if self.baseline in self.actions else None

    def record(self, *, retired: bool = False) -> TaskRecord:
        """What the `tasks` topic holds of it."""
        return TaskRecord(self.fingerprint, self.name, "task", self.canonical, retired)

    @classmethod
    def from_canonical(cls, canonical: str) -> Task:
        """The task of a record of the `tasks` topic. Raises UserError when it is no task this version knows."""
        from schemas.task_canonical import task_of  # the file's shape knows these classes, not the other way round

        return task_of(canonical)


@dataclass(frozen=True, slots=True)
class Namespace:
    """What all tasks of a set of topics share."""

    name: str
    partitions: int
    """P of requests, decisions, outcomes, journal, transitions; fixed at the first apply (join.md rule 15)."""
    draw_key: str
    """Hex, at most 64 bytes: key of all draws. Whoever knows it can foretell choices."""
    bucket_ms: int
    """Rows with the same closed_at // bucket_ms are learnt together."""
    publish_ms: int
    """Log time between snapshots."""
    tick_ms: int
    """Time between heartbeats of a journal partition."""

    @property
    def canonical(self) -> str:
        """Canonical JSON for the `tasks` topic."""
        from schemas.task_canonical import canonical_namespace

        return canonical_namespace(self)

    def record(self) -> TaskRecord:
        """What the `tasks` topic holds of it."""
        return TaskRecord(fingerprint_of(self.canonical), self.name, "namespace", self.canonical)

    @classmethod
    def from_canonical(cls, canonical: str) -> Namespace:
        """The namespace of a record of the `tasks` topic."""
        from schemas.task_canonical import namespace_of

        return namespace_of(canonical)


@dataclass(frozen=True, slots=True)
class FieldRule:
    """Where a foreign event holds one field of an outcome: a jmespath, or a constant for all events."""

    path: str | None = None
    constant: str | float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A foreign topic whose events become outcomes."""

    topic: str
    format: str
    """json or avro (Confluent wire format); a record of the other one is a dead letter, `wrong-format`."""
    canonical: str
    subject: FieldRule
    type: FieldRule
    value: FieldRule
    decision_id: FieldRule | None
    action_id: FieldRule | None
    outcome_id: FieldRule | None
    slot: FieldRule | None
    time: FieldRule | None
    """The shop's clock in ms, informative only."""
    where: str | None
    """jmespath that must be true; other events are passed over and counted."""

    def record(self, *, retired: bool = False) -> TaskRecord:
        """What the `tasks` topic holds of it."""
        return TaskRecord(fingerprint_of(self.canonical), self.topic, "source", self.canonical, retired)

    @classmethod
    def from_canonical(cls, canonical: str) -> Source:
        """The source of a record of the `tasks` topic."""
        from schemas.task_canonical import source_of

        return source_of(canonical)


@dataclass(frozen=True, slots=True)
class Project:
    """Everything one `headrace.toml` declares."""

    namespace: Namespace
    tasks: tuple[Task, ...]
    sources: tuple[Source, ...]
    draws_freely: bool = False
    """No draw key was declared: the first apply draws one, and the namespace keeps it."""

    def task(self, name: str) -> Task:
        """The task called `name`. Raises KeyError."""
        return {task.name: task for task in self.tasks}[name]

    def records(self) -> tuple[TaskRecord, ...]:
        """Everything that ``headrace apply`` publishes: the namespace first, then tasks, then sources."""
        parts: tuple[Namespace | Task | Source, ...] = (self.namespace, *self.tasks, *self.sources)
        return tuple(part.record() for part in parts)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no whitespace; NaN is refused. The same value gives the same text everywhere.

    >>> canonical_json({"b": 1.0, "a": ["ä"]})
    '{"a":["ä"],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint_of(canonical: str) -> bytes:
    """16 bytes: BLAKE2b-128 of a canonical definition."""
    return blake2b(canonical.encode(), digest_size=16).digest()


class TaskTable:
    """All definitions that a process knows, by fingerprint and by name. Grows as the `tasks` topic is read.

    One thread writes, others read: readers copy what they walk over.
    """

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._by_fingerprint: dict[bytes, Task] = {}
        self._by_name: dict[str, Task] = {}
        for task in tasks:
            self.add(task)

    def apply(self, record: TaskRecord) -> Task | None:
        """Take in one record of the `tasks` topic, in its order. Returns the task it holds, None for other kinds.

        Raises UserError when the definition is none that this version of headrace understands.
        """
        if record.kind != "task":
            return None
        task = self._by_fingerprint.get(record.fingerprint) or Task.from_canonical(record.definition)
        if task.fingerprint != record.fingerprint:
            raise UserError(
                f"a definition of task {task.name} with the fingerprint {task.fingerprint.hex()} stands under "
                f"{record.fingerprint.hex()}",
                "apply it again; nobody but `headrace apply` should write to the tasks topic",
            )
        successor = self._by_name.get(task.name)
        self.add(task)
        if record.retired:
            self.retire(task.fingerprint)
            if successor is not None and successor != task:
                self.add(successor)  # retired after its successor was applied: the name stays the successor's
        return task

    def add(self, task: Task) -> None:
        """Make `task` the newest of its name."""
        self._by_fingerprint[task.fingerprint] = task
        self._by_name[task.name] = task

    def retire(self, fingerprint: bytes) -> None:
        """Decide no more under this definition; decisions made under it are still joined and learnt."""
        task = self._by_fingerprint.get(fingerprint)
        if task is not None and self._by_name.get(task.name) == task:
            del self._by_name[task.name]

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._by_fingerprint

    def __getitem__(self, fingerprint: bytes) -> Task:
        return self._by_fingerprint[fingerprint]

    def __len__(self) -> int:
        return len(self._by_fingerprint)

    def get(self, fingerprint: bytes) -> Task | None:
        """The task of a fingerprint, None when it is not known yet."""
        return self._by_fingerprint.get(fingerprint)

    def named(self, name: str) -> Task | None:
        """The newest definition of a name that is not retired."""
        return self._by_name.get(name)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every definition known, retired ones too, in order of fingerprint."""
        return tuple(self._by_fingerprint[key] for key in sorted(self._by_fingerprint))

    @property
    def current(self) -> tuple[Task, ...]:
        """The newest definition of each name, in order of name."""
        return tuple(self._by_name[name] for name in sorted(self._by_name))

    @property
    def max_window_ms(self) -> int:
        """Wmax over all fingerprints, 0 without any."""
        return max((task.reward.window_ms for task in tuple(self._by_fingerprint.values())), default=0)

    @property
    def max_backward_ms(self) -> int:
        """bwmax over all fingerprints."""
        return max((task.reward.backward_ms for task in tuple(self._by_fingerprint.values())), default=0)

    @property
    def dedupe_ms(self) -> int:
        """D = max(10 min, longest W)."""
        return max(DEDUPE_MS_MIN, self.max_window_ms)


def load(path: str | Path) -> Project:
    """Read a `headrace.toml`. Raises UserError that names the file, the key, what was expected and the remedy."""
    from schemas.task_canonical import parse_file

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}", "give the path of a headrace.toml") from error
    return parse_file(text, str(path))


def parse(text: str) -> Project:
    """Read the text of a `headrace.toml`. Raises UserError like `load`."""
    from schemas.task_canonical import parse_file

    return parse_file(text, "headrace.toml")
