"""What must be true of a whole namespace when its trouble is over: told from its logs, its learner and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.codec import decode
from schemas.records import Decision
from schemas.task import Task
from tests.simulation.chain_learner import LearnerProcess
from tests.simulation.chain_workers import REGISTRY
from tests.simulation.join_run import END, ROWS
from tests.simulation.learning import ORDER, expected_digests
from tests.simulation.truth import Truth, read_through, require
from tests.simulation.virtual import Record
from tests.simulation.worlds import World

EQUIVOCATION = "equivocation"
SILENCE = "a request was never answered"
OTHER_ANSWER = "an answer is not what the journal holds"
TWICE = "what stood in the journal was decided again"
OTHER_DRAW = "one request was decided in two ways by one policy"
LOST_OUTCOME = "an outcome is not in the journal"
Places = dict[tuple[int, int], list[tuple[int, int]]]
"""Request partition and offset → (snapshot version, chosen) of its decisions in the journal."""


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    tasks: Sequence[Task]
    logs: dict[str, list[list[Record]]]
    """By topic, one per partition."""
    answers: list[tuple[Decision, int, int]]
    """What the shop heard: answer, request partition, request offset."""
    learner: LearnerProcess
    is_lossless: bool
    """No acked write is lost."""
    is_decided_once: bool
    """Nothing came into the journal behind the back of a decider that looked there."""


def judge(run: Finished) -> None:
    """Raises Wrong."""
    journals = [[(time_ms, decode(value, REGISTRY)) for time_ms, value in log] for log in run.logs["journal"]]
    world = World(tuple(run.tasks), journals, len(run.tasks), [[] for _ in journals])
    truths = [_judge_join(world, partition, log) for partition, log in enumerate(run.logs["transitions"])]
    run.learner.turn()
    require(run.learner.digests == expected_digests(truths), ORDER)
    judge_alarms(run.learner)
    records = [record for journal in journals for _, record in journal]
    _judge_answers(run, records)
    if run.is_lossless:
        _judge_outcomes(run, records)


def judge_alarms(learner: LearnerProcess) -> None:
    """A learner that dies is asked before it does."""
    require("headrace_learner_equivocations" not in learner.alarms, EQUIVOCATION)


def _judge_join(world: World, partition: int, transitions: list[Record]) -> Truth:
    truth = Truth(world, partition, (10**9, 10**9))
    found = read_through([decode(value, REGISTRY) for _, value in transitions], truth)
    for wrong in found.wrong:
        raise wrong
    require(found.rows == truth.rows, ROWS, partition)
    require(found.newest is not None, END, partition)
    return truth


def _judge_answers(run: Finished, records: list[Any]) -> None:
    """Everyone is answered, as the journal has it; the draw is a function of request and policy."""
    heard = {(partition, offset) for _, partition, offset in run.answers}
    asked = {(p, offset) for p, log in enumerate(run.logs["requests"]) for offset in range(len(log))}
    require(heard == asked, SILENCE, asked - heard)
    journaled: Places = {}
    drawn: dict[tuple[Any, ...], int] = {}
    for block in (each for each in records if isinstance(each, DecisionBlock)):
        places = zip(block.request_partitions.tolist(), block.request_offsets.tolist(), strict=True)
        for row, place in enumerate(places):
            chosen = int(block.columns.chosen[row, 0])
            journaled.setdefault(place, []).append((block.snapshot_version, chosen))
            key = (block.decision_ids[row], block.snapshot_version, int(block.columns.reasons[row]))
            require(drawn.setdefault(key, chosen) == chosen, OTHER_DRAW, key)
    if run.is_lossless:
        _judge_said(run, journaled)


def _judge_said(run: Finished, journaled: Places) -> None:
    for decision, *place in run.answers:
        if decision.reason not in ("policy", "no-snapshot", "snapshot-refused"):
            continue
        partition, offset = place
        said, rows = (decision.snapshot_version, _index(decision)), journaled.get((partition, offset), [])
        require(said in rows, OTHER_ANSWER, (decision, partition, offset))
        if run.is_decided_once:
            require(len(rows) == 1, TWICE, (decision, partition, offset))


def _judge_outcomes(run: Finished, records: list[Any]) -> None:
    """Every sound outcome stands in the journal."""
    there = {
        (block.source_partition, offset)
        for block in records if isinstance(block, OutcomeBlock) for offset in block.source_offsets.tolist()
    }  # fmt: skip
    for partition, log in enumerate(run.logs["outcomes"]):
        for offset, (_, value) in enumerate(log):
            require(value == b"{" or (partition, offset) in there, LOST_OUTCOME, (partition, offset))


def _index(decision: Decision) -> int:
    action = decision.actions[0]
    return ("left", "middle", "right").index(action) if not action.startswith("a") else int(action[1:])
