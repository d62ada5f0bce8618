"""Watch: the manifests of the own channel as they come, whoever publishes them.

A shell. There should be one learner; when there are two by mistake, both make the same cuts, and the one that comes
second finds here that a version stands in the topic already. Two contents under one version are an alarm
(`learner.uploads`). Manifests that the own key did not sign are passed over: no worker takes them either. One whose
schema the registry does not give now is looked at when it does.
"""

from __future__ import annotations

import logging
import time

from confluent_kafka import Consumer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from learner.consume import QUIET, Received, received
from learner.own import Foreign, own_manifest
from schemas.records import SnapshotManifest
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic
from schemas.undecoded import Undecoded

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Between two looks: far below the 5 s within which an alarm must come."""
BATCH_MESSAGES = 64
SAY_S = 10.0
"""One log line about foreign manifests in this time."""


class ManifestWatch:
    """Gives every manifest of a channel once, from an offset on. Never blocks."""

    def __init__(
        self, settings: CommonSettings, registry: Registry, channel: str, key: Ed25519PublicKey, offset: int
    ) -> None:
        """`offset`: the first that nobody has looked at; `key` belongs to the key that this learner signs with."""
        self._registry, self._channel, self._key = registry, channel, key
        self._looked_s = self._said_s = -SAY_S
        self._name = topic(settings.namespace, "snapshots")
        self._found: list[tuple[SnapshotManifest, int]] = []
        self._records = Undecoded(self._name, self._take)
        self._consumer = Consumer(
            settings.librdkafka(
                **{
                    "group.id": f"{settings.namespace}.learner-watch",  # required by the client, never used
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 500,
                    "queued.max.messages.kbytes": 16 << 10,
                    **QUIET,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )
        self._consumer.assign([TopicPartition(self._name, 0, offset)])

    def look(self) -> list[tuple[SnapshotManifest, int]]:
        """(manifest, append time) of those that have come; at most one look per `LOOK_S`."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return []
        self._looked_s = now_s
        messages = [] if self._records else self._consumer.consume(BATCH_MESSAGES, 0)
        self._records.offer(received(message) for message in messages if message.error() is None)
        found, self._found = self._found, []
        return found

    def _take(self, came: Received) -> None:
        manifest = self._own(came)
        if manifest is not None:
            self._found.append((manifest, came.time_ms))

    def _own(self, came: Received) -> SnapshotManifest | None:
        """The manifest if it is one of this channel, signed by the own key. Raises RegistryUnavailable."""
        try:
            return own_manifest(came.payload, self._registry, self._channel, self._key)
        except Foreign as foreign:
            self._say(came.offset, str(foreign))
            return None

    def _say(self, offset: int, what: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            log.warning("%s offset %d passed over: %s; see who else may write there", self._name, offset, what)

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()
