"""Published: what the `snapshots` topic already holds when a learner starts.

Owns the answer to three questions: up to which version has been published, under which bytes, and by which history.
A learner that replays makes the same cuts again; here it finds that they stand in the topic already, and notices when
its own bytes differ (equivocation: a machine, a library or a disk that is not what it was). What the own key did not
sign is passed over, as by `learner.watch`: it neither stands for a version nor hides the one that does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from learner.consume import ANSWER_S_MAX, QUIET, received, watermarks
from learner.own import Foreign, own_manifest
from schemas.errors import UserError
from schemas.records import SnapshotManifest
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic

log = logging.getLogger(__name__)

MANIFESTS_MAX = 20_000
"""Newest messages read at a start without a checkpoint: enough to compare hours of replay, and read in seconds.
More only while none of them is the learner's own, however many others somebody wrote behind it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version as published."""

    sha256: bytes
    environment: dict[str, str]
    time_ms: int
    """Append time of its manifest."""


@dataclass(slots=True)
class Published:
    """Own channel's versions from the one asked for on, the newest in any case."""

    entries: dict[int, Entry] = field(default_factory=dict)
    newest: SnapshotManifest | None = None
    next_offset: int = 0
    """First offset of the topic that was not read."""
    num_foreign: int = 0
    """Messages passed over: no manifests, or not signed with the learner's key."""
    first_foreign: str = ""
    """Where the first of them stands and what is wrong with it; "" for none."""

    @property
    def version(self) -> int:
        """Highest version published, 0 for none."""
        return self.newest.version if self.newest is not None else 0


def read_published(
    settings: CommonSettings, registry: Registry, channel: str, key: Ed25519PublicKey, from_version: int
) -> Published:
    """The channel's manifests that `key` signed, from `from_version` on, and the newest in any case.

    Reads backwards in growing steps, about `MANIFESTS_MAX` messages. Raises UserError when the broker is silent.
    """
    name = topic(settings.namespace, "snapshots")
    options = {
        "group.id": f"{settings.namespace}.learner-published",
        "enable.auto.commit": False,
        "fetch.wait.max.ms": 10,  # a step further back waits for the answer about what is new
        **QUIET,
    }
    consumer = Consumer(settings.librdkafka(**options), logger=logging.getLogger("headrace.kafka"))
    try:
        low, high = watermarks(consumer, name, 0)
        step = 64
        while True:
            start = max(low, high - step)
            published = _read(consumer, name, registry, channel, key, start, high)
            oldest = min(published.entries, default=from_version + 1)
            is_enough = published.newest is not None and step >= MANIFESTS_MAX
            if start == low or is_enough or oldest <= from_version:
                break
            step *= 8
        if published.num_foreign:
            log.warning(
                "%s: %d messages passed over, the first at %s; see who else may write there",
                name,
                published.num_foreign,
                published.first_foreign,
            )
        return published
    finally:
        consumer.close()


def _read(
    consumer: Consumer, name: str, registry: Registry, channel: str, key: Ed25519PublicKey, start: int, high: int
) -> Published:
    published = Published(next_offset=high)
    consumer.assign([TopicPartition(name, 0, start)])
    offset = start
    while offset < high:
        message = consumer.poll(ANSWER_S_MAX)
        if message is None:
            raise UserError(
                f"{name} was not read to its end", "see whether the broker is healthy: headrace broker status"
            )
        if message.error() is not None:
            continue
        found = received(message)
        offset = found.offset + 1
        try:
            manifest = own_manifest(found.payload, registry, channel, key)
        except Foreign as foreign:
            published.num_foreign += 1
            published.first_foreign = published.first_foreign or f"offset {found.offset}: {foreign}"
            continue
        if manifest is None:
            continue
        entry = Entry(manifest.sha256, manifest.environment, found.time_ms)
        published.entries.setdefault(manifest.version, entry)  # the first in the log is the one that readers took
        if published.newest is None or manifest.version >= published.newest.version:
            published.newest = manifest
    return published
