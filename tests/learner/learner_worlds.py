"""Small tasks and made-up transitions for the tests of the task learner; every row is a function of a seed."""

from __future__ import annotations

import numpy as np

from learner.policy import explore, network
from learner.update import TaskLearner
from schemas.arrays import empty
from schemas.blocks import TransitionBlock
from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.task import Task
from schemas.task_canonical import parse_file


def task_of(
    context: str, action: str = "", actions: list[str] | None = None, learner: str = "", reward: str = "binary = true"
) -> Task:
    """A task from the bodies of its tables."""
    text = f"""
[namespace]
name = "test"
[[tasks]]
name = "t"
{f"actions = {actions}" if actions else ""}
[tasks.context]
{context}
[tasks.action]
{action}
[tasks.learner]
{learner}
[tasks.reward]
window = "2s"
{"" if reward.startswith("binary") else "min = 0.0" + chr(10) + "max = 1.0"}
[tasks.reward.outcomes.good]
aggregate = "max"
{reward if reward.startswith("binary") else ""}
"""
    return parse_file(text, "test").task("t")


def dense_task(width: int = 6, reward: str = "binary = true", learner: str = "") -> Task:
    """Candidates with vectors of features on both sides."""
    vector = f'kind = "vector", size = {width}'
    return task_of(f"x = {{ {vector} }}", f"a = {{ {vector} }}", learner=learner, reward=reward)


def catalogue_task(width: int = 4, num_actions: int = 5, learner: str = "cross_bits = 12") -> Task:
    """A declared catalogue; a vector and hashed tokens as context."""
    actions = [f"action-{k}" for k in range(num_actions)]
    return task_of(
        f'x = {{ kind = "vector", size = {width} }}\nwords = {{ kind = "text" }}', actions=actions, learner=learner
    )


def columns_of(features: FeatureColumns, chosen: np.ndarray) -> DecisionColumns:
    """Decisions as logged, without propensities: the learner does not use them."""
    n = len(features)
    return DecisionColumns(
        features=features,
        catalogue=b"",
        chosen=chosen.astype(np.int32)[:, None],
        propensities=empty(np.int32),
        reasons=np.zeros(n, np.uint8),
        values=np.zeros((0, 1)),
        bounds=np.zeros((0, 2)),
        terminal=empty(np.uint8),
        steps=empty(np.int32),
        episode_keys=empty(np.uint64),
    )


def block_of(task: Task, features: FeatureColumns, chosen: np.ndarray, rewards: np.ndarray) -> TransitionBlock:
    """Joined rows of one chain."""
    n = len(features)
    return TransitionBlock(
        partition=0,
        task=task.name,
        fingerprint=task.fingerprint,
        kind=0,
        prev=-1,
        positions=np.arange(n, dtype=np.int64),
        closed_at_ms=np.zeros(n, np.int64),
        buckets=np.zeros(n, np.uint8),
        flags=np.zeros(n, np.uint8),
        rewards=rewards.astype(np.float32)[:, None],
        num_outcomes=np.ones(n, np.int32),
        snapshot_versions=np.zeros(n, np.int64),
        decision_keys=np.zeros((n, 2), np.uint64),
        columns=columns_of(features, chosen),
    )


def dense_features(x: np.ndarray, a: np.ndarray) -> FeatureColumns:
    """Contexts (n, Dx) and candidates (n, K, Da)."""
    n, k = a.shape[:2]
    return FeatureColumns(
        context=x.astype(np.float32),
        num_candidates=np.full(n, k, np.int32),
        actions=a.reshape(n * k, -1).astype(np.float32),
        action_keys=np.arange(1, n * k + 1).astype(np.uint64),
        context_token_counts=empty(np.int32),
        context_tokens=empty(np.int32),
        context_token_values=empty(np.float32),
        action_token_counts=empty(np.int32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
    )


def catalogue_features(x: np.ndarray, tokens: np.ndarray, num_actions: int) -> FeatureColumns:
    """Contexts (n, Dx) with tokens (n, T) over a declared catalogue."""
    n, t = tokens.shape
    return FeatureColumns(
        context=x.astype(np.float32),
        num_candidates=np.full(n, num_actions, np.int32),
        actions=np.zeros((0, 0), np.float32),
        action_keys=empty(np.uint64),
        context_token_counts=np.full(n, t, np.int32),
        context_tokens=tokens.reshape(-1).astype(np.int32),
        context_token_values=np.ones(n * t, np.float32),
        action_token_counts=empty(np.int32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
    )


def dense_rows(task: Task, n: int, seed: int, weights_seed: int = 7) -> TransitionBlock:
    """A bilinear world: reward Bernoulli(clip(½ + ¼ x'Wa / √Dx)), candidates and choices at random."""
    rng = np.random.default_rng(seed)
    width = task.context.width
    w = np.random.default_rng(weights_seed).standard_normal((width, width))
    x, a = rng.standard_normal((n, width)), rng.standard_normal((n, 3, width))
    chosen = rng.integers(0, 3, n)
    means = np.clip(0.5 + 0.25 * np.einsum("nd,de,ne->n", x, w, a[np.arange(n), chosen]) / width, 0, 1)
    return block_of(task, dense_features(x, a), chosen, (rng.random(n) < means).astype(float))


def catalogue_rows(task: Task, n: int, seed: int) -> TransitionBlock:
    """Reward 1 mostly when the action is the context's first token modulo K; one noise token beside it."""
    rng = np.random.default_rng(seed)
    k = len(task.actions)
    tokens = rng.integers(0, 40, (n, 3)) + (0, 40, 40) + (1 << 30)
    chosen = rng.integers(0, k, n)
    hit = (tokens[:, 0] - (1 << 30)) % k == chosen
    rewards = (rng.random(n) < np.where(hit, 0.9, 0.1)).astype(float)
    return block_of(task, catalogue_features(rng.standard_normal((n, task.context.width)), tokens, k), chosen, rewards)


def learnt(task: Task, rows: TransitionBlock, bucket: int = 1000) -> TaskLearner:
    """A learner that was given `rows` in buckets."""
    learner = TaskLearner(task)
    for start in range(0, len(rows), bucket):
        learner.learn(rows.rows(start, min(len(rows), start + bucket)))
    return learner


def decide(task: Task, learner: TaskLearner, features: FeatureColumns, rng: np.random.Generator) -> np.ndarray:
    """Choices (n,) as a worker makes them with the learner's present weights."""
    weights = network.prepare(learner.weights(), task)
    scores = network.scores(weights, task, features)
    integers = explore.integers(scores, features.num_candidates, np.ones(len(scores), bool), weights, task)
    return explore.choose(integers, features.num_candidates, rng.integers(0, 1 << 24, len(features)).astype(np.int32))
