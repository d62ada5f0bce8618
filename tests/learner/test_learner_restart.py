"""The whole learner, deep net and token tables included, killed at random moments: bit for bit the same snapshots."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from learner import checkpoint, environment
from learner.cuts import CutRules, CutState
from learner.merge import Merge
from learner.namespace import Definition, NamespaceLearner
from learner.policy import probes
from learner.restore import of_checkpoint, to_checkpoint
from learner.update import TaskLearner
from schemas import weights
from schemas.blocks import TransitionBlock
from schemas.records import Progress, SnapshotManifest
from schemas.registry import FileRegistry
from schemas.task import parse
from tests.learner.transition_rows import block, progress

REGISTRY = FileRegistry()
TASK = parse("""
[namespace]
name = "made-up"
[[tasks]]
name = "one"
[tasks.context]
x = { kind = "vector", size = 3 }
said = { kind = "text" }
[tasks.action]
a = { kind = "vector", size = 2 }
sku = { kind = "category" }
[tasks.learner]
cross_bits = 10
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
""").tasks[0]
FINGERPRINT = TASK.fingerprint
RULES = CutRules(bucket_ms=100, publish_ms=400, publish_bytes_per_s=1 << 30)


def records() -> list[list[TransitionBlock | Progress]]:
    """Two partitions, 1,200 rows over four seconds of log time: several learning steps, a dozen cuts."""
    partitions: list[list[TransitionBlock | Progress]] = []
    for partition in range(2):
        rows: list[TransitionBlock | Progress] = []
        for tick in range(40):
            positions = [tick * 15 + index for index in range(15)]
            prev = positions[0] - 1
            closing = [tick * 100 + 6 * index for index in range(15)]
            rows.append(block(positions, closing, partition, prev, FINGERPRINT))
            rows.append(progress(partition, (tick + 1) * 100, {FINGERPRINT: positions[-1]}))
        partitions.append(rows)
    return partitions


def run(
    partitions: list[list[TransitionBlock | Progress]], random: Random, folder: Path | None
) -> dict[int, SnapshotManifest]:
    """Manifests by version; with a `folder`, killed about every tenth record and restored from there."""
    found: dict[int, SnapshotManifest] = {}

    def begin() -> tuple[Merge, NamespaceLearner]:
        merge = Merge(2, 100)
        start = CutState.start(merge.positions(), 0)
        definitions = {FINGERPRINT: Definition(TASK)}
        learner = NamespaceLearner(TaskLearner, definitions.get, RULES, start, {})
        saved = checkpoint.newest(folder) if folder is not None else None
        if saved is not None:
            merge = Merge(2, 100, of_checkpoint(saved, learner, REGISTRY))
        return merge, learner

    merge, learner = begin()
    for _ in range(10_000):
        behind = [p for p, rows in enumerate(partitions) if merge.next_offsets[p] < len(rows)]
        if not behind:
            break
        partition = random.choice(behind)
        offset = merge.next_offsets[partition]
        assert merge.offer(partition, offset, partitions[partition][offset], 100) is None
        for snapshot in learner.advance(merge):
            before = found.setdefault(snapshot.draft.version, snapshot.draft)
            assert before == snapshot.draft, "made again after a restart, with other bytes"
            task_weights = {
                name.partition("/")[2]: array for name, array in weights.unpack(snapshot.payload)[0].items()
            }
            assert probes.check(snapshot.draft.probes, {FINGERPRINT: TASK}, {FINGERPRINT: task_weights}) is None
        if folder is not None and random.random() < 0.15:
            checkpoint.write(folder, to_checkpoint(learner, merge, "topic", REGISTRY), keep=2)
        if folder is not None and random.random() < 0.1:
            merge, learner = begin()
    return found


def test_killed_at_random_moments_the_whole_learner_makes_the_same_snapshots(tmp_path: Path) -> None:
    environment.configure(1, "cpu")
    partitions = records()
    lived = run(partitions, Random(1), None)
    assert len(lived) >= 9
    assert sum(lived[len(lived)].rows_learnt.values()) > 1000
    assert len({manifest.sha256 for manifest in lived.values()}) == len(lived)
    for seed in (2, 3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed = run(partitions, Random(seed), folder)
        assert killed == lived
    assert np.all([lived[v].parent_sha256 == lived[v - 1].sha256 for v in range(2, len(lived) + 1)])
