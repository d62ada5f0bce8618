"""Publish: snapshots to the model topic, from a thread of its own so that learning does not wait for the broker.

Chunks first, acked; then the signed manifest with the chunks' offsets: the manifest is the commit point, a crash in
between leaves chunks that nobody refers to. Only the newest snapshot waits to be uploaded: one that a newer overtakes
is counted and dropped, its version stays unused (`learner.cuts`). The current version is uploaded again every
`reupload_s`, because chunks are kept for a day: same version, same bytes, new offsets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner.consume import QUIET
from learner.manifest_size import MANIFEST_BYTES_MAX, size_of
from learner.namespace import Snapshot
from schemas import codec
from schemas import weights as tensors
from schemas.fault_points import reach
from schemas.outage import Outage
from schemas.records import SnapshotManifest
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.telemetry import Metrics
from schemas.topics import topic

log = logging.getLogger(__name__)

CHUNK_BYTES = 900 * 1024
"""Below the broker's default message limit of 1 MiB with room for key and headers."""
DELIVERY_S_MAX = 30.0
RETRY_S = 0.5

FAULT_POINTS = {
    "snapshot-chunks": ("publish.before-chunk", "publish.chunk-acked"),
    "snapshots": ("publish.before-manifest", "publish.manifest-acked"),
}
"""Before and after each message of a topic."""


class NotDelivered(Exception):
    """The broker did not ack within `DELIVERY_S_MAX`."""


class TooLarge(Exception):
    """The manifest does not fit into a message."""


def chunks_of(payload: bytes) -> list[memoryview]:
    """The payload in pieces of `CHUNK_BYTES`, at least one."""
    view = memoryview(payload)
    return [view[start : start + CHUNK_BYTES] for start in range(0, max(1, len(view)), CHUNK_BYTES)]


