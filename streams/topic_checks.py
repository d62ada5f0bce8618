"""Topics as they must be before a worker starts: stamped by the broker, and with the namespace's partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it re-exports them without saying so in its types
    AdminClient,
    ConfigResource,
    ResourceType,
)

from schemas.errors import UserError
from schemas.settings import CommonSettings
from streams.cluster import ANSWER_S_MAX, require_topics


def require_append_time(settings: CommonSettings, names: Sequence[str]) -> None:
    """Raise UserError unless the broker stamps these topics: no client's clock may order the join."""
    require_topics(settings, names)
    admin = AdminClient(settings.librdkafka(log_level=0))
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    for resource, answer in asked.items():
        try:
            found = answer.result(ANSWER_S_MAX)["message.timestamp.type"].value
        except KafkaException as error:
            raise UserError(
                f"the settings of topic {resource.name} cannot be read: {error.args[0].str()}",
                "give this user the right to describe topic configurations",
            ) from error
        if found != "LogAppendTime":
            raise UserError(
                f"topic {resource.name} has message.timestamp.type={found}, expected LogAppendTime: "
                "a client's clock would order the join",
                "mend it with `headrace topics apply`, or delete the topic and let that command make it",
            )


def require_same_partitions(settings: CommonSettings, names: Iterable[str], expected: int | None) -> None:
    """Raise UserError unless these topics exist and, where `expected` is given, have that many partitions."""
    for name, found in require_topics(settings, list(names)).items():
        if expected is not None and found != expected:
            raise UserError(
                f"topic {name} has {found} partitions, the namespace has {expected}",
                "use a new namespace for another number of partitions, and drain this one",
            )
