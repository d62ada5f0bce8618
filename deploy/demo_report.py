"""The demo's figures, from the whole log and nothing else.

`read` collects what the topics hold once the processes have ended; the rest is arithmetic over it. The one figure that
no topic has, the latency from the intended send time, comes from the shop's own report.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from deploy import audit_chain, kafka_jars, reading
from deploy.audit import AuditReport
from schemas.arrays import F64, I64
from schemas.blocks import DecisionBlock
from schemas.codec import BadRecord, decode
from schemas.records import OUTCOME_BUCKETS, DeadLetter, DecisionBucket, SnapshotManifest
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

AVERAGED = 1000
"""Decisions at either end whose mean reward is reported."""
TRAINED = (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)

KEYS: tuple[tuple[str, str], ...] = (
    ("decisions", "Rows of decisions in the journal, duplicates and conflicts too."),
    ("transitions", "Accepted rows of transitions: as many as decisions when every window has closed."),
    ("buckets.decisions", "How many decisions ended in each bucket, as the audit counted them (docs/concepts.md)."),
    ("buckets.outcomes", "The same of outcomes; `malformed` are the dead letters of the outcomes topic."),
    ("duplicates_accepted", "Decisions that are learnt from twice: 0, or something is wrong."),
    ("holes", "Decisions without an accepted row: 0, or something is wrong."),
    ("audit", '"clean", or the list of what the audit found.'),
    ("reward_first_1000", "Mean reward of the first 1,000 decisions that are learnt from; null of none."),
    ("reward_last_1000", "The same of the last 1,000."),
    ("uniform_reward", "Expected reward of a route drawn blindly: 1 / number of routes."),
    (
        "decision_latency_ms.p50",
        "From the time at which the shop meant to send to the time at which it read the answer.",
    ),
    ("decision_latency_ms.p99", "The same, of the slowest hundredth."),
    (
        "window_close_to_serving_ms.p50",
        "From the close of a reward window to the first decision that has learnt from it.",
    ),
    ("window_close_to_serving_ms.p99", "The same, of the slowest hundredth."),
    ("snapshots.published", "Signed manifests in the snapshots topic."),
    ("snapshots.served", "Versions that made at least one decision."),
    ("snapshots.refused", "Snapshots that the decide worker refused."),
    ("dead_letters", "Dead letters of the whole run by reason (the shop sends spoilt messages on purpose)."),
    ("delay_decisions", "Median number of decisions between one and the first that has learnt from it; null of none."),
    ("versions", "Software that made the figures: Python, Kafka, librdkafka, headrace and its numeric packages."),
)
"""(key, meaning) of all that the report holds, for docs/reference.md; a dot leads into an object of fixed keys."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What the topics hold."""

    decided_ms: I64
    """Append time of every decision record, in order of it."""
    decided_version: I64
    """Snapshot version it was made with."""
    rows: list[audit_chain.Row]
    """Every accepted transition, in order of its decision's time, then partition and position."""
    row_decided_ms: I64
    """Append time of each row's decision."""
    manifests: list[SnapshotManifest]
    dead_letters: list[DeadLetter]

    @property
    def trained(self) -> list[int]:
        """Places in `rows` of those that are learnt from."""
        return [index for index, row in enumerate(self.rows) if row.bucket in TRAINED]

    @property
    def rewards(self) -> F64:
        """Rewards of the rows that are learnt from, in order of their decisions."""
        return np.array([self.rows[index].reward for index in self.trained], np.float64)


def read(settings: CommonSettings) -> Logged:
    """Everything the report needs, from the topics."""
    registry = open_registry(settings.schema_registry_url)
    decided: list[tuple[int, int]] = []
    decided_at: dict[tuple[int, int], int] = {}
    for entry, found in _decoded(settings, "journal", registry):
        if isinstance(found, DecisionBlock):
            decided += [(entry.time_ms, found.snapshot_version)] * len(found)
            decided_at[entry.partition, entry.offset] = entry.time_ms
    by_partition: dict[int, list[tuple[int, int, object]]] = {}
    for entry, found in _decoded(settings, "transitions", registry):
        by_partition.setdefault(entry.partition, []).append((entry.offset, entry.time_ms, found))
    rows = [
        (decided_at.get((partition, row.position >> 16), row.closed_at_ms), partition, row.position, row)
        for partition, entries in by_partition.items()
        for row in audit_chain.accept(entries, from_start=True).rows.values()
    ]
    rows.sort(key=lambda each: each[:3])
    decided.sort()
    manifests = [found for _, found in _decoded(settings, "snapshots", registry) if isinstance(found, SnapshotManifest)]
    letters = [found for _, found in _decoded(settings, "dead-letters", registry) if isinstance(found, DeadLetter)]
    return Logged(
        decided_ms=np.array([time_ms for time_ms, _ in decided], np.int64),
        decided_version=np.array([version for _, version in decided], np.int64),
        rows=[row for _, _, _, row in rows],
        row_decided_ms=np.array([time_ms for time_ms, _, _, _ in rows], np.int64),
        manifests=sorted(manifests, key=lambda manifest: manifest.version),
        dead_letters=letters,
    )


