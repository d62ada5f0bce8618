"""Network: one forward pass over named arrays. The worker decides with it, the learner makes its probes with it.

Owns the names and meanings of a task's arrays in a snapshot, and ``scores``: expected reward per candidate. Valid for
numpy arrays and for torch tensors (CPU); it never imports torch. Knows nothing of learning, exploration or Kafka.

Shape legend
    N rows, M candidates of all rows, K actions of a declared catalogue, E experts, L links of the cross expert
    Dx, Da dense features of context and action; Px, Pa their width inside the product (see learner.design)
    H hidden units, J dimensions of a token embedding

Arrays of one task, float64 unless said otherwise
    stats           (6,)  rows learnt, reward mean, reward variance, variance floor, centre of the stack, cross base
    stack           (E,)  weight of each expert, in the order wide, deep, cross linear, cross logistic
    action_rows     (K,)  int64: rows learnt per action of the catalogue; (0,) without one
    x_mean, x_scale (Dx,) z = clip((x - mean) · scale, ±10); scale 0 while a feature has never varied
    a_mean, a_scale (Da,)
    wide            (1+Px, K) with a catalogue: score of action k is (1, z) @ wide[:, k]
                    (1+Px, 1+Pa) without: (1, z_x) @ wide @ (1, z_a)
    wide_x, wide_a  (Dx,), (Da,) main effects beside the product, only for a side that was projected
    x_projection, a_projection  (Dx, Px), (Da, Pa), only for a side that was projected
    deep_x, deep_a, deep_id     float32 (Dx, H), (Da, H), (K, H): first layer, split by input
    deep_tx, deep_ta            float32 (J, H): first layer, token embeddings of either side
    deep_embedding  float32 (2**13, J), only with tokens
    deep_b1, deep_w2, deep_b2, deep_w3  float32 (H,), (H, H), (H,), (H,)
    deep_norm       (3,) reward mean and sd that the net's output is in units of, and its last bias
    cross           float32 (2**cross_bits, L): the token × token table, linear column first, then the logistic one
    cross_idf       float32 (2**16,), only with text
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.policy import token_crosses
from schemas.arrays import I64
from schemas.decision_columns import FeatureColumns
from schemas.task import Task

TaskWeights = Mapping[str, Any]

CLIP = 10.0
"""Standardised features end here (learning.md rule 2): one x = 1e4 among 10k rows spoilt a model for good."""
EMBEDDING_BITS = 13
EMBEDDED_TOKENS = 64
"""Tokens per side that the deep expert looks at; the cross expert sees all of them."""
NUM_ROWS, REWARD_MEAN, REWARD_VAR, VAR_FLOOR, CENTRE, CROSS_BASE = range(6)

_NO_IDF = np.zeros(0, np.float32)
_NO_IDS = np.zeros(0, np.int64)
_NOTHING: token_crosses.Tokens = (np.zeros(1, np.int64), np.zeros(0, np.uint64), np.zeros(0))
NO_TOKENS = _NOTHING, _NOTHING
"""Of both sides, when no expert looks at tokens."""


@dataclass(frozen=True, slots=True)
class Prepared(Mapping[str, Any]):
    """A task's arrays with everything worked out that no request changes. Use it wherever `TaskWeights` are taken."""

    weights: Mapping[str, Any]
    z_actions: Any
    """(K, Da) standardised features of the catalogue, None without one."""
    a_tokens: token_crosses.Tokens | None
    """Weighed tokens of the catalogue, ids included; None without one."""
    a_hidden: Any
    """(K, H) the catalogue's part of the deep expert's first layer; None without."""
    idf: Any

    def __getitem__(self, name: str) -> Any:
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        """As a mapping's own, which would raise and catch an error for every name that is not there."""
        return name in self.weights


def prepare(weights: TaskWeights, task: Task) -> Prepared:
    """Work out once per snapshot what `scores` would otherwise work out per call. Keeps references, not copies."""
    if isinstance(weights, Prepared):
        return weights
    idf = np.asarray(weights["cross_idf"]) if "cross_idf" in weights else _NO_IDF
    z_actions = a_tokens = a_hidden = None
    if task.catalogue_features is not None:
        columns = task.catalogue_features
        z_actions = standardised(weights, "a", columns.actions)
        a_tokens = action_tokens(columns, idf, token_crosses.id_tokens(columns.action_keys))
        if "deep_w2" in weights:
            a_hidden = deep_action_side(weights, z_actions, a_tokens)
            if "deep_id" in weights:
                a_hidden = a_hidden + weights["deep_id"]
    return Prepared(weights, z_actions, a_tokens, a_hidden, idf)


