"""What the snapshot topics hold, read by offsets: the consumers of a follower, and the chunks of one snapshot."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.records import SnapshotManifest
from schemas.settings import CommonSettings
from streams.messages import code_of, place_of
from streams.policy import Refused

POLL_S = 0.2
CHUNKS_S_MAX = 30.0
"""Fetching all chunks of one snapshot; a broker that is gone for longer is tried again with the newest manifest."""
END_S_MAX = 5.0
"""A chunk beyond the end of the log for so long is not coming (a replica may show its end a moment late)."""


class Unreachable(Exception):
    """The broker did not give what is there; nothing is wrong with the snapshot, so it is tried again."""


def consumer(settings: CommonSettings, purpose: str) -> Consumer:
    """A consumer that is told what to read and where it ends: no group, no commits."""
    options = {
        "group.id": f"{settings.namespace}.{purpose}",  # required by the client, never used
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": 16 << 10,
        "fetch.wait.max.ms": 100,
    }
    return Consumer(settings.librdkafka(**options), logger=logging.getLogger("headrace.kafka"))


class Chunks:
    """Fetches the chunks that a manifest names. One thread."""

    def __init__(
        self,
        consumer: Consumer,
        topic: str,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`consumer` is its own from now on; `stopping` ends a fetch; `clock` in seconds."""
        self._consumer, self._topic, self._stopping, self._clock = consumer, topic, stopping, clock

    def of(self, manifest: SnapshotManifest) -> list[bytes]:
        """The chunks at the manifest's offsets, in its order.

        Raises Refused when one of them is not there, Unreachable when they did not come in time or `stopping` was set.
        """
        self._consumer.assign([TopicPartition(self._topic, 0, min(manifest.chunk_offsets))])
        try:
            found = self._read(set(manifest.chunk_offsets))
        finally:
            self._consumer.unassign()
        missing = [offset for offset in manifest.chunk_offsets if offset not in found]
        if missing:
            raise Refused("missing-chunk", f"offset {missing[0]} of {self._topic} is gone or not there yet")
        return [found[offset] for offset in manifest.chunk_offsets]

    def _read(self, wanted: set[int]) -> dict[int, bytes]:
        """Chunks by offset, as many as the log has."""
        found: dict[int, bytes] = {}
        started_s = self._clock()
        is_at_end = False
        while len(found) < len(wanted):
            message = self._consumer.poll(POLL_S)
            waited_s = self._clock() - started_s
            if self._stopping.is_set() or waited_s > CHUNKS_S_MAX:
                raise Unreachable(f"{len(found)} of {len(wanted)} chunks came within {waited_s:.0f} s")
            if message is None:
                if is_at_end and waited_s > END_S_MAX:  # the client says only once that this is the end
                    break
                continue
            code, (_, offset) = code_of(message), place_of(message)
            is_at_end = code == KafkaError._PARTITION_EOF
            if code is None:
                if offset in wanted:
                    found[offset] = message.value() or b""
                if offset >= max(wanted):
                    break
            elif code == KafkaError._AUTO_OFFSET_RESET:
                break  # retention has taken it
        return found

    def close(self) -> None:
        """Give the connection up."""
        self._consumer.close()
