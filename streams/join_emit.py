"""From open decisions to TransitionBlocks (rules 4 and 6): one `ChainTail` per chain, first in, first out.

A chain has one definition, hence one window, so its rows close in position order and a block of the journal closes
whole, but for the cut of rule 14. Rows that a reader has accepted already are not sent again; they keep their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.arrays import I64, U64
from schemas.blocks import KIND_TRANSITION, TransitionBlock
from schemas.chain import START
from schemas.decision_columns import DecisionColumns
from schemas.soundness import segment_sums
from schemas.task import Task
from streams.join_kernels import RUN_OFFSET, RUN_ROW, RUN_ROWS, RUN_SEQ, RUN_TIME, Closing

BLOCK_BYTES_MAX = 512 * 1024
BLOCK_ROWS_MAX = 65_535
_ROW_BYTES = 72
"""Position, closed_at, version (≤ 10 each), key (16), bucket, flags, outcomes, counts, reason: varints at worst."""
_VARINT_BYTES = 5
SEGMENT_ROWS_MIN = 1024
"""Smaller segments are joined: the arrays of a segment take some 3.5 KB beside what stands in them."""
_SMALL_SEGMENTS_MAX = 16
"""So many come before they are joined: a call of `concatenate` per column for all of them."""
_PROPENSITY_BYTES = 4
"""A propensity is at most 2**24: 26 bits as a zigzag varint."""


@dataclass(slots=True, eq=False)
class Segment:
    """Rows of one chain that came together, in one journal record or in a few, and have not closed."""

    runs: I64
    """(R, 6) runs of rows that are open (streams.join_kernels)."""
    start: int
    """First row of the columns that is open."""
    columns: DecisionColumns
    decision_keys: U64
    _ends: I64 | None = field(default=None, init=False)

    def __len__(self) -> int:
        """Rows that are open."""
        return len(self.decision_keys) - self.start

    @property
    def open_columns(self) -> DecisionColumns:
        """The columns of the rows that are open, as views."""
        return self.columns.rows(self.start, len(self.decision_keys)) if self.start else self.columns

    @staticmethod
    def concat(parts: Sequence[Segment]) -> Segment:
        """The open rows of all parts, one after another; all of one shape. Closed rows stay where they are."""
        return Segment(
            runs=np.concatenate([part.runs for part in parts]),
            start=0,
            columns=DecisionColumns.concat([part.open_columns for part in parts]),
            decision_keys=np.concatenate([part.decision_keys[part.start :] for part in parts]),
        )

    @property
    def ends(self) -> I64:
        """(N,) bytes that all rows up to each take at most when encoded; the same for all blocks they leave in."""
        if self._ends is None:
            self._ends = _ends(self.columns)
        return self._ends

    @property
    def shape(self) -> tuple[object, ...]:
        """What must agree for rows to stand in one block."""
        features = self.columns.features
        return (
            self.columns.num_slots, features.context.shape[1:], features.actions.shape[1:], self.columns.catalogue,
            *(len(column) > 0 for column in (
                features.actions, features.action_keys, features.context_token_counts, features.action_token_counts,
                self.columns.values, self.columns.bounds, self.columns.terminal, self.columns.steps,
                self.columns.episode_keys,
            )),
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class ClosedRows:
    """Rows of one segment that have closed and not been sent."""

    segment: Segment
    start: int
    """First row within the segment's columns."""
    closing: Closing
    shape: tuple[object, ...]

    def __len__(self) -> int:
        return len(self.closing.positions)

    def drop(self, num_rows: int) -> ClosedRows:
        """Without the first `num_rows`."""
        columns: list[Any] = [column[num_rows:] for column in self.closing]
        return ClosedRows(self.segment, self.start + num_rows, Closing(*columns), self.shape)


def new_closing(num_rows: int, num_slots: int) -> Closing:
    """Columns for `num_rows` rows to be filled by `close_rows`."""
    return Closing(
        positions=np.empty(num_rows, np.int64),
        closed_at_ms=np.empty(num_rows, np.int64),
        versions=np.empty(num_rows, np.int64),
        num_outcomes=np.empty(num_rows, np.int32),
        buckets=np.empty(num_rows, np.uint8),
        flags=np.empty(num_rows, np.uint8),
        rewards=np.empty((num_rows, num_slots), np.float32),
    )


