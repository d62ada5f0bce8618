"""Records: what travels one at a time, as frozen dataclasses, and the codes that stand in blocks.

Owns the meaning of each field (the Avro files repeat it for readers in other languages).
Knows nothing of bytes: `schemas.codec` turns these into messages and back, and checks what came from outside.

Times are milliseconds since 1970 in UTC. T is log time: the running maximum of append time in one journal partition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from schemas.arrays import F32
from schemas.frozen import frozen

NO_TIME_MS = -(2**62)
"""T before the first message of a partition: earlier than every append time, and safe to add windows to."""


class Reason(IntEnum):
    """How an action came about; `label` is what shops read in a Decision."""

    POLICY = 0
    """Drawn from the policy of a snapshot."""
    NO_SNAPSHOT = 1
    """Baseline mixed with uniform: no snapshot serves yet."""
    SNAPSHOT_REFUSED = 2
    """Baseline: the newest snapshot was refused and no earlier one can serve the task."""
    DEADLINE = 3
    """Baseline: the request's deadline had passed when it was read."""
    OVERLOAD = 4
    """Baseline: more requests waited than can be scored in time."""
    EXPIRED = 5
    """Baseline, not journaled: the request is older than the dedupe horizon."""
    TOO_LARGE = 6
    """Baseline, not journaled: the encoded decision exceeds its limit."""
    INVALID = 7
    """Baseline, not journaled: the request cannot be decided (for instance every candidate is masked)."""
    UNKNOWN_TASK = 8
    """Baseline, not journaled: no task of this name is applied."""

    @property
    def label(self) -> str:
        """The code as people write it.

        >>> Reason.NO_SNAPSHOT.label
        'no-snapshot'
        """
        return self.name.lower().replace("_", "-")


class DecisionBucket(IntEnum):
    """Where a closed decision ended (join.md rule 5). "open" is no code: an open decision is in no transition."""

    JOINED = 0
    DEFAULTED = 1
    DUPLICATE = 2
    CONFLICT = 3
    QUARANTINED = 4

    @property
    def label(self) -> str:
        """The name used in counts and metrics."""
        return self.name.lower()


DECISION_BUCKETS = (*(bucket.label for bucket in DecisionBucket), "open")
OUTCOME_BUCKETS = ("used", "late", "duplicate", "orphan", "conflict", "pending")
"""Where an outcome ended. Malformed ones never reach the journal: they are counted as dead letters."""


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A dense feature (an embedding): float32 values in the order the task declares."""

    values: F32

    @classmethod
    def of(cls, *values: float) -> Vector:
        """A vector from Python numbers."""
        return cls(np.asarray(values, np.float32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())


FeatureValue = float | str | bool | list[str] | Vector
Features = dict[str, FeatureValue]


@frozen
class Candidate:
    """An action on offer."""

    action_id: str
    """The shop's id of the action."""
    features: Features = field(default_factory=dict)
    """Named features; may be empty."""


@frozen
class DecisionRequest:
    """The shop asks what to do about a subject."""

    decision_id: str
    """The client's id, 1 to 64 bytes; a second request with it within the dedupe horizon is a duplicate."""
    task: str
    """Name of the applied task."""
    subject: str
    """Who or what is decided about; unit of ordering, and the key of the message."""
    context: Features = field(default_factory=dict)
    """Named features of the situation."""
    candidates: list[Candidate] | None = None
    """Actions on offer; None when the task declares its catalogue."""
    slots: int | None = None
    """Positions to fill; None means as the task declares."""
    bounds: tuple[float, float] | None = None
    """Lower and upper bound of a continuous action."""
    episode_id: str | None = None
    """Episode of a sequence task."""
    step: int | None = None
    """Step within the episode, from 0."""
    baseline: int | None = None
    """Index of the candidate that the shop would take by itself."""
    deadline_ms: int | None = None
    """How long after the request's append time an answer is still of use."""
    time_ms: int | None = None
    """The client's clock; informative only."""


@frozen
class Decision:
    """The answer to a request."""

    decision_id: str
    task: str
    subject: str
    actions: list[str]
    """Chosen action id of each slot."""
    propensities: list[float]
    """Probability of each chosen action, as sampled, after guardrails."""
    snapshot_version: int
    """Policy version that decided, 0 for none."""
    reason: str
    """`Reason.label`."""
    values: list[float] = field(default_factory=list)
    """Drawn value of each slot of a continuous task, else empty."""
    token: bytes = b""
    """Reserved: proof that an outcome belongs to this decision. Empty until rewards are authenticated."""
    time_ms: int = 0
    """The worker's clock when it answered; informative only."""


