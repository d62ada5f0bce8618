"""Topics as they must be before a worker starts: stamped by the broker, and with the namespace's partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it re-exports them without saying so in its types
    AdminClient,
    ConfigResource,
    ResourceType,
)

from schemas.broker_wait import REFUSED, ask
from schemas.errors import UserError
from schemas.settings import CommonSettings
from streams.cluster import require_topics


def require_append_time(settings: CommonSettings, names: Sequence[str]) -> None:
    """Raise UserError unless the broker stamps these topics: no client's clock may order the join."""
    require_topics(settings, names)
    for name, configuration in _configurations(settings, names).items():
        found = configuration["message.timestamp.type"].value
        if found != "LogAppendTime":
            raise UserError(
                f"topic {name} has message.timestamp.type={found}, expected LogAppendTime: "
                "a client's clock would order the join",
                "mend it with `headrace topics apply`, or delete the topic and let that command make it",
            )


def _configurations(settings: CommonSettings, names: Sequence[str]) -> dict[str, Any]:
    """Configuration of each topic; waits for a broker that has just gone as long as for one that is not there yet."""
    admin = AdminClient(settings.librdkafka(log_level=0))
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]

    def describe(timeout_s: float) -> dict[str, Any]:
        asked = admin.describe_configs(resources, request_timeout=timeout_s)
        return {resource.name: answer.result() for resource, answer in asked.items()}

    try:
        return ask(settings, describe) or {}
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() in REFUSED:
            raise UserError(
                f"the settings of {', '.join(names)} cannot be read: {cause.str()}",
                "give this user the right to describe topic configurations",
            ) from error
        raise UserError(
            f"the broker does not say how {', '.join(names)} are set: {cause.str()}",
            "see whether the broker is healthy: headrace broker status",
        ) from error


def require_same_partitions(settings: CommonSettings, names: Iterable[str], expected: int | None) -> None:
    """Raise UserError unless these topics exist and, where `expected` is given, have that many partitions."""
    for name, found in require_topics(settings, list(names)).items():
        if expected is not None and found != expected:
            raise UserError(
                f"topic {name} has {found} partitions, the namespace has {expected}",
                "use a new namespace for another number of partitions, and drain this one",
            )
