"""Update: one task's learner. Rows in, named arrays out, the same whatever the split of the rows.

Everything moves in steps of 256 accepted rows (learning.md rule 8): when one is complete, all experts first predict it
with the state they had before any of its rows (rule 9), then stack and drift test learn from those predictions, then
the experts learn the rows. Between steps only the token tables move, row by row. `weights` adds the rows of the
unfinished step to the wide head's sums for the snapshot alone, so the moments at which snapshots are taken change
nothing of what is learnt.

Knows nothing of Kafka, files or time. Deterministic for one environment (`learner.environment`).

Shape legend: N rows, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.chosen import Chosen, chosen_of
from learner.cross import Cross
from learner.deep import Deep
from learner.drift import NUM_ROWS_MIN, DriftTest
from learner.experts import chosen_cross, deep_rows, stack_prior
from learner.stack import Stack
from learner.wide import WideHeads
from schemas.arrays import F64
from schemas.blocks import TransitionBlock
from schemas.task import Task

STEP_ROWS = 256
VAR_FLOOR = 1e-6
"""Every variance floor, times (max - min)² (rule 6)."""

Arrays = dict[str, npt.NDArray[Any]]


class TaskLearner:
    """The heads of one task fingerprint."""

    def __init__(self, task: Task, device: str = "cpu") -> None:
        """`device`: "cpu" or "cuda"; Gram products and the deep expert run there, everything else on the CPU."""
        self._task = task
        self._floor = max(VAR_FLOOR * (task.reward.max - task.reward.min) ** 2, 1e-300)
        options = task.learner
        crossed = task.action.has_tokens or (task.context.has_tokens and bool(task.actions))
        self._wide = WideHeads(task, device, self._floor)
        self._cross = (
            Cross(options.cross_bits, task.reward.binary, task.context.has_text or task.action.has_text)
            if options.cross and crossed
            else None
        )
        self._deep = Deep(task, device) if options.deep else None
        self._stack = Stack(stack_prior(task, self._deep is not None, self._cross.num_links if self._cross else 0))
        self._drift = DriftTest()
        self._pending: list[Chosen] = []
        self._num_pending = 0
        self._sums = np.zeros(3)
        """n, Σr and Σr² of complete steps."""
        self._action_rows = np.zeros(len(task.actions), np.int64)
        self.num_resets = 0
        """Times that drift replaced the wide head by its twin."""

    @property
    def num_rows(self) -> int:
        """Rows learnt, those of the unfinished step too."""
        return int(self._sums[0]) + self._num_pending

    @property
    def num_failed_solves(self) -> int:
        """Solves for which no rung of the ladder was finite; the weights before were kept (rule 3). An alarm.

        Those of steps since the heads were new, those made for a snapshot alone since this object was made.
        """
        return self._wide.num_failed + self._wide.num_failed_for_snapshots

    def learn(self, rows: TransitionBlock) -> None:
        """Learn joined and defaulted rows, in accepted order. Rows in which nothing was chosen are passed over.

        Raises ValueError when the columns do not have the task's widths; then nothing was learnt.
        """
        chosen = chosen_of(rows, self._task)
        start = 0
        while start < len(chosen):
            stop = min(len(chosen), start + STEP_ROWS - self._num_pending)
            part = chosen.rows(start, stop)
            if self._cross is not None:
                self._cross.learn(part, self._task.reward.default)
            self._pending.append(part)
            self._num_pending += stop - start
            start = stop
            if self._num_pending == STEP_ROWS:
                step = Chosen.concat(self._pending)
                self._pending, self._num_pending = [], 0
                self._complete(step)

    def _complete(self, step: Chosen) -> None:
        """Predict, judge, learn: one step of 256 rows."""
        by_expert = [self._wide.predict(step)]
        deep_inputs = None
        cross_arrays = self._cross.progressive(self._task.reward.default) if self._cross is not None else {}
        if self._deep is not None:
            deep_inputs = deep_rows(step, cross_arrays.get("cross_idf"), self._task)
            by_expert.append(self._deep.predict(deep_inputs, *self._wide.scalings))
        if self._cross is not None:
            by_expert += chosen_cross(step, cross_arrays)
        predictions = np.stack(by_expert, 1)
        stacked = self._stack.combined(predictions)
        self._drift.learn(step.y, predictions[:, 0], self._wide.predict_twin(step), stacked)
        self._stack.learn(predictions, step.y)
        self._sums += (len(step), step.y.sum(), (step.y * step.y).sum())
        if len(self._action_rows):
            self._action_rows += np.bincount(step.ids, minlength=len(self._action_rows))
        self._wide.learn(step)
        if self._drift.fires and self._sums[0] > NUM_ROWS_MIN:
            self._reset()
        self._wide.solve_if_due()
        if self._deep is not None and deep_inputs is not None:
            self._deep.learn(deep_inputs, *self._wide.scalings, self._floor)
        if self._cross is not None:
            self._cross.freeze(step)

    def _reset(self) -> None:
        """Drift: the wide head becomes its twin, the others believe their past less (rule 11)."""
        self.num_resets += 1
        rows_kept = self._wide.reset_to_twin()
        self._drift.reset()
        if self._deep is not None:
            self._deep.ring.keep_last(rows_kept)
        if self._cross is not None:
            self._cross.forget()

    def weights(self) -> Arrays:
        """Arrays of the policy as of all rows learnt, as `learner.policy.network` names them. Changes nothing."""
        pending = Chosen.concat(self._pending) if self._pending else Chosen.none(self._task)
        out: Arrays = self._wide.weights(pending)
        base = np.array(self._task.reward.default)
        if self._deep is not None:
            out |= self._deep.weights()
        if self._cross is not None:
            out |= self._cross.weights(self._task.reward.default)
            base = out.pop("base")
        num, mean, variance = self._reward_moments(pending.y)
        rows = self._action_rows
        if len(rows):
            rows = rows + np.bincount(pending.ids, minlength=len(rows))
        return out | {
            "stats": np.array([num, mean, variance, self._floor, self._stack.centre, float(base)]),
            "stack": self._stack.weights.copy(),
            "action_rows": rows.astype(np.int64),
        }

    def _reward_moments(self, pending_y: F64) -> tuple[float, float, float]:
        """Rows, mean and variance of the reward, the unfinished step included."""
        pending = (len(pending_y), float(pending_y.sum()), float((pending_y * pending_y).sum()))
        num, total, squares = self._sums + pending
        if not num:
            return 0.0, self._task.reward.default, 0.0
        mean = total / num
        return float(num), float(mean), float(max(squares / num - mean * mean, 0.0))

    def state(self) -> Arrays:
        """Everything that decides the future, copies."""
        parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {
            "wide": self._wide.state(),
            "stack": self._stack.state(),
            "drift": {"sums": self._drift.state()},
            "task": {
                "sums": self._sums.copy(),
                "action_rows": self._action_rows.copy(),
                "resets": np.array([self.num_resets], np.int64),
            },
        }
        if self._deep is not None:
            parts["deep"] = self._deep.state()
        if self._cross is not None:
            parts["cross"] = self._cross.state()
        out = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        pending = Chosen.concat(self._pending) if self._pending else Chosen.none(self._task)
        return out | pending.arrays("pending.")

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task, bit for bit. Raises KeyError for a state of another shape."""
        parts: dict[str, Arrays] = {}
        for name, array in state.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = array
        self._wide.load_state(parts["wide"])
        self._stack.load_state(parts["stack"])
        self._drift.load_state(parts["drift"]["sums"])
        if self._deep is not None:
            self._deep.load_state(parts["deep"])
        if self._cross is not None:
            self._cross.load_state(parts["cross"])
        self._sums = np.array(parts["task"]["sums"])
        self._action_rows = np.array(parts["task"]["action_rows"])
        self.num_resets = int(parts["task"]["resets"][0])
        pending = Chosen.of_arrays(parts["pending"], "")
        self._pending, self._num_pending = ([pending] if len(pending) else []), len(pending)
