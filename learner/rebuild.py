"""Rebuild: a published version made once more, from an earlier state and the log after it (learning.md rule 24).

Owns the choice of the earlier state and the loop that learns up to the version. Writes nothing, publishes nothing,
locks nothing: a learner may run meanwhile. Knows checkpoints and the transitions topic, not the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learner import checkpoint
from learner.checkpoint import Checkpoint, Damaged
from learner.consume import TransitionsReader
from learner.cuts import CutRules, CutState
from learner.environment import ANCHOR, GENESIS
from learner.merge import Alarm, Merge, Position
from learner.namespace import Find, NamespaceLearner, RowLearner, Snapshot, UnknownTask
from learner.restore import of_checkpoint, positions_of
from schemas.blocks import TransitionBlock
from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.outage import Outage
from schemas.records import Progress, SnapshotManifest
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.task import Task

log = logging.getLogger(__name__)

WAITING_BYTES_MAX = 256 << 20
READ_S = 0.5


@dataclass(frozen=True, slots=True)
class Goal:
    """The version to rebuild."""

    manifest: SnapshotManifest

    @property
    def genesis(self) -> str:
        """Its history."""
        return self.manifest.environment.get(GENESIS, "")

    @property
    def version_base(self) -> int:
        """Of that history."""
        return self.manifest.version - self.manifest.cut_number

    @property
    def rules(self) -> CutRules:
        """Where its cuts fall: as recorded, whatever the settings say today. Raises UserError when nothing is."""
        recorded = self.manifest.environment
        try:
            return CutRules(*(int(recorded[name]) for name in ("bucket_ms", "publish_ms", "publish_bytes_per_s")))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"the manifest of version {self.manifest.version} does not record its rules for cuts ({error})",
                "it was not published by this learner and cannot be rebuilt",
            ) from error


@dataclass(frozen=True, slots=True)
class Start:
    """An earlier state of a history, and where the log goes on."""

    cut: CutState
    positions: tuple[Position, ...]
    path: Path | None = None
    """Its checkpoint; None for the beginning, a learner that knows nothing."""

    @property
    def where(self) -> str:
        """For people."""
        return "nothing, at the log's beginning" if self.path is None else self.path.name


def starts_of(
    goal: Goal, folder: Path, topic_id: str, beginning: Sequence[Position] | None, lows: Sequence[int]
) -> list[Start]:
    """Every state of the goal's history from which the log is still whole, earliest first.

    `beginning` is where a learner without a checkpoint would start now, None when it could not; `lows` the first
    offset of each partition.
    """
    found = []
    if beginning is not None:
        cut = CutState.start(beginning, goal.version_base)
        if cut.genesis == goal.genesis:
            found.append(Start(cut, tuple(beginning)))
    for path in sorted({*checkpoint.anchors(folder), *checkpoint.files(folder)}):
        document = checkpoint.document_of(path)
        if document is None:
            log.warning("%s cannot be read and is no start", path)
            continue
        if document["topic_id"] != topic_id:
            continue
        cut, positions = CutState(**document["learner"]["cut"]), tuple(positions_of(document))
        if cut.genesis == goal.genesis and all(lows[each.partition] <= each.offset for each in positions):
            found.append(Start(replace(cut, version_base=goal.version_base), positions, path))
    return sorted(found, key=lambda start: start.cut.number)


def before(goal: Goal, starts: Sequence[Start]) -> list[Start]:
    """Starts before the goal's cut, earliest first. Raises UserError that names the earliest version within reach."""
    usable = [start for start in starts if start.cut.number < goal.manifest.cut_number]
    if usable:
        return usable
    version = goal.manifest.version
    if not starts:
        raise UserError(
            f"version {version} is out of reach, and so is every version of its history {goal.genesis[:16]}…: the log "
            "before it is gone and no checkpoint of it is left",
            "keep daily checkpoints (HEADRACE_ANCHORS_KEPT) and transitions for as long as replay must reach back",
        )
    raise UserError(
        f"version {version} is out of reach: the log before it is gone; the earliest version that can be rebuilt is "
        f"{starts[0].cut.version + 1}, from {starts[0].where}",
        f"take a version from {starts[0].cut.version + 1} on; for more keep HEADRACE_ANCHORS_KEPT higher and "
        "transitions longer",
    )


