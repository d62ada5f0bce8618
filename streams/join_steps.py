"""Many journal records in one numba call: `fold_steps` over the columns that a group of them shares."""

from __future__ import annotations

from numba import njit

from schemas.arrays import I64
from schemas.compiled import KERNEL
from streams.join_definitions import Rules
from streams.join_folding import Offered, Told, fold_decisions, fold_outcomes
from streams.join_kernels import State, settle_pendings

IS_OUTCOMES, FIRST, LAST, CANDIDATE, SOURCE, TIME, DEDUPE = range(7)
"""Columns of a step: 1 for outcomes, rows [first, last) of what is offered or told, the first row's first candidate,
place of the source's mark, T, how far back a record may be a duplicate."""


@njit(**KERNEL)
def fold_steps(
    state: State,
    rules: Rules,
    offered: Offered,
    told: Told,
    steps: I64,
    marks: I64,
    definition: int,
    limits: tuple[int, int, int],
    counting: bool,
    scratch: I64,
) -> None:
    """Fold the records of many messages in log order, as one call of the functions above for each would.

    steps (K, 7); `marks` the high-water mark of each source partition; `limits`: bwmax, 2 Wmax, pending outcomes.
    """
    backward_ms, reach_ms, num_pending_max = limits
    for step in range(steps.shape[0]):
        time = steps[step, TIME]
        first, last = steps[step, FIRST], steps[step, LAST]
        settle_pendings(state, time - backward_ms, num_pending_max, counting)
        if steps[step, IS_OUTCOMES]:
            mark = steps[step, SOURCE]
            marks[mark] = fold_outcomes(
                state, rules, told, marks[mark], time, steps[step, DEDUPE], reach_ms, counting, (first, last)
            )
            settle_pendings(state, time - backward_ms, num_pending_max, counting)
        else:
            part = (first, last, steps[step, CANDIDATE])
            fold_decisions(state, rules, offered, definition, time, steps[step, DEDUPE], counting, scratch, part)
