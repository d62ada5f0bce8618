"""Verification of a snapshot, without a broker: the order of the checks, and what each refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner.policy import shapes
from schemas import weights as tensors
from schemas.records import DecisionRequest, SnapshotManifest
from schemas.task import Task, TaskTable, parse
from streams.examples import example_of
from streams.policy import CHUNK_BYTES_MAX, REFUSALS, Refused, check_manifest, verify_and_load

KEY = Ed25519PrivateKey.generate()
PROJECT = parse("""
[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
[tasks.context]
text = { kind = "text" }
age = { kind = "number" }
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
""")
TASK = PROJECT.task("route")


def _weights(task: Task = TASK, **changes: Any) -> dict[str, Any]:
    arrays = {
        "stats": np.array([1000.0, 0.5, 0.25, 1e-6, 0.0, 0.0]),
        "stack": np.ones(1),
        "action_rows": np.full(3, 100, np.int64),
        "x_mean": np.zeros(1),
        "x_scale": np.ones(1),
        "a_mean": np.zeros(0),
        "a_scale": np.zeros(0),
        "wide": np.arange(6.0).reshape(2, 3),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def _snapshot(weights: dict[str, Any], **changes: Any) -> tuple[SnapshotManifest, list[bytes]]:
    payload = tensors.pack({f"{TASK.fingerprint.hex()}/{name}": array for name, array in weights.items()}, {})
    manifest = SnapshotManifest(
        version=5,
        parent_sha256=b"",
        sha256=tensors.sha256(payload),
        size_bytes=len(payload),
        chunk_offsets=tuple(range(-(-len(payload) // CHUNK_BYTES_MAX))),
        cut_ms=1,
        trained=(),
        chain_hash=b"",
        cut_number=1,
        tasks=(TASK.fingerprint,),
        environment={},
        rows_learnt={},
        probes=b"",
        channel="main",
    )
    return tensors.sign(replace(manifest, **changes), KEY), [payload]


def _verify(manifest: SnapshotManifest) -> bool:
    return tensors.verify(manifest, KEY.public_key())


def _load(manifest: SnapshotManifest, chunks: list[bytes], trusted: tuple[int, bytes] = (0, b"")) -> Any:
    return verify_and_load(manifest, chunks, _verify, trusted, TaskTable(PROJECT.tasks))


def test_a_sound_snapshot_loads_and_serves_its_task() -> None:
    policy = _load(*_snapshot(_weights()))
    assert policy.version == 5
    assert policy.serves(TASK)
    assert not policy.serves(replace(TASK, fingerprint=b"x" * 16))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wide": None}, "wide is missing"),
        ({"stats": np.zeros(5)}, "stats has shape"),
        ({"stack": np.ones(2)}, "stack has shape"),
        ({"wide": np.zeros((2, 3), np.float32)}, "wide is float32"),
        ({"action_rows": np.zeros(3)}, "action_rows is float64"),
        ({"surprise": np.zeros(1)}, "surprise is none that this version knows"),
        ({"cross_idf": np.zeros(7, np.float32)}, "cross_idf has shape"),
        ({"cross": np.zeros((8, 1), np.float32), "stack": np.ones(2)}, "cross has shape"),
        ({"deep_w2": np.zeros((4, 4), np.float32)}, "deep_x is missing"),
    ],
)
def test_an_array_that_is_not_as_documented_is_refused_before_it_is_read(changes: dict[str, Any], said: str) -> None:
    fault = shapes.fault_of(_weights(**changes), TASK)
    assert fault is not None
    assert said in fault
    with pytest.raises(Refused, match="bad-weights"):
        _load(*_snapshot(_weights(**changes)))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_score_infinity_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        _load(*_snapshot(_weights(wide=np.full((2, 3), 1e308), stack=np.full(1, 1e9))))
    assert refused.value.reason == "bad-weights"


def test_the_signature_is_checked_before_the_version_and_both_before_any_chunk() -> None:
    manifest, _ = _snapshot(_weights())
    forged = replace(manifest, version=1, signature=b"\0" * 64)
    with pytest.raises(Refused) as refused:
        check_manifest(forged, _verify, (9, b""))
    assert refused.value.reason == "bad-signature"
    with pytest.raises(Refused) as refused:
        check_manifest(manifest, _verify, (9, b""))
    assert refused.value.reason == "old-version"


def test_the_trusted_version_loads_again_only_with_the_same_content() -> None:
    manifest, chunks = _snapshot(_weights())
    assert _load(manifest, chunks, (5, manifest.sha256)).version == 5
    with pytest.raises(Refused) as refused:
        _load(manifest, chunks, (5, b"other"))
    assert refused.value.reason == "old-version"


def test_every_reason_is_in_the_catalogue() -> None:
    source = Path(__file__).parents[2] / "streams"
    text = "".join((source / f"{name}.py").read_text() for name in ("policy", "snapshots", "snapshot_log"))
    for reason in REFUSALS:
        assert text.count(f'"{reason}"') >= 2, f"{reason} is never given"


def test_the_example_of_a_task_has_every_feature() -> None:
    request = example_of(TASK)
    assert isinstance(request, DecisionRequest)
    assert set(request.context) == {"text", "age"}