class Publisher:
    """Uploads what it is given, newest first. `submit` never blocks."""

    def __init__(
        self,
        settings: CommonSettings,
        registry: Registry,
        private_key: Ed25519PrivateKey,
        metrics: Metrics,
        reupload_s: float,
        outage: Outage,
    ) -> None:
        """`private_key` signs; `reupload_s` the age at which the current version is uploaded again.

        `outage` hears of a broker that does not answer, or does again.
        """
        self._settings, self._registry, self._key, self._metrics = settings, registry, private_key, metrics
        self._reupload_s = reupload_s
        self._outage = outage
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._current: tuple[Snapshot, float] | None = None
        self._busy = False
        self._stopping = False
        self._failing = False
        self._outgrown = False
        self._producer = self._new_producer()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self) -> Publisher:
        """Upload from now on."""
        self._thread.start()
        return self

    def submit(self, snapshot: Snapshot) -> None:
        """Upload `snapshot` as soon as the one under way is done, unless a newer comes first."""
        with self._changed:
            if self._waiting is not None:
                self._metrics.add("headrace_learner_snapshots_overtaken")
            self._waiting = snapshot
            self._changed.notify_all()

    def adopt(self, snapshot: Snapshot, age_s: float) -> None:
        """`snapshot` stands in the topic since `age_s`: keep its chunks alive."""
        with self._changed:
            self._current = (snapshot, time.monotonic() - age_s)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be uploaded; False when it still does after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout_s)

    def close(self) -> None:
        """Stop after the upload under way; waits at most a second."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(1.0)

    def _new_producer(self) -> Producer:
        return Producer(
            self._settings.librdkafka(
                **{
                    "enable.idempotence": True,
                    "acks": "all",
                    "linger.ms": 0,
                    "message.timeout.ms": int(DELIVERY_S_MAX * 1000),
                    "queue.buffering.max.kbytes": 1 << 20,
                    **QUIET,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                if self._waiting is None and self._idle_s() > 0:
                    self._changed.wait(self._idle_s())
                    continue
                snapshot, self._waiting = self._waiting, None
                again = snapshot is None
                if snapshot is None:
                    assert self._current is not None, "without a current version there is no age to reach"
                    snapshot = self._current[0]
                self._busy = True
            self._attempt(snapshot, again)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _idle_s(self) -> float:
        """How long until the current version's chunks are due again; an hour while there is none."""
        if self._current is None:
            return 3600.0
        return max(0.0, self._current[1] + self._reupload_s - time.monotonic())

    def _attempt(self, snapshot: Snapshot, again: bool) -> None:
        """Upload; on failure put it back unless a newer one came."""
        started = time.monotonic()
        try:
            self._upload(snapshot)
        except (NotDelivered, KafkaException, BufferError) as error:
            self._failed(snapshot, error)
            return
        except TooLarge as error:
            self._metrics.add("headrace_learner_publish_failures")
            if not self._outgrown:
                self._outgrown = True
                log.error("snapshot %d and those after it: %s", snapshot.draft.version, error)
            return
        except Exception:  # a dead publisher must not look like a quiet one
            log.exception("snapshot %d could not be published; the next one will be tried", snapshot.draft.version)
            self._metrics.add("headrace_learner_publish_failures")
            return
        if self._failing or self._outgrown:
            self._failing = self._outgrown = False
            log.info("snapshots are published again, now version %d", snapshot.draft.version)
        self._outage.answered()
        done = time.monotonic()
        with self._changed:
            self._current = (snapshot, done)
        self._metrics.add("headrace_learner_snapshots_published" if not again else "headrace_learner_reuploads")
        self._metrics.set("headrace_learner_snapshot_version", snapshot.draft.version)
        self._metrics.observe("headrace_learner_upload_seconds", done - started)
        if not again:
            self._metrics.observe("headrace_learner_cut_to_topic_seconds", time.time() - snapshot.draft.cut_ms / 1000)
        log.debug("published version %d, %d bytes", snapshot.draft.version, len(snapshot.payload))

    def _failed(self, snapshot: Snapshot, error: NotDelivered | KafkaException | BufferError) -> None:
        self._metrics.add("headrace_learner_publish_failures")
        what = "snapshot %d is not published yet and will be tried again: %s"
        if _is_silence(error):
            self._outage.say(what, snapshot.draft.version, error)
        elif not self._failing:
            self._failing = True
            log.warning(what, snapshot.draft.version, error)
        with self._changed:
            if self._waiting is None:
                self._waiting = snapshot
            self._changed.wait_for(lambda: self._stopping, RETRY_S)
        if _is_silence(error) or error.args[0].fatal():
            self._producer = self._new_producer()  # this one may never be answered again (decision 24)

    def _upload(self, snapshot: Snapshot) -> None:
        name, digest = topic(self._settings.namespace, "snapshot-chunks"), snapshot.draft.sha256.hex()
        pieces = chunks_of(snapshot.payload)
        size_bytes = size_of(snapshot.draft, len(pieces), self._registry)
        if size_bytes > MANIFEST_BYTES_MAX:  # before any chunk is written for it
            num_tasks, num_partitions = len(snapshot.draft.tasks), len(snapshot.draft.trained)
            raise TooLarge(
                f"not published, its manifest takes {size_bytes} bytes, expected at most {MANIFEST_BYTES_MAX} "
                f"({num_tasks} tasks in {num_partitions} partitions). Learning goes on, workers serve the version "
                "before. Remedy: retire tasks (headrace apply --retire), or divide them among namespaces of fewer "
                "partitions"
            )
        keys = [f"{digest}/{index}".encode() for index in range(len(pieces))]
        offsets = self._deliver(name, keys, [bytes(piece) for piece in pieces])
        manifest = signed(replace(snapshot.draft, chunk_offsets=tuple(offsets)), self._key)
        value = codec.encode(manifest, self._registry)
        self._deliver(topic(self._settings.namespace, "snapshots"), [manifest.channel.encode()], [value])

    def _deliver(self, name: str, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
        """Write to partition 0 and wait for all acks; returns offsets. Raises NotDelivered or KafkaException."""
        before, acked = FAULT_POINTS[name.rpartition(".")[2]]
        offsets = [-1] * len(values)
        errors: list[KafkaError] = []
        left = len(values)

        def on_delivery(index: int, error: KafkaError | None, message: Message) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                errors.append(error)
            else:
                offsets[index] = message.offset() or 0
                reach(acked)

        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            reach(before)
            self._producer.produce(name, value, key, partition=0, on_delivery=partial(on_delivery, index))
        give_up = time.monotonic() + DELIVERY_S_MAX + 5.0
        while left > 0:
            self._producer.poll(0.05)
            if self._stopping and errors:
                break
            if time.monotonic() > give_up:
                raise NotDelivered(f"{name}: {left} of {len(values)} messages not acked in {DELIVERY_S_MAX:g} s")
        if errors:
            raise KafkaException(errors[0])
        return offsets


def _is_silence(error: Exception) -> bool:
    """Whether the broker did not answer, rather than refuse."""
    if isinstance(error, KafkaException):
        return error.args[0].code() in (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
    return True


def signed(manifest: SnapshotManifest, private_key: Ed25519PrivateKey) -> SnapshotManifest:
    """The manifest with its Ed25519 signature."""
    return tensors.sign(manifest, private_key)