class ChainTail:
    """The open and the closed, unsent rows of one chain."""

    def __init__(self, definition: int, task: Task, hwm: int) -> None:
        self.definition = definition
        self.task = task
        self.window_ms = task.reward.window_ms
        self.open: deque[Segment] = deque()
        self._num_small = 0
        """Small segments that came since some were joined."""
        self.closed: deque[ClosedRows] = deque()
        self.accepted = hwm
        """Last position that a reader has accepted."""
        self.sent = START
        """Last position put into a block."""
        self.last_closed = START

    def take_in(self, segment: Segment) -> None:
        """Rows of `segment` are open from now on. They came after all others."""
        self.open.append(segment)
        self._num_small += len(segment) < SEGMENT_ROWS_MIN
        if self._num_small >= _SMALL_SEGMENTS_MAX:
            self._join_small()

    def _join_small(self) -> None:
        """Make one segment of the small ones at the end."""
        self._num_small, shape = 0, self.open[-1].shape
        small: list[Segment] = []
        while self.open and len(self.open[-1]) < SEGMENT_ROWS_MIN and self.open[-1].shape == shape:
            small.append(self.open.pop())
        if small:
            self.open.append(Segment.concat(small[::-1]))

    @property
    def oldest_ms(self) -> int | None:
        """T of the oldest open decision."""
        return int(self.open[0].runs[0, RUN_TIME]) if self.open else None

    @property
    def oldest_position(self) -> int:
        """Position of the oldest open decision; there must be one."""
        run = self.open[0].runs[0]
        return (int(run[RUN_OFFSET]) << 16) | int(run[RUN_ROW])

    def due(self, time_ms: int) -> int:
        """Runs of the first segment whose window has passed at log time `time_ms`."""
        if not self.open:
            return 0
        return int(np.searchsorted(self.open[0].runs[:, RUN_TIME], time_ms - self.window_ms))

    def take_runs(self, num_runs: int) -> tuple[Segment, I64]:
        """Take the first `num_runs` runs of the first segment out of the open ones."""
        segment = self.open[0]
        runs, segment.runs = segment.runs[:num_runs], segment.runs[num_runs:]
        if not len(segment.runs):
            self.open.popleft()
        return segment, runs

    def take_rows(self, num_rows: int) -> tuple[Segment, I64]:
        """Take at most `num_rows` rows of the first run of the first segment."""
        segment = self.open[0]
        first = segment.runs[0]
        if first[RUN_ROWS] <= num_rows:
            return self.take_runs(1)
        taken = segment.runs[:1].copy()
        taken[0, RUN_ROWS] = num_rows
        first[RUN_ROW] += num_rows
        first[RUN_SEQ] += num_rows
        first[RUN_ROWS] -= num_rows
        return segment, taken

    def close(self, segment: Segment, closing: Closing) -> None:
        """Rows of `segment` have closed; those not accepted yet wait to be sent."""
        num_rows = len(closing.positions)
        rows = ClosedRows(segment, segment.start, closing, segment.shape)
        segment.start += num_rows
        self.last_closed = int(closing.positions[-1])
        if self.last_closed > self.accepted:
            self.closed.append(rows)

    def drain(self, partition: int) -> list[TransitionBlock]:
        """All closed rows that no reader has, as blocks that each continue the one before."""
        blocks: list[TransitionBlock] = []
        batch: list[TransitionBlock] = []
        shape: tuple[object, ...] = ()
        bytes_left = rows_left = 0
        while self.closed:
            rows = self._unsent(self.closed.popleft())
            while rows is not None:
                fitting, size = _fitting(rows, bytes_left, rows_left)
                if not fitting or rows.shape != shape:
                    if batch:
                        blocks.append(_joined(batch))
                    batch, shape, bytes_left, rows_left = [], rows.shape, BLOCK_BYTES_MAX, BLOCK_ROWS_MAX
                    fitting, size = _fitting(rows, bytes_left, rows_left)
                    fitting = fitting or 1  # one row beyond the limit goes alone: rule 14 bounds it at the source
                batch.append(self._block(partition, rows, fitting))
                bytes_left, rows_left = bytes_left - size, rows_left - fitting
                rows = rows.drop(fitting) if fitting < len(rows) else None
        if batch:
            blocks.append(_joined(batch))
        return blocks

    def _unsent(self, rows: ClosedRows) -> ClosedRows | None:
        """Rows beyond the last accepted position, None when there are none."""
        known = int(np.searchsorted(rows.closing.positions, self.accepted, side="right"))
        if known == len(rows):
            return None
        return rows.drop(known) if known else rows

    def _block(self, partition: int, rows: ClosedRows, num_rows: int) -> TransitionBlock:
        """The first `num_rows` of `rows` as a block; the chain goes on after them."""
        segment, closing = rows.segment, rows.closing
        whole = rows.start == 0 and num_rows == len(segment.decision_keys)
        keep = slice(0, num_rows)
        prev = max(self.sent, self.accepted)
        self.sent = int(closing.positions[num_rows - 1])
        stop = rows.start + num_rows
        return TransitionBlock(
            partition=partition,
            task=self.task.name,
            fingerprint=self.task.fingerprint,
            kind=KIND_TRANSITION,
            prev=prev,
            positions=closing.positions[keep],
            closed_at_ms=closing.closed_at_ms[keep],
            buckets=closing.buckets[keep],
            flags=closing.flags[keep],
            rewards=closing.rewards[keep],
            num_outcomes=closing.num_outcomes[keep],
            snapshot_versions=closing.versions[keep],
            decision_keys=segment.decision_keys if whole else segment.decision_keys[rows.start : stop],
            columns=segment.columns if whole else segment.columns.rows(rows.start, stop),
        )


