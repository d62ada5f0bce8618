"""What the log says of decisions that were asked for several times: records, transitions, outcomes, by decision id."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from schemas.blocks import DecisionBlock, OutcomeBlock, TransitionBlock
from schemas.chain import Accepted, ChainReader
from schemas.decision_columns import PROPENSITY_ONE
from schemas.records import Progress
from schemas.settings import CommonSettings
from schemas.task import Project
from tests.kafka.workers import read_all


@dataclass(frozen=True)
class Record:
    """One decision of the journal."""

    place: tuple[int, int]
    """Journal partition and position."""
    time_ms: int
    """T at the record."""
    request: tuple[int, int]
    """Partition and offset of the request."""
    answer: tuple[str, float, int]
    """(action, propensity, snapshot version): what a shop hears of it."""


def journaled(settings: CommonSettings, project: Project) -> dict[str, list[Record]]:
    """Records of each decision id in the order of the log (one partition: that of its subject)."""
    found: dict[str, list[Record]] = defaultdict(list)
    times: dict[int, int] = defaultdict(int)
    for partition, offset, time_ms, block in read_all(settings, "journal"):
        times[partition] = max(times[partition], time_ms)
        if not isinstance(block, DecisionBlock):
            continue
        task, size = project.task(block.task), 3
        for row, name in enumerate(block.decision_ids.tolist()):
            chosen = int(block.columns.chosen[row, 0])
            propensity = int(block.columns.propensities[row * size + chosen]) / PROPENSITY_ONE
            request = int(block.request_partitions[row]), int(block.request_offsets[row])
            answer = task.actions[chosen], propensity, block.snapshot_version
            found[name].append(Record((partition, (offset << 16) | row), times[partition], request, answer))
    return found


def outcome_times_ms(settings: CommonSettings) -> dict[str, int]:
    """T at the first outcome of each decision id."""
    found: dict[str, int] = {}
    times: dict[int, int] = defaultdict(int)
    for partition, _, time_ms, block in read_all(settings, "journal"):
        times[partition] = max(times[partition], time_ms)
        for name in block.decision_ids.tolist() if isinstance(block, OutcomeBlock) else ():
            found.setdefault(name, times[partition])
    return found


@dataclass(frozen=True)
class Transition:
    """One accepted row."""

    bucket: int
    answer: tuple[str, float, int]
    num_outcomes: int


def transitions(
    settings: CommonSettings, project: Project
) -> tuple[dict[tuple[int, int], Transition], dict[int, Progress]]:
    """Rows that any reader accepts by journal place, and the newest Progress of each partition."""
    readers: dict[int, ChainReader] = defaultdict(ChainReader)
    rows: dict[tuple[int, int], Transition] = {}
    progress: dict[int, Progress] = {}
    for partition, _, _, block in read_all(settings, "transitions"):
        if isinstance(block, Progress) and readers[partition].covers(block):
            progress[partition] = block
        if not isinstance(block, TransitionBlock):
            continue
        verdict = readers[partition].offer(block)
        for row in range(verdict.start if isinstance(verdict, Accepted) else len(block), len(block)):
            chosen = int(block.columns.chosen[row, 0])
            propensity = int(block.columns.propensities[row * 3 + chosen]) / PROPENSITY_ONE
            answer = project.task(block.task).actions[chosen], propensity, int(block.snapshot_versions[row])
            place = partition, int(block.positions[row])
            assert place not in rows, "accepted twice"
            rows[place] = Transition(int(block.buckets[row]), answer, int(block.num_outcomes[row]))
    return rows, progress


def said_of(answer: dict[str, Any]) -> tuple[str, float, int]:
    """What an answer on `decisions` says, to be compared with a record."""
    return answer["actions"][0], answer["propensities"][0], answer["snapshot_version"]
