"""Mistakes that the simulation found, each by itself and without a seed: they outlive any change of the worlds."""

from __future__ import annotations

import shutil

from schemas.task import TaskTable
from streams import snapshots
from tests.simulation.chain_deciders import Follower
from tests.simulation.chain_learner import LearnerProcess
from tests.simulation.chain_run import ChainRun, Impatient
from tests.simulation.seams import replaced
from tests.simulation.virtual import Faults


def test_a_newest_snapshot_without_its_chunk_does_not_keep_the_one_before_from_serving() -> None:
    """The client tells the end of a partition once. The follower gave the lost chunk up at such a telling only, five
    seconds after it had begun to look: so never; and it had forgotten the older manifests meanwhile."""
    run = ChainRun(0)
    learner = LearnerProcess(run.net, [], {})
    for end_ms in (1_000, 2_000):
        learner.submit(learner.learner._freeze(end_ms, learner.merge.taken(end_ms)))
        learner.publish(Faults())
    run.broker.logs["snapshot-chunks"][0].pop()
    with replaced((snapshots, "time", Impatient())):
        follower = Follower(run.net, run.folder / "worker", TaskTable(run.project.tasks))
    shutil.rmtree(run.folder)
    assert follower.policy is not None
    assert follower.policy.version == 1
