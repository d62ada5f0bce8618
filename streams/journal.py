"""Writing to Kafka so that what was acked is there, in order, and that callers hear of every failure.

`Output` wraps an idempotent confluent-kafka producer with a thread that serves its delivery callbacks. Everything that
must not be lost goes through it: journal, transitions, dead letters. Who calls: agents on the event loop (`write`), and
threads (`send`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.settings import CommonSettings

log = logging.getLogger(__name__)

POLL_S = 0.05
ROOM_RETRY_S = 0.01
QUEUE_KIB_MAX = 128 << 10

_TOPIC_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
Delivered = Callable[["WriteError | None", int], None]
"""Called once per record with (None, offset) or (error, -1), in the callback thread."""


class WriteError(Exception):
    """A record that is not in the log as far as we know. `fatal`: this producer will never write again."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class Output:
    """An idempotent producer: acks=all, order kept per partition, waits for ever for a broker that is gone.

    With `gapless` a record that cannot be written ends the producer instead of leaving a gap before later ones: the
    reader of an ingest source drops what lies below its high-water mark, so a gap there would be lost for ever.
    """

    def __init__(
        self,
        settings: CommonSettings,
        *,
        linger_ms: float = 2.0,
        compression: str = "lz4",
        gapless: bool = False,
        rest_s: float = 0.0,
    ) -> None:
        """`rest_s`: callbacks are served at most so often, all that are due at once; 0 serves each when it comes."""
        options: dict[str, Any] = {
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": linger_ms,
            "compression.type": compression,
            "message.timeout.ms": 0,  # a broker may be gone for as long as it likes: we wait
            "message.max.bytes": 1 << 20,
            "queue.buffering.max.kbytes": QUEUE_KIB_MAX,
            "enable.gapless.guarantee": gapless,
            "log_level": 3,  # its warnings tell of retries; what fails for good comes to the callbacks
        }
        self._producer = Producer(settings.librdkafka(**options), logger=logging.getLogger("headrace.kafka"))
        self._failure: WriteError | None = None
        self._rest_s = rest_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="output", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> WriteError | None:
        """Set once this producer can never write again; the process should say so and end."""
        return self._failure

    def __len__(self) -> int:
        """Records on their way, callbacks not yet called included."""
        return len(self._producer)

    def send(
        self,
        topic: str,
        partition: int,
        value: bytes,
        key: bytes | None = None,
        on_delivery: Delivered | None = None,
        on_latency: Callable[[float], None] | None = None,
    ) -> None:
        """Hand over one record. Thread-safe; never blocks; `partition` -1 lets the client choose by key.

        `on_latency` hears, once the record is in the log, how many seconds that took, whenever callbacks are served.
        Raises BufferError when 128 MiB are on their way (try again), WriteError when the producer has failed for good
        or the record can never be written (larger than 1 MiB).
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._producer.produce(
                topic, value, key=key, partition=partition, on_delivery=self._reporter(topic, on_delivery, on_latency)
            )
        except KafkaException as error:
            raise self._failed(error.args[0], topic) from error

    async def write(self, topic: str, partition: int, value: bytes, key: bytes | None = None) -> asyncio.Future[int]:
        """Hand over one record from the event loop, waiting for room; the future gives its offset or a WriteError."""
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[int] = loop.create_future()

        def settle(error: WriteError | None, offset: int) -> None:
            if delivered.done():
                return
            if error is None:
                delivered.set_result(offset)
            else:
                delivered.set_exception(error)

        def hand_over(error: WriteError | None, offset: int) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends and nobody waits
                loop.call_soon_threadsafe(settle, error, offset)

        while True:
            try:
                self.send(topic, partition, value, key, hand_over)
                return delivered
            except BufferError:
                await asyncio.sleep(ROOM_RETRY_S)

    def flush(self, timeout_s: float) -> int:
        """Wait until all is delivered; returns how many records are still on their way after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while len(self._producer) and time.monotonic() < end:
            time.sleep(ROOM_RETRY_S)
        return len(self._producer)

    def close(self, timeout_s: float = 2.0) -> int:
        """Deliver what can be delivered in `timeout_s`, give up the rest (they count as not written)."""
        left = self.flush(timeout_s)
        self._stopping.set()
        self._thread.join(1.0)
        if left:
            self._producer.purge()
            self._producer.poll(0.1)
        return left

    def _reporter(
        self, topic: str, on_delivery: Delivered | None, on_latency: Callable[[float], None] | None
    ) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, message: Message) -> None:
            failure = None if error is None else self._failed(error, topic)
            if on_latency is not None and failure is None:
                on_latency(message.latency() or 0.0)
            if on_delivery is not None:
                on_delivery(failure, -1 if failure else message.offset() or 0)
            elif failure is not None:
                log.error("%s", failure)

        return report

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._rest_s:  # sleep, then look: a poll that waits would serve the first record by itself
                    time.sleep(self._rest_s)
                    self._producer.poll(0)
                else:
                    self._producer.poll(POLL_S)
            except KafkaException as error:  # raised once, for the error that ends this producer
                self._failed(error.args[0], "the broker")
                self._producer.purge()  # whoever waits for a record hears of it now

    def _failed(self, error: KafkaError, topic: str) -> WriteError:
        remedy = " (the topic is gone: headrace topics apply)" if error.code() in _TOPIC_GONE else ""
        failure = WriteError(f"cannot write to {topic}: {error.str()}{remedy}", fatal=error.fatal())
        if failure.fatal:
            self._failure = failure
        return failure
