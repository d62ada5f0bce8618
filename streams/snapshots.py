"""Follow the model topic: the newest snapshot that passes every check serves, and nothing else ever does.

A shell: one daemon thread. It reads manifests, has `streams.snapshot_log` fetch the chunks they name and
`streams.policy` check and load them, persists the trusted version, and then swaps one attribute. The decide loop reads
that attribute; it never waits for this thread, and the thread does its long work (fetching, hashing, finite checks,
probes) in calls that release the interpreter lock.

Any failure keeps the last good policy, counts the exact reason and is logged once per version.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.records import SnapshotManifest
from schemas.registry import Registry, RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.signing_keys import load_public_key
from schemas.task import TaskTable
from schemas.topics import topic
from schemas.weights import verify
from streams.messages import code_of, place_of
from streams.policy import Policy, Refused, Verify, check_manifest, verify_and_load
from streams.snapshot_log import POLL_S, Chunks, Unreachable, consumer
from streams.trusted_version import TrustedVersion

__all__ = ["Policy", "Refused", "SnapshotFollower", "verify_and_load"]

log = logging.getLogger(__name__)

MANIFESTS_BACK = 8
"""Manifests read at start: the newest, and earlier ones in case it is refused."""

Swapped = Callable[[Policy], None]
RefusedHook = Callable[[str], None]


def verifier_of(settings: CommonSettings, insecure_dev: bool) -> Verify | None:
    """The signature check of this worker, None in insecure development mode without a key.

    Raises UserError when there is no public key and `insecure_dev` is not set, or the key cannot be read.
    """
    if settings.public_key is None:
        if insecure_dev:
            log.warning("--insecure-dev: snapshots are taken without a signature check; never do this in production")
            return None
        raise UserError(
            "no public key to check snapshots with",
            "make keys with `headrace keys create` and set HEADRACE_PUBLIC_KEY; for a trial add --insecure-dev",
        )
    key = load_public_key(settings.public_key)
    return lambda manifest: verify(manifest, key)


class SnapshotFollower:
    """Keeps `policy` at the newest snapshot that passed every check.

    `on_swap(policy)` and `on_refused(reason)` are called in the follower's thread, for metrics.
    """

    def __init__(
        self,
        settings: CommonSettings,
        registry: Registry,
        table: TaskTable,
        *,
        insecure_dev: bool = False,
        on_swap: Swapped | None = None,
        on_refused: RefusedHook | None = None,
    ) -> None:
        """Raises UserError for a missing or unreadable key, or a state folder that cannot be written."""
        self.policy: Policy | None = None
        """Replaced as a whole: read it once per batch."""
        self.refused = False
        """The newest snapshot seen was refused."""
        self._settings = settings
        self._registry = registry
        self._table = table
        self._verify = verifier_of(settings, insecure_dev)
        self._trusted = TrustedVersion(settings.state_dir, settings.namespace)
        self._on_swap = on_swap
        self._on_refused = on_refused
        self._complained: set[tuple[int, str]] = set()
        self._waiting: SnapshotManifest | None = None
        """Serves, but names tasks that this worker did not know when it was loaded."""
        self._undecoded: tuple[bytes, int] | None = None
        """Newest manifest (and its offset) whose schema the registry did not give: it is asked again."""
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def start(self) -> SnapshotFollower:
        """Follow from now on."""
        self._thread.start()
        return self

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether the newest snapshot there was at start has been taken or refused (or there was none)."""
        return self._ready.wait(timeout_s)

    def close(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def __enter__(self) -> SnapshotFollower:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        manifests = consumer(self._settings, "follow-snapshots")
        chunks = Chunks(
            consumer(self._settings, "follow-snapshot-chunks"),
            topic(self._settings.namespace, "snapshot-chunks"),
            self._stopping,
        )
        try:
            pending = self._at_start(manifests)
            while not self._stopping.is_set():
                if pending:
                    pending = self._take_newest(pending, chunks)
                    if pending:  # the broker is gone: what is newest may have changed when it is back
                        self._stopping.wait(POLL_S)
                else:
                    self._ready.set()
                pending = self._newer(manifests, pending)
        except Exception:
            log.exception("following the snapshots ended; the present policy goes on serving, no newer one will")
            self._count("follower-ended")
        finally:
            self._ready.set()
            manifests.close()
            chunks.close()

    def _at_start(self, manifests: Consumer) -> list[SnapshotManifest]:
        """Assign behind the last few manifests and read them, oldest first."""
        name = topic(self._settings.namespace, "snapshots")
        low, high = 0, 0
        while not self._stopping.is_set():
            try:
                low, high = manifests.get_watermark_offsets(TopicPartition(name, 0), timeout=5.0)
                break
            except KafkaException:
                self._stopping.wait(1.0)
        start = max(low, high - MANIFESTS_BACK)
        manifests.assign([TopicPartition(name, 0, start)])
        found: list[SnapshotManifest] = []
        position = start
        while position < high and not self._stopping.is_set():
            message = manifests.poll(POLL_S)
            if message is None:
                continue
            if code_of(message) is None:
                _, offset = place_of(message)
                position = offset + 1
                found += self._decoded(message.value(), offset)
            elif code_of(message) == KafkaError._PARTITION_EOF:
                break
        return found

    def _newer(self, manifests: Consumer, pending: list[SnapshotManifest]) -> list[SnapshotManifest]:
        """Everything that has come since, after waiting a moment for it; only the last few can matter."""
        timeout_s = 0.0 if pending else POLL_S
        found = list(pending)
        while (message := manifests.poll(timeout_s)) is not None and not self._stopping.is_set():
            if code_of(message) is None:
                found += self._decoded(message.value(), place_of(message)[1])
                timeout_s = 0.0
            elif code_of(message) == KafkaError._AUTO_OFFSET_RESET:
                found += self._at_start(manifests)  # retention overtook us
                break
        if not found:
            found += self._unread()
        if not found and self._waiting is not None and self._now_known(self._waiting):
            found = [self._waiting]
        return found[-MANIFESTS_BACK:]

    def _decoded(self, payload: bytes | None, offset: int) -> list[SnapshotManifest]:
        if payload is None:
            return []
        try:
            return [decode(payload, self._registry, expect=SnapshotManifest)]
        except BadRecord as error:
            self._complain(-offset, Refused("unreadable-manifest", f"offset {offset}: {error}"))
        except RegistryUnavailable as error:
            self._undecoded = payload, offset
            self._complain(-offset, Refused("unreadable-manifest", f"offset {offset}, will be tried again: {error}"))
        return []

    def _unread(self) -> list[SnapshotManifest]:
        """The manifest whose schema could not be fetched, if it can now."""
        if self._undecoded is None:
            return []
        (payload, offset), self._undecoded = self._undecoded, None
        return self._decoded(payload, offset)

    def _take_newest(self, manifests: Sequence[SnapshotManifest], chunks: Chunks) -> list[SnapshotManifest]:
        """Swap to the newest manifest that passes; returns what to try again because the broker did not answer."""
        serving = self.policy
        for manifest in sorted(manifests, key=lambda each: each.version, reverse=True):
            if serving is not None and manifest.version <= serving.version and manifest is not self._waiting:
                if manifest.version < serving.version or manifest.sha256 != serving.sha256:
                    self._complain_of_old(manifest)
                return []
            try:
                self._take(manifest, chunks)
                return []
            except Refused as refused:
                self._complain(manifest.version, refused)
            except Unreachable as error:
                log.debug("snapshot %d: %s; trying again", manifest.version, error)
                return list(manifests)  # the older ones too: this one may prove unusable when the broker is back
        return []

    def _complain_of_old(self, manifest: SnapshotManifest) -> None:
        """An old version rightly signed is one thing, a forgery that says it is old another: the checks tell which."""
        try:
            check_manifest(manifest, self._verify, self._trusted.value)
        except Refused as refused:
            self._complain(manifest.version, refused)

    def _take(self, manifest: SnapshotManifest, chunks: Chunks) -> None:
        """One manifest through all checks, to disk and into service."""
        started_s = time.monotonic()
        check_manifest(manifest, self._verify, self._trusted.value)
        reach("follow.before-chunks")
        pieces = chunks.of(manifest)
        policy = verify_and_load(manifest, pieces, self._verify, self._trusted.value, self._table)
        reach("follow.before-persist")
        try:
            self._trusted.raise_to(policy.version, policy.sha256)
        except (OSError, UserError) as error:
            raise Refused("not-persisted", f"the trusted version cannot be written: {error}") from error
        reach("follow.before-swap")
        self.policy = policy
        self.refused = False
        self._waiting = None if len(policy.tasks) == len(manifest.tasks) else manifest
        log.info(
            "snapshot %d serves (%d bytes, %.0f ms)",
            policy.version,
            manifest.size_bytes,
            1e3 * (time.monotonic() - started_s),
        )
        if self._on_swap is not None:
            self._on_swap(policy)

    def _now_known(self, manifest: SnapshotManifest) -> bool:
        serving = self.policy
        return serving is not None and any(key in self._table and key not in serving.tasks for key in manifest.tasks)

    def _complain(self, version: int, refused: Refused) -> None:
        """Count and log a refusal, once per version and reason."""
        if (version, refused.reason) in self._complained:
            return
        if len(self._complained) > 10_000:
            self._complained.clear()
        self._complained.add((version, refused.reason))
        serving = self.policy
        self.refused = True
        log.error(
            "snapshot %d refused: %s; %s",
            version,
            refused,
            f"version {serving.version} goes on serving" if serving else "the baseline serves",
        )
        self._count(refused.reason)

    def _count(self, reason: str) -> None:
        if self._on_refused is not None:
            self._on_refused(reason)
