"""Measure: the gauges of every task's learner, and the alarm that one of them cannot solve.

Called by the loop now and then; reads the learner, changes nothing of it.
"""

from __future__ import annotations

import logging

from learner.namespace import Find, NamespaceLearner
from schemas.telemetry import Metrics

log = logging.getLogger(__name__)


class TaskGauges:
    """Per task: rows learnt, rewards clipped, solves that failed. Remembers which tasks it has complained of."""

    def __init__(self, metrics: Metrics, find: Find) -> None:
        """`find` looks a fingerprint up in the `tasks` topic, for the task's name."""
        self._metrics, self._find = metrics, find
        self._complained: set[str] = set()

    def show(self, learner: NamespaceLearner) -> None:
        """Set all gauges; one line to the log for each task whose solves fail for the first time."""
        for fingerprint, count in learner.num_rows.items():
            self._metrics.set("headrace_learner_rows_learnt", count, task=self._name(fingerprint))
        for fingerprint, count in learner.num_clipped.items():
            self._metrics.set("headrace_learner_rewards_clipped", count, task=self._name(fingerprint))
        for fingerprint, count in learner.num_failed_solves.items():
            self._metrics.set("headrace_learner_solves_failed", count, task=self._name(fingerprint))
            if count and fingerprint not in self._complained:
                self._complained.add(fingerprint)
                log.error(
                    "task %s (%s): no ridge makes its sums solvable, the weights before are kept and go on being "
                    "published; headrace_learner_solves_failed counts on, what follows is not logged",
                    self._name(fingerprint),
                    fingerprint,
                )

    def _name(self, fingerprint: str) -> str:
        definition = self._find(bytes.fromhex(fingerprint))
        return definition.task.name if definition is not None else fingerprint