def scores(weights: TaskWeights, task: Task, features: FeatureColumns) -> Any:
    """Expected reward (M,) float64 of every candidate, in units of the reward. `weights` prepared or as published.

    Returns what the weights are made of: a numpy array, or a torch tensor for tensors.
    """
    ready = prepare(weights, task)
    by_expert = expert_scores(ready, features)
    centre = ready["stats"][CENTRE]
    return centre + (by_expert - centre) @ ready["stack"]


def expert_scores(ready: Prepared, features: FeatureColumns) -> Any:
    """Each expert's own prediction of the reward, (M, E) float64, in the order of ``stack``."""
    xp = namespace_of(ready["stack"])
    rows = np.repeat(np.arange(len(features)), features.num_candidates)
    zx = standardised(ready, "x", features.context)
    catalogue = ready.z_actions is not None
    za = ready.z_actions if catalogue else standardised(ready, "a", features.actions)
    columns = [wide_scores(ready, zx, za, rows, catalogue)]
    x_tokens, a_tokens = tokens_of(ready, features)
    if "deep_w2" in ready:
        left = deep_context_side(ready, zx, x_tokens)
        if ready.a_hidden is not None:
            first = (left[:, None, :] + ready.a_hidden[None]).reshape(len(rows), left.shape[1])
        else:
            first = left[rows] + deep_action_side(ready, za, a_tokens)
        columns.append(deep_output(ready, first))
    if "cross" in ready:
        columns += cross_scores(ready, features.num_candidates, catalogue, x_tokens, a_tokens)
    if xp is not np:
        return xp.stack(columns, 1)
    out = np.empty((len(rows), len(columns)))  # np.stack takes five times as long for one decision
    for place, column in enumerate(columns):
        out[:, place] = column
    return out


def tokens_of(ready: Prepared, features: FeatureColumns) -> tuple[token_crosses.Tokens, token_crosses.Tokens]:
    """Weighed tokens of contexts and candidates; nothing when no expert looks at tokens."""
    if "cross" not in ready and "deep_embedding" not in ready:
        return NO_TOKENS
    x_tokens = context_tokens(features, ready.idf, ready.a_tokens is not None)
    if ready.a_tokens is not None:
        return x_tokens, ready.a_tokens
    return x_tokens, action_tokens(features, ready.idf, _NO_IDS)


def reward_stats(weights: TaskWeights) -> tuple[float, float]:
    """Rows learnt, and the reward's standard deviation with its floor: √max(var, floor) (learning.md rule 16)."""
    stats = weights["stats"]
    return float(stats[NUM_ROWS]), float(max(stats[REWARD_VAR], stats[VAR_FLOOR])) ** 0.5


def action_rows(weights: TaskWeights) -> I64:
    """Rows learnt (K,) per action of the declared catalogue; (0,) without one."""
    return np.asarray(weights["action_rows"])