def opened(goal: Goal, starts: Sequence[Start]) -> tuple[Start, Checkpoint | None]:
    """The first of `starts` that can be read. A damaged one is named and passed over. Raises UserError for none."""
    for start in starts:
        if start.path is None:
            return start, None
        try:
            found = checkpoint.read(start.path)
            _check_anchor(goal, start.path)
            return start, found
        except Damaged as error:
            log.warning("passed over for another start: %s", error)
    raise UserError("every checkpoint to start from is damaged", "see the warnings above; take a version after them")


def _check_anchor(goal: Goal, path: Path) -> None:
    """Raises Damaged when the manifest names this anchor with another content."""
    name, _, digest = goal.manifest.environment.get(ANCHOR, "").partition(" ")
    if name == path.stem and digest != checkpoint.digest_of(path):
        raise Damaged(f"{path}: not the anchor that version {goal.manifest.version}'s manifest names")


class Rebuild:
    """Learns from a start to the goal."""

    def __init__(
        self,
        settings: CommonSettings,
        registry: Registry,
        goal: Goal,
        start: Start,
        found: Checkpoint | None,
        find: Find,
        make: Callable[[Task], RowLearner],
        num_partitions: int,
    ) -> None:
        """`found` is the content of the start's checkpoint. Raises UserError as `restore` does."""
        self._goal, self._registry = goal, registry
        self._learner = NamespaceLearner(make, find, goal.rules, CutState(), {}, goal.manifest.channel)
        if found is not None:
            of_checkpoint(found, self._learner, registry)
        self._learner.cut = start.cut
        self._merge = Merge(num_partitions, goal.rules.bucket_ms, start.positions)
        self._reader = TransitionsReader(settings, self._merge.positions(), Outage())
        self._fork: Alarm | None = None
        """The first that was met."""
        self.num_records = 0
        """Transition blocks and Progress read."""

    def run(self, ends: Sequence[int]) -> Snapshot:
        """The snapshot of the goal's cut. `ends` are the log's end offsets: beyond them nothing is waited for.

        Raises UserError when the log ends or forks before the cut, or holds a task that is not applied. What stands
        before a fork is learnt, as a learner does.
        """
        try:
            while True:
                messages = self._reader.read(READ_S)
                for message in messages:
                    self._offer(message.partition, message.offset, message.payload)
                snapshot = self._advance()
                if snapshot is not None:
                    return snapshot
                stopped = set(self._merge.stopped)
                ahead = self._merge.ahead() if self._merge.num_bytes > WAITING_BYTES_MAX else ()
                self._reader.pause_only(stopped.union(ahead))
                offsets = enumerate(zip(self._merge.next_offsets, ends, strict=True))
                is_read = all(p in stopped or offset >= end for p, (offset, end) in offsets)
                if self._merge.is_held or (is_read and not messages):
                    raise self._too_short() if self._fork is None else self._forked(self._fork)
        finally:
            self._reader.close()

    def _offer(self, partition: int, offset: int, payload: bytes) -> None:
        self.num_records += 1
        record: Any = None
        try:
            record = decode(payload, self._registry, expect=(TransitionBlock, Progress))
        except BadRecord as error:
            log.warning("transitions[%d] offset %d: %s", partition, offset, error)
        alarm = self._merge.offer(partition, offset, record, len(payload))
        if alarm is not None:
            log.warning("%s: transitions[%d] offset %d: %s", alarm.kind, partition, offset, alarm.detail)
        if alarm is not None and alarm.kind == "fork":
            self._fork = self._fork or alarm

    def _advance(self) -> Snapshot | None:
        goal = self._goal.manifest
        try:
            for snapshot in self._learner.advance(self._merge):
                if snapshot.draft.cut_number == goal.cut_number:
                    return snapshot
        except UnknownTask as error:
            raise UserError(str(error), "apply the definition that the decisions were made under") from error
        return None

    def _forked(self, fork: Alarm) -> UserError:
        return UserError(
            f"the transitions fork in partition {fork.partition} at offset {fork.offset}, before version "
            f"{self._goal.manifest.version}'s cut: {fork.detail}",
            f"run `headrace audit`; nothing behind the fork was learnt from, take version {self._learner.cut.version} "
            "or one before it",
        )

    def _too_short(self) -> UserError:
        cut = self._learner.cut
        return UserError(
            f"the log ends at version {cut.version}, before version {self._goal.manifest.version}'s cut",
            "the transitions are shorter than they were: see `headrace audit`",
        )
