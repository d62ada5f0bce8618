"""Questions to a Kafka cluster, ours or another: does it answer, with how many brokers, do replicas lag?

The client is imported where it is used, so that `headrace --help` need not load librdkafka.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from schemas.errors import UserError


def answers(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 1.0) -> int:
    """Brokers that a cluster reports, 0 when it does not answer within `timeout_s`."""
    return len(brokers(bootstrap, options, timeout_s))


def num_lagging_replicas(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> int:
    """Replicas of any topic that are not in sync now, after a node came back for one.

    Raises `UserError` when no broker answers within `timeout_s`.
    """
    found = _metadata(bootstrap, options, timeout_s)
    if found is None:
        raise UserError(f"no Kafka broker answers at {bootstrap}", "start its nodes")
    partitions = [partition for topic in found.topics.values() for partition in topic.partitions.values()]
    return sum(len(partition.replicas) - len(partition.isrs) for partition in partitions)


def brokers(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 1.0) -> frozenset[int]:
    """Ids of the brokers that a cluster reports, none when it does not answer within `timeout_s`."""
    found = _metadata(bootstrap, options, timeout_s)
    return frozenset() if found is None else frozenset(found.brokers)


def _metadata(bootstrap: str, options: Mapping[str, str] | None, timeout_s: float) -> Any:
    """What a cluster says of itself; None when it does not answer within `timeout_s`."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("headrace.broker.probe")
    quiet.disabled = True  # librdkafka says "connection refused" at every try; we say once what is missing
    admin = AdminClient({**(options or {}), "bootstrap.servers": bootstrap}, logger=quiet)
    try:
        return admin.list_topics(timeout=timeout_s)
    except KafkaException:
        return None


def require(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> None:
    """Raise a `UserError` that says how to get a broker unless one answers at `bootstrap`."""
    if not answers(bootstrap, options, timeout_s):
        raise UserError(
            f"no Kafka broker answers at {bootstrap}",
            "Start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
        )