def namespace_of(array: Any) -> Any:
    """The module that made `array`, numpy or torch, without importing either."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def standardised(weights: TaskWeights, side: str, dense: Any) -> Any:
    """z (n, D) float64 of dense features (n, D) float32 of the side "x" or "a" (learning.md rule 2)."""
    mean = weights[side + "_mean"]
    xp = namespace_of(mean)
    z = (xp.asarray(dense, dtype=xp.float64) - mean) * weights[side + "_scale"]
    return z.clip(-CLIP, CLIP)


def _product_side(weights: TaskWeights, side: str, z: Any) -> Any:
    name = side + "_projection"
    return z @ weights[name] if name in weights else z


def wide_scores(weights: TaskWeights, zx: Any, za: Any, rows: I64, catalogue: bool) -> Any:
    """Prediction (M,) of the wide head. `rows` (M,) names the row of each candidate."""
    w = weights["wide"]
    left = w[0] + _product_side(weights, "x", zx) @ w[1:]
    if "wide_x" in weights:
        left = left + (zx @ weights["wide_x"])[:, None] * _ones_where_constant(w, catalogue)
    if catalogue:
        return left.reshape(-1)
    of_candidate = left[rows]
    out = of_candidate[:, 0] + (of_candidate[:, 1:] * _product_side(weights, "a", za)).sum(1)
    return out + za @ weights["wide_a"] if "wide_a" in weights else out


def _ones_where_constant(wide: Any, catalogue: bool) -> Any:
    """(columns,) 1 where a context's main effect enters: every action of a catalogue, else the action's constant."""
    xp = namespace_of(wide)
    ones = xp.ones(wide.shape[1], dtype=xp.float64)
    if not catalogue:
        ones[1:] = 0.0
    return ones


def context_tokens(features: FeatureColumns, idf: Any, catalogue: bool) -> token_crosses.Tokens:
    """Weighed tokens of the contexts; without a catalogue a constant joins them."""
    counts = features.context_token_counts
    bounds = token_crosses.bounds_of(counts if len(counts) else np.zeros(len(features), np.int32))
    tokens, values = features.context_tokens, features.context_token_values
    joins = token_crosses.constants(len(features), catalogue)
    return token_crosses.weigh_side(bounds, tokens, values, idf, joins, False)


def action_tokens(features: FeatureColumns, idf: Any, ids: I64) -> token_crosses.Tokens:
    """Weighed tokens of the candidates; `ids` (M,) tokens of declared actions, or (0,)."""
    counts = features.action_token_counts
    num_candidates = int(features.num_candidates.sum())
    bounds = token_crosses.bounds_of(counts if len(counts) else np.zeros(num_candidates, np.int32))
    return token_crosses.weigh_side(bounds, features.action_tokens, features.action_token_values, idf, ids, True)


def cross_scores(
    weights: TaskWeights,
    num_candidates: Any,
    shared: bool,
    x_tokens: token_crosses.Tokens,
    a_tokens: token_crosses.Tokens,
) -> list[Any]:
    """Predictions [(M,), …] of the cross expert, one per link: base + Σ, and σ(Σ) (learning.md rule 5)."""
    table = weights["cross"]
    xp = namespace_of(table)
    if isinstance(table, np.ndarray):
        total = token_crosses.sums(table, num_candidates, shared, *x_tokens, *a_tokens)
    else:
        bits = int(table.shape[0]).bit_length() - 1
        owners, slots, values = token_crosses.places(bits, num_candidates, shared, *x_tokens, *a_tokens)
        total = xp.zeros((int(num_candidates.sum()), table.shape[1]), dtype=xp.float64)
        total.index_add_(0, xp.asarray(owners), table[slots] * xp.asarray(values)[:, None])
    out = [weights["stats"][CROSS_BASE] + total[:, 0]]
    if table.shape[1] > 1:
        out.append(0.5 * (1.0 + xp.tanh(0.5 * total[:, 1])))
    return out


def pooled_embedding(weights: TaskWeights, tokens: token_crosses.Tokens) -> Any:
    """Σ weight · embedding of each owner's first `EMBEDDED_TOKENS` tokens, (n, J) float32."""
    bounds, hashes, token_weights = tokens
    width = min(EMBEDDED_TOKENS, int(np.diff(bounds).max(initial=0)))
    slots, values = token_crosses.padded(bounds, hashes, token_weights, width, EMBEDDING_BITS)
    table = weights["deep_embedding"]
    xp = namespace_of(table)
    return (table[slots.astype(np.int64)] * xp.asarray(values)[:, :, None]).sum(1)


def _f32(z: Any) -> Any:
    xp = namespace_of(z)
    return xp.asarray(z, dtype=xp.float32)


def deep_context_side(weights: TaskWeights, zx: Any, tokens: token_crosses.Tokens) -> Any:
    """The context's part of the first layer, (N, H), bias included."""
    left = _f32(zx) @ weights["deep_x"] + weights["deep_b1"]
    if "deep_tx" in weights:
        left = left + pooled_embedding(weights, tokens) @ weights["deep_tx"]
    return left


def deep_action_side(weights: TaskWeights, za: Any, tokens: token_crosses.Tokens) -> Any:
    """The action's part of the first layer, (M, H); the declared id's row is added by the caller."""
    right = _f32(za) @ weights["deep_a"]
    if "deep_ta" in weights:
        right = right + pooled_embedding(weights, tokens) @ weights["deep_ta"]
    return right


def deep_output(weights: TaskWeights, first: Any) -> Any:
    """Prediction (M,) float64 of the deep expert from its first layer's pre-activations (M, H)."""
    xp = namespace_of(first)
    hidden = silu(silu(first) @ weights["deep_w2"] + weights["deep_b2"])
    mean, sd, bias = weights["deep_norm"]
    return mean + sd * (bias + xp.asarray(hidden @ weights["deep_w3"], dtype=xp.float64))


def silu(x: Any) -> Any:
    """x · σ(x), by tanh: no overflow for any x (Elfwing et al., arXiv 1702.03118)."""
    xp = namespace_of(x)
    return x * (0.5 + 0.5 * xp.tanh(0.5 * x))
