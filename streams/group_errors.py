"""What becomes of an error that aiokafka's part in the consumer group cannot handle.

aiokafka puts it aside for whoever asks for records next, and takes no further part in the group until then. Faust asks
for none while it has no partitions, so a worker that was told "unknown error" while it joined (a broker that is about
to die says that) stood aside for good: alive, and without partitions, heartbeats or commits.
"""

from __future__ import annotations

import logging
from typing import Any

from aiokafka import errors

log = logging.getLogger("headrace.kafka.group")

REMEDIES: dict[type[errors.KafkaError], str] = {
    errors.GroupAuthorizationFailedError: "allow this process's Kafka user to READ that group (kafka-acls --group)",
    errors.InconsistentGroupProtocolError: "a consumer that is no headrace worker is in it: stop that one",
}

LOOK_S = 0.5
"""Between two looks: a fraction of what a rebalance takes."""


def take_error(coordinator: Any) -> None:
    """Take the error that `coordinator` (aiokafka's `GroupCoordinator`) has put aside, so that it tries to join again.

    Raises it when trying again is of no use: no rights, another protocol in the group, or its task has ended.
    """
    try:
        coordinator.check_errors()
    except errors.KafkaError as error:
        if coordinator._coordination_task.done() or not _passes(error):
            remedy = REMEDIES.get(type(error), "see what the broker's log says of this group")
            log.error("this worker has no part in the group %s any more (%s): %s", coordinator.group_id, error, remedy)
            raise
        log.warning("%s: the group's coordinator failed, joining again: %s", coordinator.group_id, error)
        coordinator.request_rejoin()


def _passes(error: errors.KafkaError) -> bool:
    """Whether it may be gone at the next try: what the broker calls so, and codes that aiokafka has no rule for."""
    return type(error) is errors.KafkaError or bool(error.retriable)
