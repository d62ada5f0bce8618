"""A live view of a namespace, from its topics only. One thread, one consumer, no group.

Owns the running figures that `headrace demo` shows. Everything here is re-derived at the end from the whole log
(`deploy.demo_report`): this is for eyes, not for proof.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from deploy import reading
from schemas.blocks import DecisionBlock, TransitionBlock
from schemas.chain import ChainReader
from schemas.codec import BadRecord, decode_request
from schemas.records import (
    DECISION_BUCKETS,
    OUTCOME_BUCKETS,
    DeadLetter,
    Decision,
    DecisionBucket,
    Progress,
    SnapshotManifest,
)
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

TOPICS = ("requests", "decisions", "journal", "transitions", "snapshots", "dead-letters")
RATE_S = 3.0
LATENCIES_KEPT = 2_000
WAITING_MAX = 100_000
"""Requests whose decision has not come: bounded, the oldest are forgotten."""
TRAINED = (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)


@dataclass(slots=True)
class Figures:
    """What is known so far."""

    num_decisions: int = 0
    """Decision records in the journal."""
    num_transitions: int = 0
    rewards: list[float] = field(default_factory=list)
    """Of every row that is learnt from, in order of arrival."""
    published_version: int = 0
    serving_version: int = 0
    progress: dict[int, Progress] = field(default_factory=dict)
    """Newest per partition."""
    dead_letters: Counter[str] = field(default_factory=Counter)
    decided_at: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    """Request's append time → decision's append time."""

    def decisions_per_s(self, now_s: float) -> float:
        """Rate over the last seconds."""
        return sum(each > now_s - RATE_S for each in self.decided_at) / RATE_S

    def reward_of_last(self, count: int) -> float | None:
        """Mean reward of the newest rows."""
        last = self.rewards[-count:]
        return sum(last) / len(last) if last else None

    def latency_ms(self, q: float) -> float | None:
        """Quantile of the recent latencies."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None

    def buckets(self) -> tuple[dict[str, int], dict[str, int]]:
        """Both sums over the partitions, from the newest Progress of each."""
        decisions, outcomes = Counter[str](), Counter[str]()
        for each in self.progress.values():
            decisions.update(each.decision_counts)
            outcomes.update(each.outcome_counts)
        return (
            {bucket: decisions[bucket] for bucket in DECISION_BUCKETS},
            {bucket: outcomes[bucket] for bucket in OUTCOME_BUCKETS},
        )


class Watch:
    """Follows the topics of a namespace from their beginning. `figures` is written by its thread only."""

    def __init__(self, settings: CommonSettings, figures: Figures | None = None) -> None:
        self.figures = figures or Figures()
        self.failure: Exception | None = None
        self._settings = settings
        self._registry: Registry = open_registry(settings.schema_registry_url)
        self._chains: dict[int, ChainReader] = {}
        self._asked_ms: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> Watch:
        """Follow from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop following."""
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        names = {topic(self._settings.namespace, name): name for name in TOPICS}
        reader = reading.consumer(self._settings)
        try:
            places = [
                TopicPartition(full, partition, OFFSET_BEGINNING)
                for full in names
                for partition in reading.partitions_of(reader, full, self._settings)
            ]
            reader.assign(places)
            while not self._stopping.is_set():
                for message in reader.consume(500, 0.1):
                    if message.error() is None:
                        entry = reading.entry_of(message)
                        self._take(names[entry.topic], entry)
        except Exception as error:  # the demo shows it; a dead thread must not look like a quiet topic
            self.failure = error
        finally:
            reader.close()

    def _take(self, name: str, entry: reading.Entry) -> None:
        try:
            if name == "requests":
                self._asked(decode_request(entry.value, self._registry).decision_id, entry.time_ms)
                return
            answered = name == "decisions"
            found = (reading.decision_of if answered else reading.record_of)(entry, self._registry)
        except BadRecord:
            return
        figures = self.figures
        if isinstance(found, DecisionBlock):
            figures.num_decisions += len(found)
            figures.serving_version = max(figures.serving_version, found.snapshot_version)
            figures.decided_at.extend([time.time()] * len(found))
        elif isinstance(found, Decision):
            asked_ms = self._asked_ms.pop(found.decision_id, None)
            if asked_ms is not None:
                figures.latencies_ms.append(entry.time_ms - asked_ms)
        elif isinstance(found, TransitionBlock):
            self._accept(entry.partition, found)
        elif isinstance(found, Progress):
            figures.progress[entry.partition] = found
        elif isinstance(found, SnapshotManifest):
            figures.published_version = max(figures.published_version, found.version)
        elif isinstance(found, DeadLetter):
            figures.dead_letters[found.reason] += 1

    def _asked(self, decision_id: str, time_ms: int) -> None:
        if len(self._asked_ms) >= WAITING_MAX:
            del self._asked_ms[next(iter(self._asked_ms))]
        self._asked_ms.setdefault(decision_id, time_ms)

    def _accept(self, partition: int, block: TransitionBlock) -> None:
        """Count the rows that any reader accepts."""
        verdict = self._chains.setdefault(partition, ChainReader()).offer(block)
        start = getattr(verdict, "start", len(block))
        self.figures.num_transitions += len(block) - start
        for bucket, reward in zip(block.buckets[start:].tolist(), block.rewards[start:, 0].tolist(), strict=True):
            if bucket in TRAINED:
                self.figures.rewards.append(reward)
