"""What an owned partition shows: the counts of its newest countable Progress, how far its fold is, the clock's skew."""

from __future__ import annotations

import logging

from schemas.records import Progress
from schemas.telemetry import Metrics
from streams.join import JoinPartition

log = logging.getLogger(__name__)

SKEW_MS_MAX = 1_000
SKEW_ROUNDS = 20
"""Ticks in a row: one late tick on a busy machine is not a wrong clock."""


class OwnedGauges:
    """Of one journal partition."""

    def __init__(self, journal: str, partition: int, metrics: Metrics) -> None:
        self._journal, self._partition, self._metrics = journal, partition, metrics
        self._skew_ms = 0
        """Append time of the newest record when it was folded, minus our clock then; 0 once it was looked at."""
        self._num_skewed = 0

    def folded(self, time_ms: int, now_ms: int) -> None:
        """The record appended at `time_ms` has just been folded."""
        self._skew_ms = time_ms - now_ms

    def counted(self, progress: Progress) -> None:
        """The counts of a countable Progress as metrics."""
        metrics, partition = self._metrics, self._partition
        metrics.set("headrace_join_read_back_ms", progress.time_ms, partition=partition)
        for bucket, count in progress.decision_counts.items():
            metrics.set("headrace_join_decisions", count, partition=partition, bucket=bucket)
        for bucket, count in progress.outcome_counts.items():
            metrics.set("headrace_join_outcomes", count, partition=partition, bucket=bucket)

    def show(self, join: JoinPartition, end: int) -> None:
        """Gauges of the fold; `end` is the journal partition's end offset."""
        metrics, partition, next_offset = self._metrics, self._partition, join.next_offset
        if next_offset is None:
            return
        metrics.set("headrace_join_progress_ms", join.time_ms, partition=partition)
        metrics.set("headrace_join_open_decisions", join.num_open, partition=partition)
        metrics.set("headrace_join_lag_records", max(0, end - next_offset), partition=partition)
        if end > next_offset:
            return
        metrics.set("headrace_join_clock_skew_ms", self._skew_ms, partition=partition)
        self._num_skewed = self._num_skewed + 1 if abs(self._skew_ms) > SKEW_MS_MAX else 0
        if self._num_skewed == SKEW_ROUNDS:
            text = "%s[%d]: the broker's clock and ours differ by %d ms: set up NTP; windows go by the broker's"
            log.warning(text, self._journal, partition, self._skew_ms)
        self._skew_ms = 0
