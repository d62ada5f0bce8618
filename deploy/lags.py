"""How far the readers of a namespace have come: committed offsets of groups. Read-only."""

from __future__ import annotations

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException

from deploy import topics
from schemas.settings import CommonSettings

TIMEOUT_S = 5.0
ROLES = ("decide", "ingest", "join")
"""Groups that commit are `<namespace>.<role>`. By their whole names: `shop.eu.ingest` is none of the namespace shop."""

Offsets = dict[int, int]
"""Next offset by partition."""


def committed(settings: CommonSettings) -> list[tuple[str, str, Offsets]]:
    """(group, topic, committed offsets) of every group of the namespace; empty when no broker answers."""
    client = topics.admin(settings)
    found: dict[tuple[str, str], Offsets] = {}
    try:
        listed = client.list_consumer_groups(request_timeout=TIMEOUT_S).result()
        groups = sorted({each.group_id for each in listed.valid} & {f"{settings.namespace}.{role}" for role in ROLES})
        for group in groups:
            asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=TIMEOUT_S)
            for place in asked[group].result().topic_partitions:
                if place.offset >= 0:
                    found.setdefault((group, place.topic), {})[place.partition] = place.offset
    except KafkaException:
        return []
    return [(group, full, offsets) for (group, full), offsets in found.items()]
