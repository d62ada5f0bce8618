"""The state of a namespace, from the ends of its topics: what `headrace status` shows.

Reads the last messages of each topic at every look, so it costs the same however long the log is.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table

from deploy import lags, reading
from schemas.blocks import DecisionBlock, TransitionBlock
from schemas.codec import BadRecord, decode
from schemas.records import DECISION_BUCKETS, OUTCOME_BUCKETS, DeadLetter, DecisionBucket, Progress, SnapshotManifest
from schemas.registry import open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

TAIL = 300
"""Messages looked at from the end of each partition."""
REWARDS = 1000


@dataclass(slots=True)
class Status:
    """One look."""

    namespace: str
    now_ms: int
    lags: list[tuple[str, str, int]] = field(default_factory=list)
    """(group or reader, topic, messages not yet read)."""
    progress: dict[int, Progress] = field(default_factory=dict)
    journal_ends: dict[int, int] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    """Of the newest rows learnt from, oldest first."""
    published: SnapshotManifest | None = None
    published_ms: int = 0
    serving: Counter[int] = field(default_factory=Counter)
    """Snapshot versions of the newest decisions."""
    dead_letters: Counter[str] = field(default_factory=Counter)


def look(settings: CommonSettings) -> Status:
    """Read the ends of the topics. Raises `UserError` when broker or topics are missing."""
    registry = open_registry(settings.schema_registry_url)
    status = Status(settings.namespace, int(time.time() * 1000))
    rows: list[tuple[int, float]] = []
    for name in ("journal", "transitions", "snapshots", "dead-letters"):
        for entry in reading.read_all(settings, topic(settings.namespace, name), tail=TAIL):
            try:
                found = decode(entry.value, registry)
            except BadRecord:
                continue
            if isinstance(found, DecisionBlock):
                status.serving[found.snapshot_version] += len(found)
            elif isinstance(found, TransitionBlock):
                rows += _rows(found)
            elif isinstance(found, Progress):
                status.progress[entry.partition] = found
            elif isinstance(found, SnapshotManifest):
                status.published, status.published_ms = found, entry.time_ms
            elif isinstance(found, DeadLetter):
                status.dead_letters[found.reason] += 1
    rows.sort(key=lambda row: row[0])
    status.rewards = [reward for _, reward in rows[-REWARDS:]]
    _add_lags(settings, status)
    return status


def _rows(block: TransitionBlock) -> list[tuple[int, float]]:
    trained = (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)
    cells = zip(block.closed_at_ms.tolist(), block.buckets.tolist(), block.rewards[:, 0].tolist(), strict=True)
    return [(closed, reward) for closed, bucket, reward in cells if bucket in trained]


def _add_lags(settings: CommonSettings, status: Status) -> None:
    """Of the groups that commit, of the join by its Progress, of the learner by its newest manifest."""
    reader = reading.consumer(settings)
    try:
        for group, full, offsets in lags.committed(settings):
            ends = reading.bounds(reader, full, list(offsets))
            status.lags.append((group, full, sum(max(0, ends[p][1] - offset) for p, offset in offsets.items())))
        journal = topic(settings.namespace, "journal")
        ends = reading.bounds(reader, journal, sorted(status.progress))
        status.journal_ends = {p: end for p, (_, end) in ends.items()}
        behind = sum(max(0, end - status.progress[p].journal_offset) for p, end in status.journal_ends.items())
        status.lags.append(("join (read back)", journal, behind))
        if status.published is not None:
            full = topic(settings.namespace, "transitions")
            trained = {each.partition: each.transitions_offset for each in status.published.trained}
            ends = reading.bounds(reader, full, sorted(trained))
            status.lags.append(
                ("newest snapshot", full, sum(max(0, ends[p][1] - offset) for p, offset in trained.items()))
            )
    finally:
        reader.close()


def table(status: Status) -> Group:
    """The look as tables."""
    lags = Table(title=f"{status.namespace}: not yet read", title_justify="left")
    for name in ("reader", "topic"):
        lags.add_column(name)
    lags.add_column("messages", justify="right")
    for reader, full, behind in status.lags:
        lags.add_row(reader, full, str(behind))
    join = Table(title="join", title_justify="left")
    for name in ("partition", "log time behind, s", *DECISION_BUCKETS):
        join.add_column(name, justify="right")
    for partition, progress in sorted(status.progress.items()):
        behind_s = f"{max(0, status.now_ms - progress.time_ms) / 1000:.1f}"
        join.add_row(str(partition), behind_s, *(str(progress.decision_counts.get(b, 0)) for b in DECISION_BUCKETS))
    outcomes = Table(title="outcomes", title_justify="left")
    names = (*OUTCOME_BUCKETS, "copies")
    for name in ("partition", *names):
        outcomes.add_column(name, justify="right")
    for partition, progress in sorted(status.progress.items()):
        outcomes.add_row(str(partition), *(str(progress.outcome_counts.get(b, 0)) for b in names))
    return Group(lags, join, outcomes, _policy(status))


def _policy(status: Status) -> Table:
    policy = Table(title="policy", title_justify="left", show_header=False)
    mean = sum(status.rewards) / len(status.rewards) if status.rewards else None
    policy.add_row(f"reward of the last {len(status.rewards)}", "–" if mean is None else f"{mean:.4f}")
    if status.published is not None:
        age_s = max(0, status.now_ms - status.published_ms) / 1000
        policy.add_row("published snapshot", f"{status.published.version}, {age_s:.1f} s ago")
    serving = ", ".join(f"{version or 'none'} ({count})" for version, count in sorted(status.serving.items())[-5:])
    policy.add_row("serving (newest decisions)", serving or "–")
    letters = ", ".join(f"{reason} {count}" for reason, count in sorted(status.dead_letters.items()))
    policy.add_row("dead letters (newest)", letters or "–")
    return policy
