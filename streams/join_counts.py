"""Both identities of a partition (join.md rule 17) as one array of counts, and the names that Progress gives them."""

from __future__ import annotations

from schemas.arrays import I64
from schemas.records import OUTCOME_BUCKETS, DecisionBucket, Progress
from schemas.task import NUM_NAMES_MAX
from streams.attribution import COPIES, PENDING_COUNT, USED

JOINED, DEFAULTED, DUPLICATED_DECISION, CONFLICTING_DECISION, QUARANTINED_DECISION, OPEN = range(6)
"""Codes of `schemas.records.DecisionBucket`, then the count of open decisions."""

OUTCOMES_AT = OPEN + 1
USES_AT = OUTCOMES_AT + COPIES + 1
NUM_COUNTS = USES_AT + 2 * NUM_NAMES_MAX
"""Counts: decisions by bucket and open, outcomes by bucket and copies, uses per task name; then, unread, the uses in
a part of the journal that has been counted before."""

_DECISION_NAMES = tuple(bucket.label for bucket in DecisionBucket)
_OUTCOME_NAMES = (*OUTCOME_BUCKETS, "copies")


def decision_counts(counts: I64) -> dict[str, int]:
    """Decisions by bucket, open ones included."""
    return dict(zip((*_DECISION_NAMES, "open"), counts[: OPEN + 1].tolist(), strict=True))


def outcome_counts(counts: I64) -> dict[str, int]:
    """Outcomes by bucket, pending ones and ingest's copies included."""
    return dict(zip(_OUTCOME_NAMES, counts[OUTCOMES_AT + USED : OUTCOMES_AT + COPIES + 1].tolist(), strict=True))


def count_from(counts: I64, counted: Progress) -> None:
    """Go on from the counts of `counted`; what is open or pending is found again by folding."""
    for code, name in enumerate(_DECISION_NAMES):
        counts[code] = counted.decision_counts.get(name, 0)
    for place, name in enumerate(_OUTCOME_NAMES):
        counts[OUTCOMES_AT + place] = counted.outcome_counts.get(name, 0) if place != PENDING_COUNT else 0
