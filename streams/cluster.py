"""What a process needs of the cluster before it starts: a broker that answers, and its topics.

Owns the two errors that everybody meets first and their remedies. Knows nothing of what the topics hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import UserError
from schemas.settings import CommonSettings

ANSWER_S_MAX = 5.0
"""A broker that says nothing for so long counts as absent at start; later on every process waits for ever."""


def require_topics(settings: CommonSettings, names: Iterable[str]) -> dict[str, int]:
    """Number of partitions of each topic of `names`.

    Blocks up to `ANSWER_S_MAX`. Raises UserError with the remedy when no broker answers or a topic is missing.
    """
    quiet = logging.getLogger("headrace.cluster.probe")
    quiet.disabled = True  # librdkafka repeats "connection refused" at every try; the error below says it once
    try:
        found = AdminClient(settings.librdkafka(), logger=quiet).list_topics(timeout=ANSWER_S_MAX).topics
    except KafkaException as error:
        raise UserError(
            f"no Kafka broker answers at {settings.bootstrap}",
            "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
        ) from error
    missing = [name for name in names if name not in found or found[name].error is not None]
    if missing:
        raise UserError(
            f"missing at {settings.bootstrap}: {_listed(missing)}",
            "create them with `headrace topics apply` (auto-creation would give them the wrong clock)",
        )
    return {name: len(found[name].partitions) for name in names}


def _listed(names: list[str]) -> str:
    """One or several topics in words."""
    return f"topic {names[0]}" if len(names) == 1 else f"topics {', '.join(names)}"
