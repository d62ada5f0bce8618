"""What one partition of the join holds at most (rule 14), and how a fold refuses a record."""

from __future__ import annotations

from dataclasses import dataclass


class Gap(Exception):
    """The journal record at `expected` was skipped: the fold cannot go on. Restart the partition from its Progress."""

    def __init__(self, partition: int, expected: int, got: int) -> None:
        super().__init__(f"journal partition {partition}: expected offset {expected}, got {got}; restart the partition")
        self.partition, self.expected, self.got = partition, expected, got


class UnknownTask(Exception):
    """A DecisionBlock under a definition that the task table does not have yet. Nothing was changed: fold again."""

    def __init__(self, partition: int, offset: int, fingerprint: bytes) -> None:
        super().__init__(
            f"journal partition {partition} offset {offset}: task definition {fingerprint.hex()} has not been read "
            "from the tasks topic; fold again when it has, or apply it again"
        )
        self.partition, self.offset, self.fingerprint = partition, offset, fingerprint


@dataclass(frozen=True, slots=True)
class JoinLimits:
    """Rule 14: what one partition holds at most. Part of the result: every worker must use the same."""

    num_open_max: int = 1_000_000
    """Open decisions; beyond it the oldest close early, flagged as cut."""
    num_pending_max: int = 100_000
    """Outcomes waiting for a decision; beyond it the oldest settle."""
