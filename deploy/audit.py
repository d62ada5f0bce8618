"""Does the log prove what headrace promises? Recompute the join from the topics and compare.

For each journal partition, up to the newest Progress that a reader of the transitions counts:
- every closed decision stands in exactly one accepted row, with the bucket, reward, outcomes and snapshot version that
  the rules give it, and no accepted row is without its decision;
- the chains have neither hole nor fork;
- both sums of join.md rule 17, bucket by bucket, equal what Progress says.

Shares no code with `streams.join`: `deploy.audit_rules` (over `deploy.audit_records`) is a second reading of the rules.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy import audit_chain, audit_rules, reading
from deploy.definitions import Definitions, read_definitions
from schemas.blocks import FLAG_CUT
from schemas.codec import BadRecord, decode
from schemas.records import DECISION_BUCKETS, OUTCOME_BUCKETS, DecisionBucket, Progress
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

REASONS_MAX = 20
"""Reasons told per partition; the rest are counted."""
REWARD_TOLERANCE = 1e-5
"""Relative: rewards travel as float32."""

Entries = list[tuple[int, int, object]]


@dataclass(slots=True)
class PartitionAudit:
    """What was found in one partition."""

    partition: int
    num_decisions: int = 0
    """Decision records in the journal up to the newest Progress."""
    num_accepted: int = 0
    decision_counts: dict[str, int] = field(default_factory=dict)
    outcome_counts: dict[str, int] = field(default_factory=dict)
    num_missing: int = 0
    """Closed decisions in no accepted row."""
    num_accepted_twice: int = 0
    num_repeated_rows: int = 0
    num_ignored_blocks: int = 0
    num_unreadable: int = 0
    """Journal messages that no reader can decode."""
    num_uncovered: int = 0
    """Journal messages after the newest Progress: not judged yet."""
    num_in_declared_gaps: int = 0
    """Journal records that were gone before they were joined, gone over by --declare-gap: what they held is lost."""
    reasons: list[str] = field(default_factory=list)
    num_reasons: int = 0
    notes: list[str] = field(default_factory=list)

    def blame(self, reason: str) -> None:
        """Note a failure; the first `REASONS_MAX` are told."""
        self.num_reasons += 1
        if len(self.reasons) < REASONS_MAX:
            self.reasons.append(f"partition {self.partition}: {reason}")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The verdict over all partitions."""

    partitions: tuple[PartitionAudit, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing to complain of."""
        return all(each.num_reasons == 0 for each in self.partitions)

    @property
    def reasons(self) -> list[str]:
        """What is wrong, in words."""
        told = [reason for each in self.partitions for reason in each.reasons]
        untold = sum(each.num_reasons for each in self.partitions) - len(told)
        return told + ([f"and {untold} more"] if untold else [])

    @property
    def verdict(self) -> str | list[str]:
        """``"clean"`` or the reasons."""
        return "clean" if self.is_clean else self.reasons

    def total(self, name: str) -> int:
        """Sum of one number over the partitions."""
        return sum(getattr(each, name) for each in self.partitions)

    def counts(self, name: str) -> dict[str, int]:
        """Sum of ``decision_counts`` or ``outcome_counts`` over the partitions."""
        summed: Counter[str] = Counter()
        for each in self.partitions:
            summed.update(getattr(each, name))
        buckets = DECISION_BUCKETS if name == "decision_counts" else (*OUTCOME_BUCKETS, "copies")
        return {bucket: summed[bucket] for bucket in buckets}

    def as_json(self) -> dict[str, Any]:
        """For ``headrace audit --json``."""
        numbers = ("num_decisions", "num_accepted", "num_missing", "num_accepted_twice", "num_repeated_rows")
        more = ("num_ignored_blocks", "num_unreadable", "num_uncovered", "num_in_declared_gaps")
        return {
            "audit": self.verdict,
            **{name: self.total(name) for name in (*numbers, *more)},
            "decisions": self.counts("decision_counts"),
            "outcomes": self.counts("outcome_counts"),
            "notes": [note for each in self.partitions for note in each.notes],
        }


def audit(settings: CommonSettings) -> AuditReport:
    """Read the namespace's topics and judge them. Raises `UserError` when broker or topics are missing."""
    registry = open_registry(settings.schema_registry_url)
    definitions = read_definitions(settings, registry)
    names = {name: topic(settings.namespace, name) for name in ("journal", "transitions")}
    reader = reading.consumer(settings)
    try:
        partitions = reading.partitions_of(reader, names["journal"], settings)
        starts = {name: reading.bounds(reader, full, partitions) for name, full in names.items()}
    finally:
        reader.close()
    # Transitions first: whatever their newest Progress covers then stands in the journal already.
    transitions = _decoded(settings, names["transitions"], registry)
    journal = _decoded(settings, names["journal"], registry)
    results = []
    for partition in partitions:
        whole = {name: starts[name][partition][0] == 0 for name in names}
        entries = journal.get(partition, [])
        result = judge(partition, entries, transitions.get(partition, []), definitions, whole)
        result.num_unreadable = sum(block is None for _, _, block in entries)
        results.append(result)
    return AuditReport(tuple(results))


def _decoded(settings: CommonSettings, name: str, registry: Registry) -> dict[int, Entries]:
    """Every message per partition. One that nobody can read still moves T, so it stays, as None."""
    entries: dict[int, Entries] = defaultdict(list)
    for entry in reading.read_all(settings, name):
        block: object = None
        with contextlib.suppress(BadRecord):
            block = decode(entry.value, registry)
        entries[entry.partition].append((entry.offset, entry.time_ms, block))
    return entries


def judge(
    partition: int,
    journal: Entries,
    transitions: Entries,
    definitions: Definitions,
    whole: Mapping[str, bool],
) -> PartitionAudit:
    """Compare one partition's transitions with what its journal says they must be. Pure.

    `whole` says of "journal" and "transitions" whether they still begin at offset 0.
    """
    result = PartitionAudit(partition)
    accepted = audit_chain.accept(transitions, from_start=whole["transitions"])
    result.num_accepted = len(accepted.rows)
    result.num_accepted_twice = accepted.num_accepted_twice
    result.num_repeated_rows = accepted.num_repeated_rows
    result.num_ignored_blocks = accepted.num_ignored_blocks
    for fork in accepted.forks:
        result.blame(f"fork in the transitions, {fork}")
    if accepted.num_accepted_twice:
        result.blame(f"{accepted.num_accepted_twice} rows accepted twice")
    if accepted.unproved is not None:
        result.blame(
            f"the newest Progress, of log time {accepted.unproved.time_ms}, claims rows that no reader accepts: "
            f"{accepted.num_ignored_blocks} blocks stand behind a hole"
        )
    progress = accepted.progress
    if progress is None:
        if any(block is not None for _, _, block in journal):
            result.notes.append(f"partition {partition}: no Progress yet, nothing judged")
        result.num_uncovered = len(journal)
        return result
    result.num_in_declared_gaps = sum(gap.num_records for gap in progress.gaps)
    result.notes += [
        f"partition {partition}: {gap.num_records} journal records from offset {gap.offset} on were lost before they "
        "were joined, and declared (--declare-gap)"
        for gap in progress.gaps
    ]
    covered = [entry for entry in journal if entry[0] < progress.journal_offset]
    result.num_uncovered = len(journal) - len(covered)
    expected = audit_rules.recompute(covered, definitions.table, whole["journal"])
    result.num_decisions = sum(expected.decision_counts.values())
    result.decision_counts, result.outcome_counts = expected.decision_counts, expected.outcome_counts
    for fingerprint in expected.unknown_fingerprints:
        result.blame(f"the journal holds decisions of a task that was never applied, fingerprint {fingerprint.hex()}")
    was_cut = any(row.flags & FLAG_CUT for row in accepted.rows.values())
    if was_cut:
        result.notes.append(f"partition {partition}: decisions were cut, too many were open; sums are not compared")
    if whole["journal"] and whole["transitions"]:
        if not was_cut:
            _compare_counts(result, expected, progress)
        judged_from_ms = None
    else:
        judged_from_ms = covered[0][1] + definitions.look_back_ms if covered else 0
        result.notes.append(f"partition {partition}: older records were deleted; sums are not compared")
    _compare_rows(result, expected, accepted, judged_from_ms)
    return result


def _compare_counts(result: PartitionAudit, expected: audit_rules.Recomputed, progress: Progress) -> None:
    """Rule 17, bucket by bucket."""
    if progress.time_ms != expected.time_ms:
        result.blame(f"Progress says log time {progress.time_ms}, the journal up to its offset {expected.time_ms}")
    pairs = (
        ("decisions", expected.decision_counts, progress.decision_counts),
        ("outcomes", expected.outcome_counts, progress.outcome_counts),
    )
    for kind, ours, theirs in pairs:
        for bucket in sorted(ours.keys() | theirs.keys()):
            if ours.get(bucket, 0) != theirs.get(bucket, 0):
                result.blame(
                    f"{kind} {bucket}: recomputed {ours.get(bucket, 0)}, Progress says {theirs.get(bucket, 0)}"
                )


def _compare_rows(
    result: PartitionAudit,
    expected: audit_rules.Recomputed,
    accepted: audit_chain.Accepted,
    judged_from_ms: int | None,
) -> None:
    """Each closed decision in exactly one accepted row, as the rules have it."""
    for position, verdict in expected.verdicts.items():
        if judged_from_ms is not None and verdict.closed_at_ms < judged_from_ms:
            continue
        row = accepted.rows.get(position)
        if row is None:
            result.num_missing += 1
            result.blame(
                f"decision at {place(position)} closed at {verdict.closed_at_ms} and stands in no accepted row"
            )
            continue
        for reason in _differences(verdict, row):
            result.blame(f"decision at {place(position)}: {reason}")
    for position, row in accepted.rows.items():
        if judged_from_ms is None and row.closed_at_ms < expected.time_ms and position not in expected.verdicts:
            result.blame(f"accepted row {place(position)} has no closed decision in the journal")


def _differences(verdict: audit_rules.Verdict, row: audit_chain.Row) -> Iterator[str]:
    """What differs between the rules and an accepted row."""
    if row.flags & FLAG_CUT:
        return  # closed early by a limit: when, only the join's own queue knows
    if verdict.fingerprint != row.fingerprint or verdict.key != row.key:
        yield "the row is another decision's (task or decision id differ)"
    if verdict.closed_at_ms != row.closed_at_ms:
        yield f"closed at {row.closed_at_ms}, expected {verdict.closed_at_ms}"
    if verdict.snapshot_version != row.snapshot_version:
        yield f"snapshot version {row.snapshot_version}, the journal says {verdict.snapshot_version}"
    if verdict.bucket != row.bucket:
        yield f"bucket {DecisionBucket(row.bucket).label}, expected {DecisionBucket(verdict.bucket).label}"
    trained = verdict.bucket in (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)
    if trained and not _equal(verdict.rewards, row.rewards):
        yield f"reward {_listed(row.rewards)}, expected {_listed(verdict.rewards)}"
    if trained and verdict.num_outcomes != row.num_outcomes:
        yield f"{row.num_outcomes} outcomes counted, expected {verdict.num_outcomes}"


def _equal(expected: tuple[float, ...], got: tuple[float, ...]) -> bool:
    return len(expected) == len(got) and bool(np.allclose(got, expected, rtol=REWARD_TOLERANCE, atol=1e-7))


def _listed(rewards: tuple[float, ...]) -> str:
    return ", ".join(f"{reward:g}" for reward in rewards)


def place(position: int) -> str:
    """A position as people read it.

    >>> place((12 << 16) | 3)
    'offset 12 row 3'
    """
    return f"offset {position >> 16} row {position & 0xFFFF}"
