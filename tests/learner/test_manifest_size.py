"""A manifest is one message: what may be applied fits into it, and what does not fit stops no learning."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploy.applying import refuse_too_many_tasks
from deploy.definitions import Definitions
from learner.cuts import CutRules, CutState
from learner.manifest_size import MANIFEST_BYTES_MAX, bytes_at_most, size_of
from learner.merge import Merge
from learner.namespace import NamespaceLearner
from learner.policy import probes
from learner.policy.blank import blank_weights
from learner.policy.probes import PROBES_BYTES_MAX
from learner.publish import chunks_of, signed
from learner.restore import of_checkpoint, to_checkpoint
from schemas import codec
from schemas.errors import UserError
from schemas.limits import LIMITS
from schemas.records import ChainPosition, SnapshotManifest, TrainedPosition
from schemas.registry import FileRegistry
from schemas.task import Project, TaskTable, parse
from streams.examples import example_of
from streams.features import Encoder
from tests.learner.test_publish import KEY, Topics, snapshot

REGISTRY = FileRegistry()
LONG_MAX = (1 << 62) - 1


def project(num_tasks: int, partitions: int = 12) -> Project:
    task = """
[[tasks]]
name = "task-%d"
actions = ["a", "b", "c"]
[tasks.context]
x = { kind = "number" }
[tasks.learner]
deep = false
cross = false
[tasks.reward]
window = "1h"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""
    head = f'[namespace]\nname = "many"\npartitions = {partitions}\n'
    return parse(head + "".join(task % n for n in range(num_tasks)))


def fullest(num_partitions: int, num_tasks: int) -> SnapshotManifest:
    """With the largest values everywhere."""
    fingerprints = [n.to_bytes(16, "big") for n in range(num_tasks)]
    chains = tuple(ChainPosition(each, 0, LONG_MAX) for each in fingerprints)
    draft = snapshot(1).draft
    return replace(
        draft,
        version=LONG_MAX,
        cut_ms=LONG_MAX,
        trained=tuple(TrainedPosition(p, LONG_MAX, LONG_MAX, chains) for p in range(num_partitions)),
        tasks=tuple(fingerprints),
        rows_learnt={each.hex(): LONG_MAX for each in fingerprints},
        environment={"lineage_break": "x" * 8192},
        probes=bytes(PROBES_BYTES_MAX),
    )


@pytest.mark.parametrize(("num_partitions", "num_tasks"), [(1, 1), (12, 256), (100, 256), (1024, 25)])
def test_size_that_is_promised_covers_the_fullest_manifest_and_wastes_little(
    num_partitions: int, num_tasks: int
) -> None:
    draft, num_chunks = fullest(num_partitions, num_tasks), 1166
    whole = signed(replace(draft, chunk_offsets=(LONG_MAX,) * num_chunks), KEY)
    size = len(codec.encode(whole, REGISTRY, replace(LIMITS, message_bytes_max=1 << 30)))
    assert size <= size_of(draft, num_chunks, REGISTRY) + 8
    assert size <= bytes_at_most(num_partitions, num_tasks) <= size + 20_000


@pytest.mark.parametrize("num_tasks", [1, 2, 40, 100, 256])
def test_probes_of_any_number_of_tasks_stay_within_their_budget_header_included(num_tasks: int) -> None:
    tasks = {task.fingerprint: task for task in project(num_tasks).tasks}
    weights = {key: blank_weights(task) for key, task in tasks.items()}
    columns = {key: Encoder(task).encode([example_of(task)] * 16).columns for key, task in tasks.items()}
    inputs = {
        key: probes.ProbeInputs(each, np.ones(int(each.num_candidates.sum()), bool)) for key, each in columns.items()
    }
    payload = probes.pack(inputs, tasks, weights)
    assert len(payload) <= PROBES_BYTES_MAX
    assert probes.check(payload, tasks, weights) is None
    served = payload.count(b"/scores")
    assert served == min(num_tasks, served) >= min(num_tasks, 60)


def standing(before: Project, num_standing: int) -> Definitions:
    table = TaskTable()
    for task in before.tasks[:num_standing]:
        table.add(task)
    return Definitions(table=table, namespace=before.namespace)


def test_apply_refuses_more_tasks_than_a_manifest_holds_and_says_how_many_it_does() -> None:
    many = project(256, partitions=128)
    with pytest.raises(
        UserError, match=r"256 tasks in 128 partitions are too many .*expected at most 990000"
    ) as caught:
        refuse_too_many_tasks(Definitions(), many, ())
    assert "at most 206 tasks" in caught.value.remedy
    assert bytes_at_most(128, 206) <= MANIFEST_BYTES_MAX < bytes_at_most(128, 207)
    refuse_too_many_tasks(Definitions(), project(206, partitions=128), ())
    refuse_too_many_tasks(Definitions(), project(256), ())


def test_apply_takes_what_makes_a_namespace_that_is_too_large_no_larger() -> None:
    many = project(256, partitions=128)
    refuse_too_many_tasks(standing(many, 256), many, ())
    refuse_too_many_tasks(standing(many, 256), project(0, partitions=128), ("task-1",))
    with pytest.raises(UserError, match="252 tasks in 128 partitions"):
        refuse_too_many_tasks(standing(many, 250), project(252, partitions=128), ())


def too_large(version: int) -> Any:
    chains = tuple(ChainPosition(n.to_bytes(16, "big"), 0, LONG_MAX) for n in range(256))
    trained = tuple(TrainedPosition(p, 0, 0, chains) for p in range(200))
    small = snapshot(version)
    return replace(small, draft=replace(small.draft, trained=trained))


def test_a_snapshot_that_no_manifest_holds_is_not_uploaded_which_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topics = Topics()
    with caplog.at_level(logging.INFO):
        for made in (too_large(1), too_large(2), snapshot(3), too_large(4)):
            topics._attempt(made, again=False)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [text.split(" and ")[0] for text in said] == ["snapshot 1", "snapshot 4"]
    assert "expected at most 990000 (0 tasks in 200 partitions)" in said[0]
    assert "Remedy: retire tasks" in said[0]
    assert [manifest.version for manifest in topics.manifests] == [3]
    assert len(topics.chunks) == len(chunks_of(b"x")), "no chunk is written for a manifest that cannot be"
    assert topics.counted.value("headrace_learner_publish_failures") == 3
    assert topics._waiting is None, "it is not tried again"


def test_a_snapshot_that_no_manifest_holds_does_not_keep_the_state_from_its_checkpoint() -> None:
    rules = CutRules(100, 500, 1000)
    merge = Merge(1, 100)

    def learner() -> NamespaceLearner:
        return NamespaceLearner(lambda task: None, lambda _: None, rules, CutState(), {})  # type: ignore[arg-type, return-value]

    one, other = learner(), learner()
    one.cut, one.last = CutState.start(merge.positions(), 7), too_large(7)
    written = to_checkpoint(one, merge, "log", REGISTRY)
    of_checkpoint(written, other, REGISTRY)
    assert (other.cut, other.last) == (one.cut, None)
