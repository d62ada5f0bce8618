"""Alarms of the merge, told: each counted, few logged."""

from __future__ import annotations

import logging
import time

from learner.merge import Alarm
from schemas.telemetry import Metrics

log = logging.getLogger(__name__)

ALARM_S = 10.0
"""One log line per kind and partition in this time; all are counted."""


class Alarms:
    """Of one topic of transitions, called `name` in the log."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name, self._metrics = name, metrics
        self._logged_s: dict[tuple[str, int], float] = {}

    def report(self, alarm: Alarm) -> None:
        """Count it; log it unless one of its kind and partition has just been logged."""
        self._metrics.add("headrace_learner_alarms", kind=alarm.kind, partition=alarm.partition)
        now_s = time.monotonic()
        if now_s - self._logged_s.get((alarm.kind, alarm.partition), -ALARM_S) >= ALARM_S:
            self._logged_s[alarm.kind, alarm.partition] = now_s
            log.error("%s: %s[%d] offset %d: %s", alarm.kind, self._name, alarm.partition, alarm.offset, alarm.detail)
