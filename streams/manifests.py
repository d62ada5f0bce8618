"""The topic of manifests as a follower reads it: the last few at its start, and each one that comes.

Owns how far back a start looks. Whether a manifest may serve, and what becomes of a message that is none, is its
caller's to say (`streams.snapshots`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.codec import BadRecord, decode
from schemas.records import SnapshotManifest
from schemas.registry import Registry, RegistryUnavailable
from streams.messages import AnyMessage, code_of, place_of
from streams.snapshot_log import POLL_S

MANIFESTS_BACK = 8
"""Messages read at start: the newest manifest, and earlier ones in case it is refused. So many that may serve are kept
at once, and so many that may not."""
MANIFESTS_BACK_MAX = 4096
"""As many are read at start while none of them may serve: half an hour of snapshots, or of somebody's rubbish."""
BACK_FACTOR = 4
ENDS_S_MAX = 5.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class RawManifest:
    """One message of the topic."""

    offset: int
    time_ms: int
    """Append time."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class Came:
    """A manifest, with the message that it came in."""

    raw: RawManifest
    manifest: SnapshotManifest


MayServe = Callable[[SnapshotManifest], bool]
Unreadable = Callable[[RawManifest, BadRecord | RegistryUnavailable], None]


class Few:
    """The manifests that can matter of any number: nobody hides a good one by what he writes behind it."""

    def __init__(self, may_serve: MayServe, found: Iterable[Came] = ()) -> None:
        self._may_serve = may_serve
        self._good: list[Came] = []
        """The newest versions of those that may serve; a signed one that is sent again hides none either."""
        self._others: list[Came] = []
        """The last of those that may not: somebody is to hear of them."""
        self.add(found)

    def add(self, found: Iterable[Came]) -> None:
        """These came after all others."""
        for came in found:
            if self._may_serve(came.manifest):
                good = sorted([*self._good, came], key=lambda each: (each.manifest.version, each.raw.offset))
                self._good = good[-MANIFESTS_BACK:]
            else:
                self._others = [*self._others, came][-MANIFESTS_BACK:]

    @property
    def in_order(self) -> list[Came]:
        """All that are kept, oldest first."""
        return sorted(self._good + self._others, key=lambda came: came.raw.offset)


class Manifests:
    """Reads partition 0 of `topic`. One thread."""

    def __init__(
        self,
        consumer: Consumer,
        topic: str,
        registry: Registry,
        stopping: threading.Event,
        may_serve: MayServe,
        unreadable: Unreadable,
    ) -> None:
        """`consumer` is its own from now on; `stopping` ends every wait.

        `unreadable` hears of each message that is no manifest, and of one whose schema the registry does not give now.
        """
        self._consumer, self._topic, self._registry = consumer, topic, registry
        self._stopping, self._may_serve, self._unreadable = stopping, may_serve, unreadable
        self._undecoded: RawManifest | None = None
        """The newest whose schema the registry did not give: it is asked again."""

    def at_start(self) -> list[Came]:
        """The last few, oldest first, and from further back the last that may serve when none of these may.

        A good snapshot with any number of bad messages behind it serves a worker that starts after them. Waits for a
        broker that is gone.
        """
        low, high = self._ends()
        start, num_back = high, MANIFESTS_BACK
        may_serve: list[Came] = []
        others: list[Came] = []
        while start > max(low, high - MANIFESTS_BACK_MAX) and not may_serve and not self._stopping.is_set():
            stop, start = start, max(low, high - num_back)
            num_back *= BACK_FACTOR
            found = self._between(start, stop)
            may_serve = [came for came in found if self._may_serve(came.manifest)][-MANIFESTS_BACK:]
            others = ([came for came in found if came not in may_serve] + others)[-MANIFESTS_BACK:]
        self._consumer.assign([TopicPartition(self._topic, 0, high)])
        return sorted(may_serve + others, key=lambda came: came.raw.offset)

    def newer(self, timeout_s: float) -> list[Came]:
        """Everything that has come since and can matter, waiting so long for the first."""
        found = Few(self._may_serve)
        while (message := self._consumer.poll(timeout_s)) is not None and not self._stopping.is_set():
            if code_of(message) is None:
                found.add(self.read(_raw(message)))
                timeout_s = 0.0
            elif code_of(message) == KafkaError._AUTO_OFFSET_RESET:
                return self.at_start()  # retention overtook us
        return found.in_order or self._unread()

    def read(self, raw: RawManifest) -> list[Came]:
        """The manifest that a message holds; [] where it holds none, of which the caller hears."""
        try:
            return [Came(raw, decode(raw.payload, self._registry, expect=SnapshotManifest))]
        except BadRecord as error:
            self._unreadable(raw, error)
        except RegistryUnavailable as error:
            self._undecoded = raw
            self._unreadable(raw, error)
        return []

    def close(self) -> None:
        """Give the connection up."""
        self._consumer.close()

    def _unread(self) -> list[Came]:
        """The manifest whose schema could not be fetched, if it can now."""
        raw, self._undecoded = self._undecoded, None
        return [] if raw is None else self.read(raw)

    def _ends(self) -> tuple[int, int]:
        """First offset of the log and first behind it; (0, 0) when stopped before a broker answered."""
        while not self._stopping.is_set():
            try:
                low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=ENDS_S_MAX)
                return int(low), int(high)
            except KafkaException:
                self._stopping.wait(RETRY_S)
        return 0, 0

    def _between(self, start: int, stop: int) -> list[Came]:
        """Manifests at offsets [start, stop), as far as the log still has them."""
        self._consumer.assign([TopicPartition(self._topic, 0, start)])
        found: list[Came] = []
        position = start
        while position < stop and not self._stopping.is_set():
            message = self._consumer.poll(POLL_S)
            if message is None:
                continue
            if code_of(message) is None:
                raw = _raw(message)
                position = raw.offset + 1
                found += self.read(raw) if position <= stop else []
            elif code_of(message) in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):
                break
        return found


def _raw(message: AnyMessage) -> RawManifest:
    return RawManifest(place_of(message)[1], message.timestamp()[1], message.value() or b"")
