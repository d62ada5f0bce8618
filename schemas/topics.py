"""The one table of topics: names, keys, partitions, cleanup, retention (architecture §4).

Created by ``headrace topics apply``, never by a broker's auto-creation. Every topic is stamped by the broker
(LogAppendTime): a client's clock must neither order the join nor decide what Kafka deletes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.task import DEDUPE_MS_MIN, Project

DAY_MS = 86_400_000
JOURNAL_MARGIN_MS = 7 * DAY_MS
"""join.md rule 16: a week to notice and mend before the log that a rebuild needs is gone."""
MESSAGE_BYTES_MAX = 1_048_588
"""The broker's own default: nothing headrace writes needs a changed broker."""
CHUNKS_BYTES_MAX = 4 << 30
"""`snapshot-chunks` is bounded by bytes too (learning.md rule 23): two snapshots a second add up."""
MANIFESTS_BYTES_MAX = 4 << 30
"""`snapshots` too: a manifest carries its probes, some 25 KB each, twice a second."""
CHUNKS_SEGMENT_BYTES = 64 << 20
"""Kafka deletes whole segments only, so they must be much smaller than the bound."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic of a namespace."""

    name: str
    """Without the namespace."""
    record: str
    """Schemas that stand in it."""
    key: str
    """What the message key is, for people."""
    partitions: Literal["P", 1]
    """P: as many as the namespace has."""
    cleanup: Literal["compact", "delete"]
    retention_ms: int | None
    """None: for ever (compacted), or derived from the longest windows (journal, transitions)."""
    written_by: str
    read_by: str


TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec("tasks", "TaskRecord", "fingerprint", 1, "compact", None, "headrace apply", "all"),
    TopicSpec("requests", "DecisionRequest", "subject", "P", "delete", DAY_MS, "shop", "decide"),
    TopicSpec("decisions", "Decision", "subject", "P", "delete", 7 * DAY_MS, "decide", "shop"),
    TopicSpec("outcomes", "Outcome", "subject", "P", "delete", 7 * DAY_MS, "shop", "ingest"),
    TopicSpec(
        "journal",
        "DecisionBlock, OutcomeBlock, Tick",
        "none (explicit partition)",
        "P",
        "delete",
        None,
        "decide, ingest, join",
        "join, audit",
    ),
    TopicSpec(
        "transitions",
        "TransitionBlock, Progress",
        "none (explicit partition)",
        "P",
        "delete",
        None,
        "join",
        "join, learner, audit",
    ),
    TopicSpec("snapshots", "SnapshotManifest", "channel", 1, "delete", 90 * DAY_MS, "learner", "decide"),
    TopicSpec("snapshot-chunks", "raw bytes", "sha256/index", 1, "delete", DAY_MS, "learner", "decide"),
    TopicSpec("dead-letters", "DeadLetter", "as origin", "P", "delete", 14 * DAY_MS, "all", "people"),
)

_BY_NAME = {spec.name: spec for spec in TOPICS}


def topic(namespace: str, name: str) -> str:
    """Full name of a topic. Raises KeyError for a name that is not in the table.

    >>> topic("headrace", "journal")
    'headrace.journal'
    """
    return f"{namespace}.{_BY_NAME[name].name}"


def spec_of(name: str) -> TopicSpec:
    """The table's entry for a topic, named without the namespace."""
    return _BY_NAME[name]


def num_partitions(spec: TopicSpec, project: Project) -> int:
    """Partitions that `spec` has in this project's namespace."""
    return project.namespace.partitions if spec.partitions == "P" else 1


def journal_retention_ms(window_ms_max: int, backward_ms_max: int) -> int:
    """At least 3·Wmax + bw + D + 7 days (join.md rule 16)."""
    return 3 * window_ms_max + backward_ms_max + max(DEDUPE_MS_MIN, window_ms_max) + JOURNAL_MARGIN_MS


def retention_ms(spec: TopicSpec, project: Project) -> int:
    """How long messages are kept; -1: for ever."""
    if spec.cleanup == "compact":
        return -1
    if spec.retention_ms is not None:
        return spec.retention_ms
    rewards = [task.reward for task in project.tasks]
    return journal_retention_ms(_longest(r.window_ms for r in rewards), _longest(r.backward_ms for r in rewards))


def configs(spec: TopicSpec, project: Project) -> dict[str, str]:
    """Kafka topic configuration of `spec`, all values as text."""
    settings = {
        "cleanup.policy": spec.cleanup,
        "retention.ms": str(retention_ms(spec, project)),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
    }
    if spec.name == "snapshot-chunks":
        settings["retention.bytes"] = str(CHUNKS_BYTES_MAX)
        settings["segment.bytes"] = str(CHUNKS_SEGMENT_BYTES)
    if spec.name == "snapshots":
        settings["retention.bytes"] = str(MANIFESTS_BYTES_MAX)
    return settings


def _longest(durations_ms: Iterable[int]) -> int:
    return max(durations_ms, default=0)
