"""Dead letters: a record that cannot be used goes to `dead-letters` with the exact reason, and the rest goes on.

Used by every worker role. A dead letter is counted, logged (not more than a line per second and reason, so that a
flood of bad input does not become a flood of log), and written. Writing is asynchronous; who must not run ahead of
it awaits `write`.

A topic that every worker follows (`tasks`, `snapshots`) is told of by one of them: each follower keeps what it refused
in its `untold`, and who owns partition 0 of what its role shares out writes it. After a takeover or a restart some are
told once more; topic, partition and offset say that it is the same record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256

from schemas.codec import encode
from schemas.records import DeadLetter
from schemas.registry import Registry
from schemas.telemetry import Metrics
from schemas.topics import topic
from streams.journal import Delivered, Output

log = logging.getLogger(__name__)

FIRST_BYTES_MAX = 256
DETAIL_CHARS_MAX = 1_000
"""Some details quote what they refuse: a dead letter that is too large to be written would harm its writer."""
LOG_S = 1.0
UNTOLD_MAX = 100
"""Kept by a follower, the newest: a flood in a topic of definitions or snapshots must not be held in memory."""


def letter_of(
    where: tuple[str, int, int], value: bytes | memoryview | None, time_ms: int, reason: str, detail: str
) -> DeadLetter:
    """The dead letter of a refused record.

    `where` is its (topic, partition, offset), `time_ms` its append time.
    """
    content = bytes(value or b"")
    return DeadLetter(
        topic=where[0],
        partition=where[1],
        offset=where[2],
        reason=reason,
        detail=detail[:DETAIL_CHARS_MAX],
        first_bytes=content[:FIRST_BYTES_MAX],
        sha256=sha256(content).digest(),
        time_ms=time_ms,
    )


class DeadLetters:
    """Writer of the dead-letters topic of one namespace. Thread-safe but for `write`."""

    def __init__(self, namespace: str, registry: Registry, output: Output, metrics: Metrics) -> None:
        self._topic = topic(namespace, "dead-letters")
        self._registry = registry
        self._output = output
        self._metrics = metrics
        self._logged_at: dict[str, float] = {}

    async def write(self, letter: DeadLetter) -> asyncio.Future[int]:
        """Write one dead letter; await the returned future before committing past the record."""
        key, payload = self._encoded(letter)
        return await self._output.write(self._topic, -1, payload, key)

    def send(self, letter: DeadLetter, on_delivery: Delivered | None = None) -> None:
        """The same from a thread, waiting for room and not for the ack, of which `on_delivery` hears."""
        key, payload = self._encoded(letter)
        while True:
            try:
                self._output.send(self._topic, -1, payload, key, on_delivery)
                return
            except BufferError:
                time.sleep(0.01)

    def _encoded(self, letter: DeadLetter) -> tuple[bytes, bytes]:
        """(key, message): keyed by where the record stood, so that one origin's dead letters keep their order."""
        source, partition, reason = letter.topic, letter.partition, letter.reason
        self._metrics.add("headrace_dead_letters", topic=source, reason=reason)
        now = time.monotonic()
        if now - self._logged_at.get(reason, -LOG_S) >= LOG_S:
            self._logged_at[reason] = now
            log.warning("%s[%d] offset %d refused: %s: %s", source, partition, letter.offset, reason, letter.detail)
        return f"{source}/{partition}".encode(), encode(letter, self._registry)