def _decoded(settings: CommonSettings, name: str, registry: Registry) -> Any:
    """(entry, record) of every readable message of a topic."""
    for entry in reading.read_all(settings, topic(settings.namespace, name)):
        try:
            yield entry, decode(entry.value, registry)
        except BadRecord:
            continue


def serving_since_ms(logged: Logged) -> tuple[I64, I64]:
    """(versions, times): version v or a later one has decided since times[i], for v = versions[i], rising."""
    versions, times, newest = [], [], 0
    for time_ms, version in zip(logged.decided_ms.tolist(), logged.decided_version.tolist(), strict=True):
        if version > newest:
            newest = version
            versions.append(version)
            times.append(time_ms)
    return np.array(versions, np.int64), np.array(times, np.int64)


def served_at_ms(logged: Logged) -> I64:
    """Per trained row: when the first decision was made by a snapshot that has learnt it; -1 when none was."""
    cuts = np.array([manifest.cut_ms for manifest in logged.manifests], np.int64)
    cuts = np.maximum.accumulate(cuts) if len(cuts) else cuts
    published = np.array([manifest.version for manifest in logged.manifests], np.int64)
    versions, times = serving_since_ms(logged)
    closed = np.array([logged.rows[index].closed_at_ms for index in logged.trained], np.int64)
    result = np.full(len(closed), -1, np.int64)
    first = np.searchsorted(cuts, closed)  # first manifest with cut_ms ≥ closed_at
    known = first < len(published)
    place = np.searchsorted(versions, published[first[known]]) if known.any() else np.empty(0, np.int64)
    found = np.full(len(place), -1, np.int64)
    found[place < len(times)] = times[place[place < len(times)]]
    result[known] = found
    return result


def quantiles(values: F64 | I64) -> dict[str, float | None]:
    """p50 and p99, None of nothing."""
    if not len(values):
        return {"p50": None, "p99": None}
    return {name: round(float(np.quantile(values, q)), 3) for name, q in (("p50", 0.5), ("p99", 0.99))}


def build(
    logged: Logged, audit: AuditReport, shop: Mapping[str, Any], num_actions: int, outcomes_topic: str, num_refused: int
) -> dict[str, Any]:
    """The report, with the keys of `KEYS`.

    `num_refused` counts snapshots that a worker refused (its metrics); `num_actions` is the size of the catalogue.
    """
    trained = logged.trained
    rewards = logged.rewards
    served = served_at_ms(logged)
    closed = np.array([logged.rows[index].closed_at_ms for index in trained], np.int64)
    decided = logged.row_decided_ms[trained] if trained else np.empty(0, np.int64)
    known = served >= 0
    between = np.searchsorted(logged.decided_ms, served[known]) - np.searchsorted(
        logged.decided_ms, decided[known], side="right"
    )
    keys = Counter((logged.rows[index].fingerprint, logged.rows[index].key) for index in trained)
    malformed = sum(letter.topic == outcomes_topic for letter in logged.dead_letters)
    outcomes = audit.counts("outcome_counts")
    latency = shop.get("latency_ms", {})
    return {
        "decisions": len(logged.decided_ms),
        "transitions": len(logged.rows),
        "buckets": {
            "decisions": audit.counts("decision_counts"),
            "outcomes": {**{bucket: outcomes[bucket] for bucket in OUTCOME_BUCKETS}, "malformed": malformed},
        },
        "duplicates_accepted": sum(keys.values()) - len(keys) + audit.total("num_accepted_twice"),
        "holes": audit.total("num_missing"),
        "audit": audit.verdict,
        "reward_first_1000": _mean(rewards[:AVERAGED]),
        "reward_last_1000": _mean(rewards[-AVERAGED:]),
        "uniform_reward": 1.0 / num_actions,
        "decision_latency_ms": {name: latency.get(name) for name in ("p50", "p99")},
        "window_close_to_serving_ms": quantiles(served[known] - closed[known]),
        "snapshots": {
            "published": len(logged.manifests),
            "served": len(np.unique(logged.decided_version[logged.decided_version > 0])),
            "refused": num_refused,
        },
        "dead_letters": dict(sorted(Counter(letter.reason for letter in logged.dead_letters).items())),
        "delay_decisions": float(np.median(between)) if len(between) else None,
        "versions": versions(),
    }


def _mean(values: F64) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def versions() -> dict[str, str]:
    """Software that made the figures."""
    import confluent_kafka

    found = {
        "python": platform.python_version(),
        "kafka": kafka_jars.KAFKA_VERSION,
        "librdkafka": confluent_kafka.libversion()[0],
    }
    for name in ("headrace", "numpy", "numba", "faust-streaming", "confluent-kafka", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
