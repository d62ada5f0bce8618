"""A worker that is told "unknown error" while it joins its group joins again; one that may not join ends.

A broker that is about to die says the first; here aiokafka is made to hear both, because no broker says them on demand.
"""

from __future__ import annotations

from pathlib import Path

from tests.kafka.journal_writer import JournalWriter, account
from tests.kafka.workers import START, WorkerProcess, project, set_up, until

WAIT_S = 60.0
NUM_REFUSED = 2


class Refused(WorkerProcess):
    """Whose attempts to join fail: the first few, told nothing."""

    num_refused, error = NUM_REFUSED, "errors.KafkaError(repr(errors.UnknownError()))"

    @property
    def script(self) -> str:  # type: ignore[override]  # a constant of the class in the others
        return f"""
from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
join, left = GroupCoordinator._do_rejoin_group, [None] * {self.num_refused}
async def refused(self, subscription):
    if left:
        left.pop()
        print("refused", file=sys.stderr, flush=True)
        raise {self.error}
    return await join(self, subscription)
GroupCoordinator._do_rejoin_group = refused
{START}"""


class NotAllowed(Refused):
    """Told each time that it has no right to join."""

    num_refused, error = 1000, "errors.GroupAuthorizationFailedError(self.group_id)"


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
        assert refused.said().splitlines().count("refused") == NUM_REFUSED
        assert "joining again: KafkaError: UnknownError()" in refused.said()
        assert refused.stop()[0] == 0
    finally:
        refused.end()


def test_a_worker_that_may_not_join_ends(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace, 4, window="1s"))
    refused = NotAllowed("join", settings, tmp_path)
    try:
        until(lambda: refused.process.poll() is not None, WAIT_S, refused.said)
        assert refused.process.returncode == 1, refused.said()
        assert f"no part in the group {namespace}.join any more" in refused.said()
        assert "to READ that group" in refused.said()
    finally:
        refused.end()
