"""Scores of a logged decision once more, and how they fit the integers that were logged.

Pure. Within learning.md rule 20: another machine's last bits differ. No score is logged, so the tolerance is carried
over to the integers (`integer_bounds`).

Shape legend: K candidates of the decision.
"""

from __future__ import annotations

import numpy as np

from deploy.explain_parts import ScoresShown
from deploy.explain_records import Evidence
from learner.policy import explore
from learner.policy.explain import explain as taken_apart
from learner.policy.probes import SCORE_TOLERANCE
from schemas.arrays import F64, I32
from schemas.decision_columns import FeatureColumns
from schemas.records import Reason
from streams.fallback import baseline_of

CANDIDATES_BOUNDED_MAX = 2048
"""Bounds of the integers take 2·K² steps: for more candidates only equality with the recomputed ones is told."""


def scores_of(evidence: Evidence, features: FeatureColumns) -> tuple[F64 | None, list[dict[str, float]], ScoresShown]:
    """(K,) scores by the snapshot that decided, each taken apart, and how they fit the logged integers."""
    logged, task = evidence.logged, evidence.task
    columns = logged.block.columns.rows(logged.row, logged.row + 1)
    integers = columns.propensities[: int(features.num_candidates[0])]
    allowed = integers > 0
    if logged.reason is not Reason.POLICY:
        return None, [], _baseline_told(evidence, features, integers)
    if evidence.weights is None:
        return None, [], ScoresShown("not recomputed", evidence.weights_absent, None, None, None)
    tolerance = SCORE_TOLERANCE * (task.reward.max - task.reward.min)
    apart = taken_apart(evidence.weights, task, features)
    explorer = explore.Explorer.of(evidence.weights, task)
    again = explorer.integers(apart.scores, features.num_candidates, allowed)
    num_equal = int((again == integers).sum())
    by_expert = [dict(zip(apart.experts, row, strict=True)) for row in apart.by_expert.tolist()]
    if num_equal == len(integers) or len(integers) > CANDIDATES_BOUNDED_MAX:
        state = "equal" if num_equal == len(integers) else "not compared"
        detail = "" if state == "equal" else f"more than {CANDIDATES_BOUNDED_MAX} candidates"
        return apart.scores, by_expert, ScoresShown(state, detail, tolerance, num_equal, len(integers))
    low, high = integer_bounds(apart.scores, features.num_candidates, allowed, explorer, tolerance)
    outside = np.flatnonzero((integers < low) | (integers > high))
    state, detail = "within the tolerance", ""
    if len(outside):
        k = int(outside[0])
        state, detail = "outside", f"candidate {k}: {int(integers[k])} logged, {int(low[k])} to {int(high[k])} possible"
    return apart.scores, by_expert, ScoresShown(state, detail, tolerance, num_equal, len(integers))


def integer_bounds(
    scores: F64, num_candidates: I32, allowed: explore.Mask, explorer: explore.Explorer, tolerance: float
) -> tuple[I32, I32]:
    """(K,) smallest and largest integer that scores within `tolerance` of `scores` can give each candidate.

    Every exploration gives a candidate more as its own score rises and less as the others' do, so the extremes are at
    the corners: its own score moved one way, all others the other way.
    """
    low, high = np.zeros(len(scores), np.int32), np.zeros(len(scores), np.int32)
    for k in range(len(scores)):
        moved = scores + tolerance
        moved[k] = scores[k] - tolerance
        low[k] = explorer.integers(moved, num_candidates, allowed)[k]
        moved = scores - tolerance
        moved[k] = scores[k] + tolerance
        high[k] = explorer.integers(moved, num_candidates, allowed)[k]
    return low, high


def _baseline_told(evidence: Evidence, features: FeatureColumns, integers: I32) -> ScoresShown:
    """A decision without a policy has no scores; its integers follow from the baseline, if the request is there."""
    why = f"no policy decided ({evidence.logged.reason.label}): the baseline mixed with a uniform choice"
    if evidence.request is None:
        return ScoresShown("none", why, None, None, None)
    baselines = np.array([baseline_of(evidence.request, evidence.task)], np.int32)
    again = explore.baseline_integers(features.num_candidates, integers > 0, baselines, evidence.task.epsilon)
    num_equal = int((again == integers).sum())
    state = "none" if num_equal == len(integers) else "outside"
    return ScoresShown(state, why, None, num_equal, len(integers))
