"""Writes decisions and outcomes into a journal as decide and ingest do; reads transitions by the reader rule."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from confluent_kafka import Producer

from schemas.arrays import Strings, empty
from schemas.blocks import DecisionBlock, OutcomeBlock, TransitionBlock
from schemas.chain import Accepted, ChainReader
from schemas.codec import encode
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.keys import decision_key, outcome_key, partition_of, subject_key
from schemas.records import DecisionBucket, Progress
from schemas.settings import CommonSettings
from schemas.task import Task
from schemas.topics import topic
from tests.kafka.workers import REGISTRY, read_all


def decision_block(task: Task, ids: list[str], subjects: list[str]) -> DecisionBlock:
    """Decisions of a task with a declared catalogue: the first action, uniform propensities."""
    num_rows, num_candidates = len(ids), len(task.actions)
    propensities = np.full((num_rows, num_candidates), PROPENSITY_ONE // num_candidates, np.int32)
    propensities[:, 0] += PROPENSITY_ONE - propensities[0].sum()
    features = FeatureColumns(
        context=np.ones((num_rows, task.context.width), np.float32),
        num_candidates=np.full(num_rows, num_candidates, np.int32),
        actions=empty(np.float32, 0, 0),
        action_keys=empty(np.uint64),
        context_token_counts=empty(np.int32),
        context_tokens=empty(np.int32),
        context_token_values=empty(np.float32),
        action_token_counts=empty(np.int32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
    )
    columns = DecisionColumns(
        features=features,
        catalogue=task.catalogue,
        chosen=np.zeros((num_rows, 1), np.int32),
        propensities=propensities.reshape(-1),
        reasons=np.zeros(num_rows, np.uint8),
        values=empty(np.float64, 0, 1),
        bounds=empty(np.float64, 0, 2),
        terminal=empty(np.uint8),
        steps=empty(np.int32),
        episode_keys=empty(np.uint64),
    )
    return DecisionBlock(
        task=task.name,
        fingerprint=task.fingerprint,
        snapshot_version=0,
        request_topic="requests",
        decision_keys=np.array([decision_key(each) for each in ids], np.uint64),
        subject_keys=np.array([subject_key(each) for each in subjects], np.uint64),
        request_partitions=np.zeros(num_rows, np.int32),
        request_offsets=np.arange(num_rows, dtype=np.int64),
        columns=columns,
        decision_ids=Strings.of(ids),
        subjects=Strings.of(subjects),
    )


def outcome_block(source_partition: int, first_offset: int, ids: list[str], subjects: list[str]) -> OutcomeBlock:
    """One `resolved` = 1 for each of these decisions."""
    num_rows = len(ids)
    return OutcomeBlock(
        source_topic="outcomes",
        source_partition=source_partition,
        source_offsets=np.arange(first_offset, first_offset + num_rows, dtype=np.int64),
        outcome_keys=np.array([outcome_key(f"o-{each}") for each in ids], np.uint64),
        subject_keys=np.array([subject_key(each) for each in subjects], np.uint64),
        decision_keys=np.array([decision_key(each) for each in ids], np.uint64),
        action_keys=np.zeros(num_rows, np.uint64),
        slots=np.full(num_rows, -1, np.int32),
        types=np.zeros(num_rows, np.int32),
        values=np.ones(num_rows),
        times_ms=np.zeros(num_rows, np.int64),
        type_names=("resolved",),
    )


def subject_in(partition: int, num_partitions: int, number: int = 0) -> str:
    """The number-th subject whose events belong into a journal partition."""
    found = 0
    for i in range(1_000_000):
        name = f"s{i}"
        if partition_of(name, num_partitions) == partition:
            if found == number:
                return name
            found += 1
    raise AssertionError("no such subject")


@dataclass
class JournalWriter:
    """Decisions and outcomes into every partition; remembers what must come out."""

    settings: CommonSettings
    task: Task
    num_partitions: int = 4
    written: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    rewarded: set[str] = field(default_factory=set)
    _offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": self.settings.bootstrap, "linger.ms": 1, "acks": "all"})
        self._journal = topic(self.settings.namespace, "journal")
        self._subjects = [subject_in(partition, self.num_partitions) for partition in range(self.num_partitions)]
        self._rng = random.Random(7)

    def decide(self, partition: int, num_rows: int = 10) -> list[str]:
        """One DecisionBlock; its ids."""
        start = len(self.written[partition])
        ids = [f"d-{partition}-{start + i}" for i in range(num_rows)]
        self.written[partition].extend(ids)
        block = decision_block(self.task, ids, [self._subjects[partition]] * num_rows)
        self.raw(partition, encode(block, REGISTRY))
        return ids

    def reward(self, partition: int, ids: list[str]) -> None:
        """One OutcomeBlock with an outcome for every id."""
        block = outcome_block(partition, self._offsets[partition], ids, [self._subjects[partition]] * len(ids))
        self._offsets[partition] += len(ids)
        self.rewarded.update(ids)
        self.raw(partition, encode(block, REGISTRY))

    def both(self, partition: int, num_rows: int = 10) -> None:
        """Decisions, of which about half get an outcome."""
        ids = self.decide(partition, num_rows)
        self.reward(partition, self._rng.sample(ids, num_rows // 2))

    def raw(self, partition: int, value: bytes | None) -> None:
        self._producer.produce(self._journal, value, partition=partition)
        self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(20) == 0

    @property
    def num_written(self) -> int:
        return sum(map(len, self.written.values()))


@dataclass
class Accounted:
    """Transitions as a reader accepts them."""

    rewards: dict[tuple[int, int], float] = field(default_factory=dict)
    """decision key → reward of its row"""
    num_rows: int = 0
    num_repeated: int = 0
    """Rows that a reader drops because it has them: duplicates in the log, none in effect."""
    num_holes: int = 0
    num_foreign: int = 0
    """Records that are neither transitions nor Progress."""
    buckets: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    progress: dict[int, Progress] = field(default_factory=dict)


def account(settings: CommonSettings) -> Accounted:
    """Read all transitions from the start by the reader rule."""
    readers: dict[int, ChainReader] = defaultdict(ChainReader)
    found = Accounted()
    for partition, _, _, record in read_all(settings, "transitions"):
        if isinstance(record, Progress):
            if readers[partition].covers(record):
                found.progress[partition] = record
            continue
        if not isinstance(record, TransitionBlock):
            found.num_foreign += 1
            continue
        verdict = readers[partition].offer(record)
        if not isinstance(verdict, Accepted):
            found.num_holes += 1
            continue
        found.num_repeated += verdict.start
        for row in range(verdict.start, len(record)):
            key: Any = tuple(record.decision_keys[row].tolist())
            assert key not in found.rewards, "a decision stands in two accepted rows"
            found.rewards[key] = float(record.rewards[row].sum())
            found.buckets[int(record.buckets[row])] += 1
            found.num_rows += 1
    return found


def check_complete(settings: CommonSettings, writer: JournalWriter, num_foreign: int = 0) -> Accounted:
    """Every decision in exactly one accepted row with its reward; the counts of the newest Progress agree."""
    found = account(settings)
    assert found.num_foreign == num_foreign
    expected = {
        tuple(decision_key(each)): float(each in writer.rewarded) for ids in writer.written.values() for each in ids
    }
    outcomes = {partition: progress.outcome_counts for partition, progress in found.progress.items()}
    differing = {key for key in found.rewards.keys() | expected.keys() if found.rewards.get(key) != expected.get(key)}
    assert not differing, f"{len(differing)} rows of {len(expected)} differ; outcomes by partition: {outcomes}"
    counts: dict[str, int] = defaultdict(int)
    for progress in found.progress.values():
        for bucket, count in progress.decision_counts.items():
            counts[bucket] += count
    assert counts["joined"] == found.buckets[DecisionBucket.JOINED] == len(writer.rewarded)
    assert counts["defaulted"] == found.buckets[DecisionBucket.DEFAULTED]
    assert sum(counts.values()) == writer.num_written
    return found
