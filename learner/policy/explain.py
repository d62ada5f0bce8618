"""Explain: why a candidate got its score, in units of the reward.

Owns the split of one decision's scores into experts, and of the wide and cross experts into features and tokens. Pure;
reads the same arrays as `learner.policy.network`. The deep expert is not split: its inputs act only together.

Recomputed scores agree with those at decision time within the tolerance of learning.md rule 20, not to the bit.

Shape legend: K candidates of the decision, E experts, Dx dense context features, T context tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learner.policy import network, token_crosses
from schemas.arrays import F64, I32
from schemas.decision_columns import FeatureColumns
from schemas.task import Task

EXPERTS = ("wide", "deep", "cross linear", "cross logistic")


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision's scores, taken apart."""

    centre: float
    """Reward level that differences are counted from."""
    experts: tuple[str, ...]
    """Names of the E experts in use."""
    by_expert: F64
    """(K, E) what each expert adds to the centre; the row sums plus the centre are the scores."""
    scores: F64
    """(K,)"""


@dataclass(frozen=True, slots=True)
class CandidateTerms:
    """What features and tokens of the context do for one candidate, relative to their average."""

    wide: dict[str, float]
    """Dense context feature → what the wide expert adds for it, stacked; empty when the side was projected."""
    tokens: I32
    """(T,) context tokens as logged; without a catalogue the constant follows, which stands for the action alone."""
    linear: F64
    """(T,) what each token adds through the linear cross expert, stacked; zeros without that expert."""
    logistic: F64
    """(T,) what each adds to the logit of the logistic cross expert, unstacked."""


def explain(weights: network.TaskWeights, task: Task, features: FeatureColumns) -> Explanation:
    """Take the scores of one decision apart. `features`: exactly one row. Raises ValueError for another number."""
    if len(features) != 1:
        raise ValueError(f"expected one decision, got {len(features)}: slice with features.rows(i, i + 1)")
    ready = network.prepare(weights, task)
    by_expert = network.expert_scores(ready, features)
    centre = float(ready["stats"][network.CENTRE])
    parts = (by_expert - centre) * ready["stack"]
    return Explanation(centre, _experts(weights), parts, centre + parts.sum(1))


def _experts(weights: network.TaskWeights) -> tuple[str, ...]:
    num_links = weights["cross"].shape[1] if "cross" in weights else 0
    return tuple(
        name
        for name, used in zip(EXPERTS, (True, "deep_w2" in weights, num_links > 0, num_links > 1), strict=True)
        if used
    )


def candidate_terms(
    weights: network.TaskWeights, task: Task, features: FeatureColumns, candidate: int
) -> CandidateTerms:
    """What the context does for one candidate (its index) of one decision. Raises ValueError as `explain`."""
    explained = explain(weights, task, features)
    if not 0 <= candidate < len(explained.scores):
        raise ValueError(f"expected a candidate below {len(explained.scores)}, got {candidate}")
    ready = network.prepare(weights, task)
    stack = dict(zip(explained.experts, np.asarray(ready["stack"]), strict=True))
    zx = network.standardised(ready, "x", features.context)[0]
    effects = _context_effects(ready, features, candidate)
    wide: dict[str, float] = {}
    if "x_projection" not in ready:
        names = task.context.columns()
        wide = {name: float(stack["wide"] * e * z) for name, e, z in zip(names, effects, zx, strict=True)}
    linear, logistic = _token_terms(ready, features, candidate)
    joins = token_crosses.constants(1, ready.z_actions is not None)
    tokens = np.concatenate([features.context_tokens, joins]).astype(np.int32)
    return CandidateTerms(wide, tokens, linear * stack.get("cross linear", 0.0), logistic)


def _context_effects(ready: network.Prepared, features: FeatureColumns, candidate: int) -> F64:
    """(Px,) derivative of the wide head's score of a candidate by each z of the context."""
    table: F64 = np.asarray(ready["wide"])
    if ready.z_actions is not None:
        return table[1:, candidate]
    za = network.standardised(ready, "a", features.actions[candidate : candidate + 1])
    if "a_projection" in ready:
        za = za @ ready["a_projection"]
    out: F64 = table[1:, 0] + table[1:, 1:] @ za[0]
    return out


def _token_terms(ready: network.Prepared, features: FeatureColumns, candidate: int) -> tuple[F64, F64]:
    """(T,) each, of the linear and of the logistic link, for the context's tokens and one candidate."""
    shared = ready.z_actions is not None
    x_tokens = network.context_tokens(features, ready.idf, shared)
    none = np.zeros(int(x_tokens[0][-1]))
    if "cross" not in ready or not len(none):
        return none, none
    a_tokens = ready.a_tokens
    if a_tokens is None:
        a_tokens = network.action_tokens(features, ready.idf, np.zeros(0, np.int64))
    table = np.asarray(ready["cross"])
    bits = int(table.shape[0]).bit_length() - 1
    owners, slots, values = token_crosses.places(bits, features.num_candidates, shared, *x_tokens, *a_tokens)
    mine = owners == candidate
    terms = (table[slots[mine]] * values[mine, None]).reshape(-1, len(none), table.shape[1]).sum(0)
    return terms[:, 0], terms[:, 1] if table.shape[1] > 1 else none
