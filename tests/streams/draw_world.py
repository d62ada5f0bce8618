"""Decisions by the million: the real decide core from requests to encoded journal blocks, under snapshots that change.

Five tasks (three explorations over catalogues and over candidates that come with the request, one with guardrails, and
one that no snapshot serves), micro-batches of 1 to 64 requests, versions that come and go in mid-run, overload now and
then. Everything is a function of a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from learner.policy import probes
from learner.policy.blank import blank_weights
from schemas import task as tasks
from schemas import weights as tensors
from schemas.codec import encode
from schemas.records import Candidate, DecisionRequest, Features, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.task import Task, TaskTable
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import parts_of
from streams.features import Encoder
from streams.policy import Policy, verify_and_load

REWARD = """
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.good]
aggregate = "max"
binary = true
"""
PROJECT = tasks.parse(f"""
[namespace]
name = "shop"
partitions = 2

[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
[tasks.context]
text = {{ kind = "text" }}
[tasks.learner]
cross_bits = 10
{REWARD}
[[tasks]]
name = "banner"
actions = ["a", "b", "c", "d", "e"]
exploration = {{ kind = "softmax", temperature = 0.5 }}
[tasks.context]
age = {{ kind = "number" }}
{REWARD}
[[tasks]]
name = "offer"
guardrails = [{{ name = "stock", allow_if = "action.stock > 0" }}]
[tasks.context]
age = {{ kind = "number" }}
[tasks.action]
price = {{ kind = "number" }}
stock = {{ kind = "number" }}
{REWARD}
[[tasks]]
name = "mail"
exploration = {{ kind = "epsilon", epsilon = 0.2 }}
[tasks.context]
age = {{ kind = "number" }}
[tasks.action]
kind = {{ kind = "category" }}
[tasks.learner]
cross_bits = 10
{REWARD}
[[tasks]]
name = "unserved"
actions = ["x", "y", "z", "w"]
baseline = "y"
[tasks.context]
age = {{ kind = "number" }}
{REWARD}
""")
TABLE = TaskTable(PROJECT.tasks)
SERVED = [task for task in PROJECT.tasks if task.name != "unserved"]
REGISTRY = FileRegistry()
NOW = 1_700_000_000_000
SITUATIONS = 12
"""Different requests per task: few, so that each is drawn for often."""
VERSIONS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Snapshot:
    """A published version: what a worker loads, and the bytes that anybody may read again."""

    policy: Policy
    payload: bytes


def _weights(task: Task, rng: np.random.Generator) -> dict[str, Any]:
    """Every array that the task's snapshot may hold, filled with noise."""
    weights = {
        name: (rng.standard_normal(array.shape) * 0.4).astype(array.dtype)
        for name, array in blank_weights(task).items()
    }
    weights["stats"] = np.array([4.0 + 40.0 * rng.random(), 0.5, 0.25, 1e-6, 0.4, 0.1])
    weights["action_rows"] = rng.integers(10, 60, len(task.actions)).astype(np.int64)  # some are newcomers
    for name in ("x_scale", "a_scale"):
        weights[name] = np.abs(weights[name]) * 0.1
    return weights


@cache
def snapshot(version: int) -> Snapshot:
    """As a learner publishes it and a worker takes it, probes and all, but for the signature."""
    rng = np.random.default_rng(version)
    weights = {task.fingerprint: _weights(task, rng) for task in SERVED}
    arrays = {f"{key.hex()}/{name}": array for key, each in weights.items() for name, array in each.items()}
    payload = tensors.pack(arrays, {})
    inputs = {}
    for task in SERVED:
        features = Encoder(task).encode([request(task, number, f"p{number}") for number in range(4)]).columns
        inputs[task.fingerprint] = probes.ProbeInputs(features, np.ones(int(features.num_candidates.sum()), np.bool_))
    known = {task.fingerprint: task for task in SERVED}
    manifest = SnapshotManifest(
        version=version,
        parent_sha256=b"",
        sha256=hashlib.sha256(payload).digest(),
        size_bytes=len(payload),
        chunk_offsets=(0,) * -(-len(payload) // (900 * 1024)),
        cut_ms=1000 * version,
        trained=(),
        chain_hash=b"",
        cut_number=version,
        tasks=tuple(known),
        environment={},
        rows_learnt={},
        probes=probes.pack(inputs, known, weights),
        channel="main",
    )
    return Snapshot(verify_and_load(manifest, [payload], None, (0, b""), TABLE), payload)


def request(task: Task, number: int, decision_id: str) -> DecisionRequest:
    """One of the task's `SITUATIONS` requests, with an id of its own."""
    context, candidates = _situation(task.name, number % SITUATIONS)
    baseline = number % 4 if task.name == "unserved" and number % 3 == 0 else None
    return DecisionRequest(decision_id, task.name, f"s{number % 3}", context, candidates, baseline=baseline)


@cache
def _situation(name: str, number: int) -> tuple[Features, list[Candidate] | None]:
    if name == "route":
        text = ["my card is lost", "where is my refund", "a card and a refund", "hello"][number % 4]
        offered = [Candidate("other"), Candidate("card")] if number % 5 == 0 else None  # a part of the catalogue
        return {"text": text}, offered
    context: Features = {"age": float(3 * number)}
    size = 2 + number % 4
    if name == "offer":  # the second of four is out of stock: never chosen
        rows: list[Features] = [
            {"price": float(k * number % 7), "stock": float(k != 1 or size < 4)} for k in range(size)
        ]
        return context, [Candidate(f"o{k}", row) for k, row in enumerate(rows)]
    if name == "mail":
        return context, [Candidate(f"m{k}", {"kind": f"kind-{(k + number) % 6}"}) for k in range(size)]
    return context, None


def batches(num_requests: int, seed: int) -> Iterator[tuple[list[Asked], Situation]]:
    """At least `num_requests` requests in batches of 1 to 64, all sizes alike often, and what the worker knows then."""
    rng = np.random.default_rng(seed)
    number, served = 0, Situation(NOW)
    while number < num_requests:
        for size in rng.permutation(np.arange(1, 65)).tolist():
            if rng.random() < 0.1:  # a swap, or no snapshot (yet), or the newest refused
                version = int(rng.integers(0, len(VERSIONS) + 1))
                policy = snapshot(version).policy if version else None
                served = Situation(NOW, policy, snapshot_refused=version == 0 and size % 2 == 0)
            mixed = rng.random() < 0.1
            first = PROJECT.tasks[int(rng.integers(len(PROJECT.tasks)))]
            asked = []
            for place in range(size):
                task = PROJECT.tasks[(number + place) % len(PROJECT.tasks)] if mixed else first
                made = request(task, (number + place) * 7 % 60, f"{seed}-{number + place}")
                asked.append(Asked(made, 0, number + place, NOW))
            number += size
            yield asked, replace(served, overloaded=rng.random() < 0.01)


def journal(num_requests: int, seed: int) -> Iterator[bytes]:
    """Journal records of the core's decisions, as a worker writes them."""
    decide = Decide(PROJECT.namespace, TABLE, lambda block: len(encode(block, REGISTRY)))
    for batch, situation in batches(num_requests, seed):
        decided = decide.batch(batch, situation)
        assert not decided.unjournaled, decided.unjournaled[0]
        for group in decided.groups:
            for _, part in parts_of(group.task, group.version, group.rows, group.columns, "shop.requests"):
                yield encode(part.block(), REGISTRY)
