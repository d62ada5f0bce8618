"""Gauges of the tasks, and the alarm of one that cannot solve any more."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from learner import metrics, second_order
from learner.cuts import CutRules, CutState
from learner.measure import TaskGauges
from learner.merge import Merge
from learner.namespace import Definition, NamespaceLearner
from learner.update import TaskLearner
from schemas.blocks import FLAG_CLIPPED
from schemas.telemetry import Metrics
from tests.learner.test_namespace import ONE, TASKS, TWO
from tests.learner.transition_rows import block, progress

KNOWN = {task.fingerprint: Definition(task) for task in TASKS}


class Namespace:
    """Two tasks' real learners behind one partition."""

    def __init__(self) -> None:
        self.merge = Merge(1, 100)
        rules = CutRules(bucket_ms=100, publish_ms=500, publish_bytes_per_s=100_000_000)
        start = CutState.start(self.merge.positions(), 0)
        self.learner = NamespaceLearner(TaskLearner, KNOWN.get, rules, start, {"torch": "any"})
        self._num_rows = 0
        self._last: dict[bytes, int] = {}

    def learn(self, num_rows: int, fingerprint: bytes, flags: int = 0) -> None:
        first, self._num_rows = self._num_rows, self._num_rows + num_rows
        now_ms = 1_000 * (1 + first)
        positions, prev = list(range(first, self._num_rows)), self._last.get(fingerprint, -1)
        rows = block(positions, [now_ms] * num_rows, prev=prev, fingerprint=fingerprint)
        rows = replace(rows, flags=np.full(num_rows, flags, np.uint8))
        self._last[fingerprint] = positions[-1]
        for record in (rows, progress(0, now_ms + 600, self._last)):
            assert self.merge.offer(0, self.merge.next_offsets[0], record, 10) is None
        assert list(self.learner.advance(self.merge))


def shown(metrics: Metrics, name: str) -> dict[str, float]:
    return {task.name: metrics.value(name, task=task.name) for task in TASKS}


def test_clipped_rewards_are_a_metric_of_their_task() -> None:
    namespace, made = Namespace(), metrics.make()
    namespace.learn(3, ONE, flags=FLAG_CLIPPED)
    namespace.learn(4, TWO)
    TaskGauges(made, KNOWN.get).show(namespace.learner)
    assert shown(made, "headrace_learner_rewards_clipped") == {"one": 3, "two": 0}


def test_solves_that_fail_move_their_metric_and_are_told_once_per_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    namespace, made = Namespace(), metrics.make()
    gauges = TaskGauges(made, KNOWN.get)
    namespace.learn(300, ONE)
    gauges.show(namespace.learner)
    assert shown(made, "headrace_learner_solves_failed") == {"one": 0, "two": 0}
    assert caplog.records == []

    monkeypatch.setattr(second_order, "LADDER", ())
    counts = []
    for _ in range(3):
        namespace.learn(300, ONE)
        gauges.show(namespace.learner)
        counts.append(shown(made, "headrace_learner_solves_failed")["one"])

    assert 0 < counts[0] < counts[1] < counts[2]
    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    assert told.getMessage().startswith(f"task one ({ONE.hex()}): no ridge makes its sums solvable")

    namespace.learn(300, TWO)
    gauges.show(namespace.learner)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["one", "two"]
    assert shown(made, "headrace_learner_rows_learnt") == {"one": 1_200, "two": 300}
