"""What an owned partition needs of its worker, and the words for its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from schemas.blocks import TransitionBlock
from schemas.registry import Registry
from schemas.task import TaskTable
from schemas.telemetry import Metrics
from streams.dead_letters import DeadLetters
from streams.journal import Output
from streams.settings import WorkerSettings


class State(Enum):
    """What an owned partition is doing."""

    REBUILDING = "is being rebuilt from its own output"
    FOLDING = "folds"
    WAITING = "waits for a task definition that its journal refers to"
    NO_SCHEMA = "waits for the schema registry"
    READING_AGAIN = "reads again what waited for the schema registry"
    REFUSED = "has lost journal records that were not joined, or has another journal"


@dataclass(slots=True)
class Unread:
    """A block that was written and has not come back yet."""

    block: TransitionBlock
    payload: bytes
    acked_s: float | None = None
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Ports:
    """What a partition needs of its worker."""

    settings: WorkerSettings
    registry: Registry
    tasks: TaskTable
    output: Output
    dead_letters: DeadLetters
    metrics: Metrics
    restart: Callable[[int, str], None]
    """(partition, cause): rebuild it; the worker limits how often."""
    now_ms: Callable[[], int]
    tick_ms: int
