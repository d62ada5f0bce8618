"""A worker that is told "unknown error" while it joins its group joins again.

A broker that is about to die says so; here aiokafka is made to hear it, because no broker says it on demand.
"""

from __future__ import annotations

from pathlib import Path

from tests.kafka.journal_writer import JournalWriter, account
from tests.kafka.workers import START, WorkerProcess, project, set_up, until

WAIT_S = 60.0
NUM_REFUSED = 2


class Refused(WorkerProcess):
    """Whose first attempts to join fail."""

    script = f"""
from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
join, left = GroupCoordinator._do_rejoin_group, [None] * {NUM_REFUSED}
async def refused(self, subscription):
    if left:
        left.pop()
        raise errors.KafkaError(repr(errors.UnknownError()))
    return await join(self, subscription)
GroupCoordinator._do_rejoin_group = refused
{START}"""


def test_a_worker_that_was_refused_without_a_reason_joins_again(broker: str, namespace: str, tmp_path: Path) -> None:
    wanted = project(namespace, 4, window="1s")
    settings = set_up(broker, wanted)
    writer = JournalWriter(settings, wanted.tasks[0], 4)
    for partition in range(4):
        writer.decide(partition)
    writer.flush()
    refused = Refused("join", settings, tmp_path)
    try:
        until(lambda: account(settings).num_rows == 40, WAIT_S, refused.said)
        assert refused.said().count("joining again: KafkaError: UnknownError()") == NUM_REFUSED
        assert refused.stop()[0] == 0
    finally:
        refused.kill()
