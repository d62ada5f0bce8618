"""Six synthetic worlds with known expected rewards. Each batch is a function of (world, seed, batch number) alone.

    bilinear    ½ + ¼ x'Wa, clipped; W iid normal                     the wide head's own class
    network     random 2 x 32 tanh network of (x, a), spread .2 around ½
    tokens      5 fields of 40 tokens per side: action mains and 5 of the 25 field pairs, half of the variance each
    replaced    bilinear, W replaced half-way
    rare        a network on the log scale around .02: rare rewards
    cosine      Σ of three cos(1.5 (u'x - v'a)): nothing linear in it

Ten candidates are drawn afresh per decision, 32 features per side, Bernoulli rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schemas.arrays import F64, empty
from schemas.decision_columns import FeatureColumns
from schemas.task import Task
from schemas.task_canonical import parse_file

WIDTH, NUM_CANDIDATES, BATCH = 32, 10, 256
FIELDS, VALUES = 5, 40
NAMES = ("bilinear", "network", "tokens", "replaced", "rare", "cosine")


@dataclass(frozen=True, slots=True)
class Batch:
    """Decisions to make, and what each candidate is worth."""

    features: FeatureColumns
    means: F64
    """(n, K) expected reward."""
    luck: F64
    """(n, K) uniform; the reward is 1 where it is below the mean."""


def task_of(name: str, learner: str = "") -> Task:
    """The task a user would declare for a world."""
    if name == "tokens":
        fields = [f'f{i} = {{ kind = "category" }}' for i in range(FIELDS)]
        context, action = "\n".join(fields), "\n".join(fields)
    else:
        context = action = f'v = {{ kind = "vector", size = {WIDTH} }}'
    text = f"""
[namespace]
name = "worlds"
[[tasks]]
name = "{name}"
[tasks.context]
{context}
[tasks.action]
{action}
[tasks.learner]
{learner}
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.good]
aggregate = "max"
binary = true
"""
    return parse_file(text, "worlds").task(name)


class World:
    """One world under one seed."""

    def __init__(self, name: str, seed: int, num_decisions: int) -> None:
        self._name, self._seed, self._half = name, seed, num_decisions // 2
        self._rng_key = NAMES.index(name)
        rng = np.random.default_rng([seed, self._rng_key, 1])
        if name == "tokens":
            self._means = _token_world(rng)
        elif name in ("network", "rare"):
            self._means = _network_world(rng, rare=name == "rare")
        elif name == "cosine":
            u, v = (rng.standard_normal((WIDTH, 3)) / np.sqrt(WIDTH) for _ in range(2))
            phases = np.arange(3.0)
            self._means = lambda x, a: np.clip(
                0.5 + 0.25 * 0.8165 * np.cos(1.5 * ((x @ u)[:, None] - a @ v) + phases).sum(-1), 0, 1
            )
        else:
            self._means, self._later = (_bilinear_world(rng) for _ in range(2))

    def batch(self, start: int, size: int = BATCH) -> Batch:
        """Decisions [start, start + size)."""
        rng = np.random.default_rng([self._seed, self._rng_key, 2, start])
        means = self._later if self._name == "replaced" and start >= self._half else self._means
        luck = rng.random((size, NUM_CANDIDATES))
        if self._name == "tokens":
            x, a = rng.integers(0, VALUES, (size, FIELDS)), rng.integers(0, VALUES, (size, NUM_CANDIDATES, FIELDS))
            return Batch(_token_features(x, a), means(x, a), luck)
        x, a = rng.standard_normal((size, WIDTH)), rng.standard_normal((size, NUM_CANDIDATES, WIDTH))
        return Batch(_dense_features(x, a), means(x, a), luck)


Means = Callable[..., F64]


def _bilinear_world(rng: np.random.Generator) -> Means:
    w = rng.standard_normal((WIDTH, WIDTH)) / WIDTH
    return lambda x, a: np.clip(0.5 + 0.25 * np.einsum("nd,nkd->nk", x @ w, a), 0, 1)


def _network_world(rng: np.random.Generator, rare: bool) -> Means:
    hidden = 32
    w1 = rng.standard_normal((2 * WIDTH, hidden)) * 1.5 / np.sqrt(2 * WIDTH)
    w2 = rng.standard_normal((hidden, hidden)) * 2.0 / np.sqrt(hidden)
    b1, b2, w3 = 0.7 * rng.standard_normal(hidden), 0.7 * rng.standard_normal(hidden), rng.standard_normal(hidden)

    def raw(x: F64, a: F64) -> F64:
        inner = np.tanh((x @ w1[:WIDTH])[:, None] + a @ w1[WIDTH:] + b1)
        out: F64 = np.tanh(inner @ w2 + b2) @ w3
        return out

    z = raw(rng.standard_normal((4096, WIDTH)), rng.standard_normal((4096, NUM_CANDIDATES, WIDTH)))
    mean = z.mean()
    sd = (z - z.mean(1, keepdims=True)).std() * np.sqrt(NUM_CANDIDATES / (NUM_CANDIDATES - 1))

    def means(x: F64, a: F64) -> F64:
        units = (raw(x, a) - mean) / sd
        return np.minimum(0.02 * np.exp(0.8 * units - 0.32), 0.5) if rare else np.clip(0.5 + 0.2 * units, 0, 1)

    return means


def _token_world(rng: np.random.Generator) -> Means:
    of_x, of_a = rng.standard_normal((FIELDS, VALUES)), rng.standard_normal((FIELDS, VALUES))
    pairs = list(zip(rng.permutation(FIELDS), rng.permutation(FIELDS), strict=True))
    tables = rng.standard_normal((FIELDS, VALUES, VALUES))
    fields = np.arange(FIELDS)

    def means(x: F64, a: F64) -> F64:
        z = of_a[fields, a].sum(-1) * np.sqrt(0.5 / FIELDS)
        for table, (i, j) in zip(tables, pairs, strict=True):
            z = z + table[x[:, i][:, None], a[:, :, j]] * np.sqrt(0.5 / FIELDS)
        z = z + 0.3 * of_x[fields, x].sum(-1)[:, None] / np.sqrt(FIELDS)
        return np.clip(0.5 + 0.2 * z, 0, 1)

    return means


def _dense_features(x: F64, a: F64) -> FeatureColumns:
    n, k = a.shape[:2]
    return FeatureColumns(
        context=x.astype(np.float32),
        num_candidates=np.full(n, k, np.int32),
        actions=a.reshape(n * k, -1).astype(np.float32),
        action_keys=np.ones(n * k, np.uint64),
        context_token_counts=empty(np.int32),
        context_tokens=empty(np.int32),
        context_token_values=empty(np.float32),
        action_token_counts=empty(np.int32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
    )


def _token_features(x: F64, a: F64) -> FeatureColumns:
    n, k = a.shape[:2]
    offsets = np.arange(FIELDS) * VALUES
    return FeatureColumns(
        context=np.zeros((n, 0), np.float32),
        num_candidates=np.full(n, k, np.int32),
        actions=np.zeros((n * k, 0), np.float32),
        action_keys=np.ones(n * k, np.uint64),
        context_token_counts=np.full(n, FIELDS, np.int32),
        context_tokens=(x + offsets).reshape(-1).astype(np.int32),
        context_token_values=np.ones(n * FIELDS, np.float32),
        action_token_counts=np.full(n * k, FIELDS, np.int32),
        action_tokens=(a + offsets + 1000).reshape(-1).astype(np.int32),
        action_token_values=np.ones(n * k * FIELDS, np.float32),
    )