def _joined(batch: list[TransitionBlock]) -> TransitionBlock:
    return batch[0] if len(batch) == 1 else TransitionBlock.concat(batch)


def _fitting(rows: ClosedRows, bytes_left: int, rows_left: int) -> tuple[int, int]:
    """(rows of `rows` that fit, bytes they take at most when encoded)."""
    if bytes_left <= 0 or rows_left <= 0:
        return 0, 0
    ends, start = rows.segment.ends, rows.start
    before = int(ends[start - 1]) if start else 0
    fitting = min(int(np.searchsorted(ends, before + bytes_left, side="right")) - start, rows_left, len(rows))
    return fitting, int(ends[start + fitting - 1]) - before if fitting else 0


def _ends(columns: DecisionColumns) -> I64:
    """As `Segment.ends`."""
    features = columns.features
    per_row, per_candidate = _sizes(columns)
    per_token = 4 + _VARINT_BYTES
    sizes = features.num_candidates * np.int64(per_candidate) + per_row
    if len(features.context_token_counts):
        sizes += per_token * features.context_token_counts
    if len(features.action_token_counts):
        sizes += per_token * segment_sums(features.action_token_counts, features.num_candidates.astype(np.int64))
    return np.cumsum(sizes)


def _sizes(columns: DecisionColumns) -> tuple[int, int]:
    """(bytes per row, bytes per candidate) when encoded, at most, without tokens."""
    features = columns.features
    num_slots = columns.num_slots
    per_row = _ROW_BYTES + 4 * features.context.shape[1] + num_slots * (4 + _VARINT_BYTES)
    per_row += (8 * num_slots if len(columns.values) else 0) + (16 if len(columns.bounds) else 0)
    per_row += (8 + _VARINT_BYTES if len(columns.episode_keys) or len(columns.steps) else 0) + 2 * _VARINT_BYTES
    per_candidate = _PROPENSITY_BYTES * num_slots + 4 * features.actions.shape[1]
    per_candidate += 8 if len(features.action_keys) else 0
    per_candidate += _VARINT_BYTES if len(features.action_token_counts) else 0
    return per_row, per_candidate
