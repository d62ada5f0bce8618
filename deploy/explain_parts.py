"""What an explanation of a decision is made of: plain values only, so that all of it is JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestShown:
    """What the shop asked."""

    where: str
    """topic/partition/offset."""
    fields: dict[str, Any] | None
    """Of DecisionRequest; None when the log no longer holds it."""
    encodes_equal: bool | None
    """Whether encoding it again gives the logged columns, bit for bit; None without the request."""
    difference: str
    """Names of the columns that differ, or why it cannot be encoded."""


@dataclass(frozen=True, slots=True)
class CandidateShown:
    """One action on offer."""

    action_id: str
    propensities: list[int]
    """Of every slot, as logged; they sum to 2^24 over the candidates."""
    probabilities: list[float]
    """The same as shares."""
    is_allowed: bool
    """False when a guardrail masked it."""
    chosen_in: list[int]
    """Slots that it was chosen for."""
    features: dict[str, float]
    """Dense action features as encoded or declared."""
    tokens: list[tuple[int, float]]
    score: float | None
    """By the snapshot that decided, recomputed here; None without its bytes."""
    by_expert: dict[str, float]
    """What each expert adds to the policy's centre; empty without a score."""


@dataclass(frozen=True, slots=True)
class DrawShown:
    """The random number of one slot."""

    slot: int
    number: int
    """In [0, 2^24): from the namespace's key, purpose, slot, task and decision id."""
    chosen: int
    """Index that it chooses among the logged integers."""
    logged: int
    """Index that was logged."""
    agrees: bool
    total: int
    """Sum of the logged integers."""


@dataclass(frozen=True, slots=True)
class SnapshotShown:
    """The published version that decided."""

    version: int
    sha256: str
    parent_sha256: str
    channel: str
    where: str
    """topic/partition/offset of its manifest."""
    cut_ms: int
    """Rows closed up to this log time are in."""
    cut_number: int
    chain_hash: str
    genesis: str
    signature: str
    """valid, wrong, or why it was not checked."""
    signature_hex: str
    other_sha256: list[str]
    """Other contents that were published under this version; never any."""


@dataclass(frozen=True, slots=True)
class ScoresShown:
    """How the recomputed scores fit what was logged."""

    state: str
    """equal, within the tolerance, outside, not compared, not recomputed, or none (no policy decided)."""
    detail: str
    tolerance: float | None
    """learning.md rule 20."""
    num_equal: int | None
    """Recomputed integers that equal the logged ones."""
    num_integers: int | None


@dataclass(frozen=True, slots=True)
class OutcomeShown:
    """One user event about the decision."""

    outcome_id: str
    type: str
    value: float
    source: str
    """topic/partition/offset that it came from."""
    position: int
    """In the journal."""
    time_ms: int
    """T at it."""
    bucket: str
    """used, duplicate, conflict, late, orphan or pending."""
    counts_here: bool
    """Whether it is part of this decision's reward."""
    slots: list[int]
    """Slots that it counts for."""


@dataclass(frozen=True, slots=True)
class RowShown:
    """The decision's accepted row in the transitions."""

    where: str
    """topic/partition/offset row r."""
    offset: int
    bucket: str
    rewards: list[float]
    num_outcomes: int
    closed_at_ms: int
    is_cut: bool
    """Closed early because too many decisions were open."""


@dataclass(frozen=True, slots=True)
class TrainedShown:
    """The first published snapshot that holds the decision."""

    version: int
    sha256: str
    where: str
    cut_ms: int
    is_certain: bool
    """False when its history may have begun after the decision, so that it only claims to hold it."""
