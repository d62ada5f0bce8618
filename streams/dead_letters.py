"""Dead letters: a record that cannot be used goes to `dead-letters` with the exact reason, and the rest goes on.

Used by every worker role. A dead letter is counted, logged (not more than a line per second and reason, so that a
flood of bad input does not become a flood of log), and written. Writing is asynchronous; who must not run ahead of
it awaits `written`.
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
LOG_S = 1.0


class DeadLetters:
    """Writer of the dead-letters topic of one namespace. Thread-safe but for `write`."""

    def __init__(self, namespace: str, registry: Registry, output: Output, metrics: Metrics) -> None:
        self._topic = topic(namespace, "dead-letters")
        self._registry = registry
        self._output = output
        self._metrics = metrics
        self._logged_at: dict[str, float] = {}

    async def write(
        self, where: tuple[str, int, int], value: bytes | memoryview | None, time_ms: int, reason: str, detail: str
    ) -> asyncio.Future[int]:
        """Write one dead letter; await the returned future before committing past the record.

        `where` is (topic, partition, offset) of the refused record, `time_ms` its append time.
        """
        key, payload = self._encoded(where, value, time_ms, reason, detail)
        return await self._output.write(self._topic, -1, payload, key)

    def send(
        self,
        where: tuple[str, int, int],
        value: bytes | memoryview | None,
        time_ms: int,
        reason: str,
        detail: str,
        on_delivery: Delivered | None = None,
    ) -> None:
        """The same from a thread, waiting for room and not for the ack, of which `on_delivery` hears."""
        key, payload = self._encoded(where, value, time_ms, reason, detail)
        while True:
            try:
                self._output.send(self._topic, -1, payload, key, on_delivery)
                return
            except BufferError:
                time.sleep(0.01)

    def _encoded(
        self, where: tuple[str, int, int], value: bytes | memoryview | None, time_ms: int, reason: str, detail: str
    ) -> tuple[bytes, bytes]:
        """(key, message): keyed by where the record stood, so that one origin's dead letters keep their order."""
        source, partition, offset = where
        self._metrics.add("headrace_dead_letters", topic=source, reason=reason)
        now = time.monotonic()
        if now - self._logged_at.get(reason, -LOG_S) >= LOG_S:
            self._logged_at[reason] = now
            log.warning("%s[%d] offset %d refused: %s: %s", source, partition, offset, reason, detail)
        content = bytes(value or b"")
        letter = DeadLetter(
            topic=source,
            partition=partition,
            offset=offset,
            reason=reason,
            detail=detail,
            first_bytes=content[:FIRST_BYTES_MAX],
            sha256=sha256(content).digest(),
            time_ms=time_ms,
        )
        return f"{source}/{partition}".encode(), encode(letter, self._registry)