@frozen
class Outcome:
    """A user event that says how a decision went."""

    subject: str
    """Must equal the decision's subject."""
    type: str
    """Kind of event: click, order, refund … a task counts the types it declares."""
    value: float = 1.0
    """Finite size of the outcome: 1 for a click, an amount for an order."""
    outcome_id: str | None = None
    """Idempotency key; None means topic, partition and offset."""
    decision_id: str | None = None
    """The decision it belongs to; None means the subject's latest open one."""
    action_id: str | None = None
    """The action it is about."""
    slot: int | None = None
    """The slot it is about."""
    time_ms: int | None = None
    """The client's clock; informative only."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One applied definition: a task, the namespace's settings, or a source mapping."""

    fingerprint: bytes
    """16 bytes: BLAKE2b-128 of `definition`."""
    task: str
    """Name of the task, of the namespace, or of the source topic."""
    kind: str
    """One of "task", "namespace", "source"."""
    definition: str
    """Canonical JSON."""
    retired: bool = False
    """True: no new decisions are made under it."""


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """High-water mark of one chain of a partition (join.md rule 7)."""

    fingerprint: bytes
    kind: int
    hwm: int
    """Last accepted position, -1 for none."""


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """High-water mark of one source partition within a journal partition (join.md rule 3)."""

    topic: str
    partition: int
    offset: int
    """Last source offset read; rows at or below it are copies."""


@dataclass(frozen=True, slots=True)
class DefinitionPosition:
    """Since when a task definition counts in a journal partition: its first record that refers to it."""

    fingerprint: bytes
    time_ms: int
    """T at that record."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a rebuild of the join starts in the journal, and what it must know of the log before (join.md rule 10)."""

    offset: int
    """First journal offset to fold."""
    time_ms: int = NO_TIME_MS
    """T before that offset."""
    sources: tuple[SourcePosition, ...] = ()
    """Source high-water marks before that offset."""
    definitions: tuple[DefinitionPosition, ...] | None = None
    """Definitions that count before that offset, in order of their first record; None: not recorded (version 1), the
    whole task table counts."""


@dataclass(frozen=True, slots=True)
class JournalGap:
    """Journal records that were gone before they were joined (join.md rule 10)."""

    offset: int
    """The first of them."""
    num_records: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Checkpoint of the read-back reader state of one partition (join.md rule 8)."""

    partition: int
    time_ms: int
    """T up to which every closed row has been read back accepted."""
    journal_offset: int
    """First journal offset not yet folded."""
    transitions_offset: int
    """First transitions offset not folded into `chains`."""
    chains: tuple[ChainPosition, ...]
    """High-water mark of every chain; a reader counts this record only if its own marks are at least these."""
    resume: Resume
    decision_counts: dict[str, int]
    """Decisions of the partition so far by bucket, "open" included."""
    outcome_counts: dict[str, int]
    """Outcomes so far by bucket, "pending" and "copies" included."""
    gaps: tuple[JournalGap, ...] = ()
    """Gone over by --declare-gap, oldest first."""


@dataclass(frozen=True, slots=True)
class TrainedPosition:
    """How far one partition is contained in a snapshot."""

    partition: int
    transitions_offset: int
    """First transitions offset not read."""
    time_ms: int
    """T of the newest Progress counted."""
    chains: tuple[ChainPosition, ...]
    """Last position learnt of every chain."""


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """Commit point of one published policy version."""

    version: int
    """From 1, +1 each."""
    parent_sha256: bytes
    """sha256 of the version before, b"" for the first."""
    sha256: bytes
    """32 bytes: hash of all chunks put together."""
    size_bytes: int
    chunk_offsets: tuple[int, ...]
    """Offsets of the chunks in `snapshot-chunks`, in order."""
    cut_ms: int
    """Rows with closed_at up to this are in."""
    trained: tuple[TrainedPosition, ...]
    chain_hash: bytes
    """Hash chain over all cuts."""
    cut_number: int
    tasks: tuple[bytes, ...]
    """Fingerprints that the snapshot serves."""
    environment: dict[str, str]
    """What bit identity depends on: versions, CPU flags, threads, device."""
    rows_learnt: dict[str, int]
    """Rows learnt by fingerprint in hexadecimal."""
    probes: bytes
    """Probe inputs with their scores and integers, safetensors."""
    channel: str
    signature: bytes = b""
    """Ed25519 over the canonical encoding with an empty signature."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, and why."""

    topic: str
    partition: int
    offset: int
    reason: str
    """Code, one of `schemas.bounds.REASONS` or of the process that refused it."""
    detail: str
    """One sentence for people."""
    first_bytes: bytes
    """At most 256 bytes of the value."""
    sha256: bytes
    """Hash of the whole value."""
    time_ms: int
    """Append time of the refused record."""


Record = DecisionRequest | Decision | Outcome | TaskRecord | Progress | SnapshotManifest | DeadLetter
