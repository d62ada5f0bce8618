"""The records that one decision's lineage consists of, as `deploy.explain_evidence` found them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from deploy.audit_rules import Judged
from deploy.explain_parts import RowShown, SnapshotShown, TrainedShown
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.records import DecisionRequest, Reason
from schemas.task import Task

Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision as the journal holds it."""

    topic: str
    partition: int
    offset: int
    row: int
    time_ms: int
    """Append time of its block."""
    block: DecisionBlock

    @property
    def position(self) -> int:
        """Its identity everywhere."""
        return (self.offset << 16) | self.row

    @property
    def reason(self) -> Reason:
        """How the action came about."""
        return Reason(int(self.block.columns.reasons[self.row]))


@dataclass(frozen=True, slots=True)
class Evidence:
    """All records that one decision's lineage consists of; None where the log no longer or not yet holds one."""

    decision_id: str
    logged: Logged
    task: Task
    draw_key: bytes
    request: DecisionRequest | None
    request_where: str
    snapshot: SnapshotShown | None
    weights: Weights | None
    weights_absent: str
    """Why there are no weights."""
    judged: Judged
    """The journal around the decision."""
    outcome_blocks: Mapping[int, OutcomeBlock]
    """By journal offset."""
    accepted: RowShown | None
    trained: TrainedShown | None
