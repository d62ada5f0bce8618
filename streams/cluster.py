"""What a process needs of the cluster before it starts: a broker that answers, and its topics.

Owns the two errors that everybody meets first and their remedies. Knows nothing of what the topics hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import UserError
from schemas.settings import CommonSettings

ANSWER_S_MAX = 5.0
"""Of a broker that is there."""
TRY_S = 1.0
SAY_S = 5.0

log = logging.getLogger(__name__)


def require_topics(settings: CommonSettings, names: Iterable[str]) -> dict[str, int]:
    """Number of partitions of each topic of `names`.

    Waits for a broker up to `settings.broker_wait_s`. Raises UserError with the remedy when none answers or a topic is
    missing.
    """
    found = _topics(settings)
    missing = [name for name in names if name not in found or found[name].error is not None]
    if missing:
        raise UserError(
            f"missing at {settings.bootstrap}: {_listed(missing)}",
            "create them with `headrace topics apply` (auto-creation would give them the wrong clock)",
        )
    return {name: len(found[name].partitions) for name in names}


def _topics(settings: CommonSettings) -> dict[str, Any]:
    """Metadata of all topics, asked for in short turns so that Ctrl-C is heard."""
    quiet = logging.getLogger("headrace.cluster.probe")
    quiet.disabled = True  # librdkafka repeats "connection refused" at every try; the error below says it once
    admin = AdminClient(settings.librdkafka(**{"reconnect.backoff.max.ms": 1000}), logger=quiet)
    began_s, has_told = time.monotonic(), False
    while True:
        try:
            return admin.list_topics(timeout=min(TRY_S, settings.broker_wait_s)).topics
        except KafkaException as error:
            waited_s = time.monotonic() - began_s
            if waited_s >= settings.broker_wait_s:
                raise UserError(
                    f"no Kafka broker answers at {settings.bootstrap}",
                    "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster; where brokers "
                    "restart, let processes wait for them with HEADRACE_BROKER_WAIT_S=60",
                ) from error
            if waited_s >= SAY_S and not has_told:
                has_told = True
                log.warning("no broker answers at %s yet; waiting %g s", settings.bootstrap, settings.broker_wait_s)


def _listed(names: list[str]) -> str:
    """One or several topics in words."""
    return f"topic {names[0]}" if len(names) == 1 else f"topics {', '.join(names)}"
