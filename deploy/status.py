"""The state of a namespace, from the ends of its topics: what `headrace status` shows.

Reads the last messages of each topic at every look, so it costs the same however long the log is.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table

from deploy import lags, reading
from schemas.blocks import DecisionBlock, TransitionBlock
from schemas.codec import BadRecord, decode
from schemas.records import DECISION_BUCKETS, OUTCOME_BUCKETS, DeadLetter, DecisionBucket, Progress, SnapshotManifest
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

TAIL = 300
"""Messages looked at from the end of each partition."""
TRANSITIONS_TAIL = 3_000
"""Of the transitions: a Progress comes every 250 ms, so on a quiet day this is some ten minutes."""
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
    num_unlearnt: int | None = None
    """Rows of transitions that the newest snapshot does not contain; None without one."""
    is_unlearnt_more: bool = False
    """There are more of them than were looked at."""

    @property
    def decision_counts(self) -> Counter[str]:
        """Of all partitions."""
        return sum((Counter(each.decision_counts) for each in self.progress.values()), Counter())

    @property
    def outcome_counts(self) -> Counter[str]:
        """Of all partitions."""
        return sum((Counter(each.outcome_counts) for each in self.progress.values()), Counter())


def look(settings: CommonSettings) -> Status:
    """Read the ends of the topics. Raises `UserError` when broker or topics are missing."""
    registry = open_registry(settings.schema_registry_url)
    status = Status(settings.namespace, int(time.time() * 1000))
    for name in ("journal", "snapshots", "dead-letters"):
        for entry in reading.read_all(settings, topic(settings.namespace, name), tail=TAIL):
            found = _decoded(entry.value, registry)
            if isinstance(found, DecisionBlock):
                status.serving[found.snapshot_version] += len(found)
            elif isinstance(found, SnapshotManifest):
                status.published, status.published_ms = found, entry.time_ms
            elif isinstance(found, DeadLetter):
                status.dead_letters[found.reason] += 1
    _add_transitions(settings, registry, status)
    _add_lags(settings, status)
    return status


def _decoded(value: bytes | None, registry: Registry) -> object:
    with contextlib.suppress(BadRecord):
        return decode(value or b"", registry)
    return None


def _add_transitions(settings: CommonSettings, registry: Registry, status: Status) -> None:
    """Rows, and the newest Progress of each partition: on a quiet day there are hundreds of them to a row, so all but
    the newest are passed over by their schema id."""
    published = status.published
    trained = {each.partition: each.transitions_offset for each in published.trained} if published else {}
    rows: list[tuple[int, float]] = []
    checkpoints: dict[int, bytes] = {}
    firsts: dict[int, int] = {}
    num_unlearnt = 0
    progress_id = registry.id_of("Progress").to_bytes(4, "big")
    for entry in reading.read_all(settings, topic(settings.namespace, "transitions"), tail=TRANSITIONS_TAIL):
        firsts.setdefault(entry.partition, entry.offset)
        value = entry.value or b""
        if value[1:5] == progress_id:
            checkpoints[entry.partition] = value
            continue
        found = _decoded(value, registry)
        if isinstance(found, TransitionBlock):
            rows += _rows(found)
            num_unlearnt += len(found) if entry.offset >= trained.get(entry.partition, 0) else 0
        elif isinstance(found, Progress):  # of an earlier version
            checkpoints[entry.partition] = value
    for partition, value in checkpoints.items():
        newest = _decoded(value, registry)
        if isinstance(newest, Progress):
            status.progress[partition] = newest
    rows.sort(key=lambda row: row[0])
    status.rewards = [reward for _, reward in rows[-REWARDS:]]
    if published is not None:
        status.num_unlearnt = num_unlearnt
        status.is_unlearnt_more = any(first > trained.get(partition, 0) for partition, first in firsts.items())


def _rows(block: TransitionBlock) -> list[tuple[int, float]]:
    trained = (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)
    cells = zip(block.closed_at_ms.tolist(), block.buckets.tolist(), block.rewards[:, 0].tolist(), strict=True)
    return [(closed, reward) for closed, bucket, reward in cells if bucket in trained]


def _add_lags(settings: CommonSettings, status: Status) -> None:
    """Of the groups that commit, and of the join by its Progress."""
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
    finally:
        reader.close()


def table(status: Status, partitions: bool = False) -> Group:
    """The look as tables: what a shop asks first, then what holds it up; fits 80 x 24. `partitions`: each of them."""
    outcomes = (*OUTCOME_BUCKETS, "copies")
    sums = [
        _sums("decisions", status.decision_counts, DECISION_BUCKETS),
        _sums("outcomes", status.outcome_counts, outcomes),
    ]
    shown: list[RenderableType] = [_policy(status), _lags(status), Columns(sums, padding=(0, 4))]
    if partitions:
        shown += [_per_partition(status, "decisions", DECISION_BUCKETS), _per_partition(status, "outcomes", outcomes)]
    return Group(*shown)


def _table(title: str, *columns: str) -> Table:
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        found.add_column(name, justify="right" if number else "left", no_wrap=True)
    return found


def _policy(status: Status) -> Table:
    policy = Table(title=f"{status.namespace}", title_justify="left", show_header=False, box=None, pad_edge=False)
    mean = sum(status.rewards) / len(status.rewards) if status.rewards else None
    policy.add_row(f"reward of the last {len(status.rewards)}", "–" if mean is None else f"{mean:.4f}")
    if status.published is None:
        policy.add_row("published snapshot", "none yet")
    else:
        age_s = max(0, status.now_ms - status.published_ms) / 1000
        policy.add_row("published snapshot", f"{status.published.version}, {age_s:.1f} s ago")
    serving = ", ".join(f"{version or 'none'} ({count})" for version, count in sorted(status.serving.items())[-5:])
    policy.add_row("serving (newest decisions)", serving or "–")
    letters = ", ".join(f"{reason} {count}" for reason, count in status.dead_letters.most_common(5))
    policy.add_row("dead letters (newest)", letters or "–")
    if status.progress:
        slowest, newest = min(status.progress.items(), key=lambda each: each[1].time_ms)
        behind_s = max(0, status.now_ms - newest.time_ms) / 1000
        policy.add_row("join behind now", f"{behind_s:.1f} s (partition {slowest}, the slowest)")
    return policy


def _lags(status: Status) -> Table:
    lags = _table("", "not yet read by", "", "messages")
    for reader, full, behind in status.lags:
        lags.add_row(reader, full, str(behind))
    if status.num_unlearnt is not None:
        more = "at least " if status.is_unlearnt_more else ""
        lags.add_row("newest snapshot", "transitions' rows", f"{more}{status.num_unlearnt}")
    return lags


def _sums(title: str, counts: Mapping[str, int], names: Iterable[str]) -> Table:
    found = _table("", title, "all")
    for name in names:
        found.add_row(name, str(counts.get(name, 0)))
    return found


def _per_partition(status: Status, title: str, names: Sequence[str]) -> Table:
    """Buckets down, partitions across: there may be more of either than a line is long."""
    found = _table("", title, *(str(partition) for partition in sorted(status.progress)))
    for name in names:
        counts = [
            (each.decision_counts if title == "decisions" else each.outcome_counts).get(name, 0)
            for _, each in sorted(status.progress.items())
        ]
        found.add_row(name, *map(str, counts))
    return found
