"""Made-up rows through everything the learner computes, before it says that it is ready.

numba compiles at the first call: seconds with its cache on disk, a minute without. In mid-stream that would be a minute
without snapshots in which SIGTERM is not heard. Two tiny tasks are learnt, read out, probed and forgotten: one with a
declared catalogue, one whose candidates come with the requests. Nothing of it leaves this module.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from learner.policy import probes
from learner.update import STEP_ROWS, TaskLearner
from schemas.arrays import empty
from schemas.blocks import TransitionBlock
from schemas.codec import decode, encode
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.records import DecisionBucket
from schemas.registry import Registry
from schemas.task import Task, parse

log = logging.getLogger(__name__)

_TASKS = """
[namespace]
name = "warm-up"
[[tasks]]
name = "listed"
actions = ["a", "b", "c"]
[tasks.context]
price = { kind = "number" }
words = { kind = "text" }
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
[[tasks]]
name = "offered"
[tasks.context]
price = { kind = "number" }
words = { kind = "text" }
[tasks.action]
size = { kind = "number" }
words = { kind = "text" }
[tasks.reward]
window = "1s"
min = 0.0
max = 10.0
[tasks.reward.outcomes.order]
aggregate = "sum"
"""
_NUM_ROWS = STEP_ROWS + 8
"""One whole step, and rows of an unfinished one."""
_NUM_CANDIDATES = 3
_NUM_TOKENS = 4


def warm_up(registry: Registry, device: str) -> None:
    """Compile and load everything that the first rows would need."""
    started_s = time.monotonic()
    for task in parse(_TASKS).tasks:
        block = decode(encode(_rows(task), registry), registry, expect=TransitionBlock)
        assert isinstance(block, TransitionBlock)
        learner = TaskLearner(task, device)
        learner.learn(block)
        inputs = probes.newest(block.columns, None)
        probes.pack({task.fingerprint: inputs}, {task.fingerprint: task}, {task.fingerprint: learner.weights()})
        learner.state()
    log.info("warmed up in %.1f s", time.monotonic() - started_s)


def _rows(task: Task) -> TransitionBlock:
    """`_NUM_ROWS` joined rows of a task."""
    num_candidates = np.full(_NUM_ROWS, _NUM_CANDIDATES, np.int32)
    total = 0 if task.actions else _NUM_ROWS * _NUM_CANDIDATES
    has_action_tokens = total > 0 and task.action.has_tokens
    action_tokens = total * _NUM_TOKENS if has_action_tokens else 0
    ramp = np.arange(_NUM_ROWS, dtype=np.float32)
    features = FeatureColumns(
        context=np.tile(ramp[:, None] / _NUM_ROWS, (1, task.context.width)),
        num_candidates=num_candidates,
        actions=np.ones((total, task.action.width), np.float32),
        action_keys=np.tile(np.arange(1, _NUM_CANDIDATES + 1, dtype=np.uint64), total // _NUM_CANDIDATES),
        context_token_counts=np.full(_NUM_ROWS, _NUM_TOKENS, np.int32),
        context_tokens=np.arange(_NUM_ROWS * _NUM_TOKENS, dtype=np.int32) % 64,
        context_token_values=np.ones(_NUM_ROWS * _NUM_TOKENS, np.float32),
        action_token_counts=np.full(total if has_action_tokens else 0, _NUM_TOKENS, np.int32),
        action_tokens=np.arange(action_tokens, dtype=np.int32) % 64,
        action_token_values=np.ones(action_tokens, np.float32),
    )
    share = np.full(_NUM_CANDIDATES, PROPENSITY_ONE // _NUM_CANDIDATES, np.int32)
    share[0] += PROPENSITY_ONE - int(share.sum())
    positions = np.arange(_NUM_ROWS, dtype=np.int64)
    return TransitionBlock(
        partition=0,
        task=task.name,
        fingerprint=task.fingerprint,
        kind=0,
        prev=-1,
        positions=positions,
        closed_at_ms=positions,
        buckets=np.full(_NUM_ROWS, DecisionBucket.JOINED, np.uint8),
        flags=np.zeros(_NUM_ROWS, np.uint8),
        rewards=(positions[:, None] % 2).astype(np.float32),
        num_outcomes=np.ones(_NUM_ROWS, np.int32),
        snapshot_versions=np.zeros(_NUM_ROWS, np.int64),
        decision_keys=np.stack([positions, positions], 1).astype(np.uint64),
        columns=DecisionColumns(
            features=features,
            catalogue=task.catalogue,
            chosen=(positions[:, None] % _NUM_CANDIDATES).astype(np.int32),
            propensities=np.tile(share, _NUM_ROWS),
            reasons=np.zeros(_NUM_ROWS, np.uint8),
            values=empty(np.float64, 0, 1),
            bounds=empty(np.float64, 0, 2),
            terminal=empty(np.uint8),
            steps=empty(np.int32),
            episode_keys=empty(np.uint64),
        ),
    )
