"""Wide: the exact second-order expert, its fast-forgetting twin, and the scaling both stand on.

Owns when to solve and what a snapshot of the head is. The twin is used only to detect drift; both share one product
Φ'Φ per step. Until 512 rows are there the scaling is provisional: sums are made anew from all rows at each solve.

Shape legend: N rows, D columns of the design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learner import second_order
from learner.chosen import Chosen
from learner.design import design_of
from learner.drift import TWIN_HALF_LIFE
from learner.policy.network import CLIP
from learner.scaling import NUM_ROWS_FREEZE, Scaling, indicator_columns, scaling_of, widened
from learner.second_order import Moments, Ridges
from schemas.arrays import F32, F64
from schemas.task import Task

FIRST_SOLVE = 256.0
GAP_MAX = 2_048.0
"""Rows between solves at most: at 100,000 rows a growth of 1.15 would leave the twin 13,000 rows behind, more than its
half-life, and drift would be seen that much later."""

STEP = 256


@dataclass(frozen=True, slots=True)
class Head:
    """One regression: sums, ridges, weights."""

    moments: Moments
    ridges: Ridges
    weights: F64
    """(D,) or (K, D), for z."""


class WideHeads:
    """The head that serves and its twin."""

    def __init__(self, task: Task, device: str, var_floor: float) -> None:
        self._task, self._device, self._floor = task, device, var_floor
        self._design = design_of(task)
        groups = self._design.groups
        none = Moments.none(self._design, device)
        self._wide = Head(none, Ridges.start(groups), np.zeros(groups.shape))
        self._twin = self._wide
        self._first = Chosen.none(task)
        """The first 512 rows, until the scaling is frozen; then none."""
        self._indicators = (indicator_columns(task.context), indicator_columns(task.action))
        self._scalings = self._scalings_of(self._first)
        self._seen = 0.0
        self._next_solve = FIRST_SOLVE
        self.num_failed = 0
        """Solves of head and twin for which no rung of the ladder was finite."""
        self.num_failed_for_snapshots = 0
        """The same of those made for a snapshot alone. Not in the state: how many are taken decides nothing."""

    @property
    def scalings(self) -> tuple[Scaling, Scaling]:
        """Of context and action features, as everything downstream must use them."""
        return self._scalings

    def _scalings_of(self, rows: Chosen) -> tuple[Scaling, Scaling]:
        return scaling_of(rows.x, self._indicators[0]), scaling_of(rows.a, self._indicators[1])

    def _moments(self, rows: Chosen, scalings: tuple[Scaling, Scaling]) -> Moments:
        zx, za = standardised(rows.x, scalings[0]), standardised(rows.a, scalings[1])
        return second_order.moments_of(self._design, zx, za, rows.ids, rows.y, self._device)

    def predict(self, rows: Chosen) -> F64:
        """(N,) for the chosen actions, by the weights of the last solve."""
        return self._predict(rows, self._wide.weights)

    def predict_twin(self, rows: Chosen) -> F64:
        """(N,) of the twin."""
        return self._predict(rows, self._twin.weights)

    def _predict(self, rows: Chosen, weights: F64) -> F64:
        zx, za = standardised(rows.x, self._scalings[0]), standardised(rows.a, self._scalings[1])
        if self._design.blocks:
            out: F64 = (self._design.left_rows(zx) * weights[rows.ids]).sum(1)
            return out
        return np.asarray(self._design.rows(zx, za, rows.ids) @ weights)

    def learn(self, step: Chosen) -> None:
        """Add one step of 256 rows to both heads' sums."""
        self._seen += len(step)
        if self._seen <= NUM_ROWS_FREEZE:
            self._first = Chosen.concat([self._first, step])
            self._scalings = self._scalings_of(self._first)
            wide, twin = self._anew(self._first)
            self._wide = Head(wide, self._wide.ridges, self._wide.weights)
            self._twin = Head(twin, self._twin.ridges, self._twin.weights)
            if self._seen == NUM_ROWS_FREEZE:
                self._first = Chosen.none(self._task)
            return
        x, a = self._scalings
        self._scalings = widened(x, step.x), widened(a, step.a)
        added = self._moments(step, self._scalings)
        keep = 0.5 ** (len(step) / TWIN_HALF_LIFE)
        self._wide = Head(self._wide.moments.plus(added), self._wide.ridges, self._wide.weights)
        self._twin = Head(self._twin.moments.plus(added, keep), self._twin.ridges, self._twin.weights)

    def _anew(self, rows: Chosen) -> tuple[Moments, Moments]:
        """Sums of wide head and twin from the first rows, in steps of 256, under the present scaling."""
        wide = twin = Moments.none(self._design, self._device)
        for start in range(0, len(rows), STEP):
            part = rows.rows(start, min(len(rows), start + STEP))
            added = self._moments(part, self._scalings)
            wide, twin = wide.plus(added), twin.plus(added, 0.5 ** (len(part) / TWIN_HALF_LIFE))
        return wide, twin

    def solve_if_due(self) -> None:
        """Solve both heads at 256·1.15^k rows, and never more than `GAP_MAX` rows after the last time."""
        if self._seen < self._next_solve:
            return
        self._wide, self._twin = self._solved(self._wide), self._solved(self._twin)
        while self._next_solve <= self._seen:
            self._next_solve = min(self._next_solve * second_order.GROWTH, self._next_solve + GAP_MAX)

    def _solved(self, head: Head) -> Head:
        solution = second_order.solve(self._design, head.moments, head.ridges, self._seen, self._floor)
        if solution is None:
            self.num_failed += 1
            return head
        return Head(head.moments, solution.ridges, solution.weights)

    def reset_to_twin(self) -> int:
        """Drift: the head that serves becomes the twin. Returns the rows that the twin still weighs."""
        twin = self._twin
        self._wide = Head(twin.moments, Ridges(twin.ridges.by_group, 0.0), twin.weights)
        self._next_solve = self._seen
        return int(twin.moments.n)

    def weights(self, pending: Chosen) -> dict[str, npt.NDArray[Any]]:
        """Arrays as published, with the rows of the unfinished step in. Changes nothing of the state."""
        scalings, moments = self._scalings, self._wide.moments
        weights = self._wide.weights
        if self._seen < NUM_ROWS_FREEZE:
            rows = Chosen.concat([self._first, pending])
            scalings = self._scalings_of(rows)
            moments = self._moments(rows, scalings) if len(rows) else moments
        elif len(pending):
            moments = moments.plus(self._moments(pending, scalings))
        if moments.n > 0.0:
            seen = self._seen + len(pending)
            solution = second_order.solve(self._design, moments, self._wide.ridges, seen, self._floor, evidence=False)
            if solution is not None:
                weights = solution.weights
            else:
                self.num_failed_for_snapshots += 1
                scalings = self._scalings
        return self._published(weights, scalings)

    def _published(self, weights: F64, scalings: tuple[Scaling, Scaling]) -> dict[str, npt.NDArray[Any]]:
        design = self._design
        out: dict[str, npt.NDArray[Any]] = {}
        for side, scaling in zip("xa", scalings, strict=True):
            out[side + "_mean"], out[side + "_scale"] = scaling.mean.copy(), scaling.scale.copy()
        for side, projection in (("x", design.x_projection), ("a", design.a_projection)):
            if projection is not None:
                out[side + "_projection"] = projection.copy()
        if design.blocks:
            return out | {"wide": np.ascontiguousarray(weights.T)}
        product = design.left * design.right
        table = weights[:product].reshape(design.left, design.right)
        if design.num_actions:
            catalogue = self._task.catalogue_features
            assert catalogue is not None, "a task with actions has their features"
            za = standardised(catalogue.actions, scalings[1])
            right = np.concatenate([np.ones((len(za), 1)), za, np.eye(design.num_actions)], 1)
            return out | {"wide": np.ascontiguousarray(table @ right.T)}
        out["wide"] = table.copy()
        if design.extra_x:
            out["wide_x"] = weights[product : product + design.extra_x].copy()
        if design.extra_a:
            out["wide_a"] = weights[product + design.extra_x :].copy()
        return out

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of everything."""
        out: dict[str, npt.NDArray[Any]] = {"counts": np.array([self._seen, self._next_solve, float(self.num_failed)])}
        for name, head in (("wide_", self._wide), ("twin_", self._twin)):
            out |= second_order.arrays_of(name, head.moments, head.ridges) | {name + "weights": head.weights.copy()}
        for side, scaling in zip("xa", self._scalings, strict=True):
            out[side + "_mean"], out[side + "_scale"] = scaling.mean.copy(), scaling.scale.copy()
        return out | self._first.arrays("first_")

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task."""
        self._seen, self._next_solve = (float(value) for value in state["counts"][:2])
        self.num_failed = int(state["counts"][2])
        heads = []
        for name in ("wide_", "twin_"):
            moments, ridges = second_order.of_arrays(name, state, self._device)
            heads.append(Head(moments, ridges, np.array(state[name + "weights"])))
        self._wide, self._twin = heads
        x, a = (Scaling(np.array(state[side + "_mean"]), np.array(state[side + "_scale"])) for side in "xa")
        self._scalings = (x, a)
        self._first = Chosen.of_arrays(state, "first_")


def standardised(dense: F32, scaling: Scaling) -> F64:
    """z (N, D) as `learner.policy.network.standardised` makes it."""
    return np.clip((dense.astype(np.float64) - scaling.mean) * scaling.scale, -CLIP, CLIP)
