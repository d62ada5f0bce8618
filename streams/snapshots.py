"""Follow the model topic: the newest snapshot that passes every check serves, and nothing else ever does.

A shell: one daemon thread. It reads manifests, has `streams.snapshot_log` fetch the chunks they name and
`streams.policy` check and load them, persists the trusted version, and then swaps one attribute. The decide loop reads
that attribute; it never waits for this thread, and the thread does its long work (fetching, hashing, finite checks,
probes) in calls that release the interpreter lock.

Any failure keeps the last good policy, counts the exact reason and is logged once per version. Every message that was
looked at and cannot be used is a dead letter too, which one of the workers writes (`streams.dead_letters`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from confluent_kafka import Consumer

from schemas.codec import BadRecord
from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.records import DeadLetter, SnapshotManifest
from schemas.registry import Registry, RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.signing_keys import load_public_key
from schemas.task import TaskTable
from schemas.topics import topic
from schemas.weights import verify
from streams.dead_letters import UNTOLD_MAX, letter_of
from streams.manifests import Came, Few, Manifests, RawManifest
from streams.policy import Policy, Refused, Verify, check_manifest, verify_and_load
from streams.snapshot_log import POLL_S, Chunks, Unreachable, consumer
from streams.trusted_version import TrustedVersion

__all__ = ["Policy", "Refused", "SnapshotFollower", "verify_and_load"]

log = logging.getLogger(__name__)

REMEMBERED_MAX = 10_000
"""Refusals that were counted, logged and told; beyond it all are forgotten, and may be said once more."""

NOT_OF_THE_RECORD = frozenset({"not-persisted"})
"""Reasons that say nothing against the snapshot: no dead letter."""

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
        self.untold: deque[DeadLetter] = deque(maxlen=UNTOLD_MAX)
        """What cannot be used of what every worker reads here; the owner of the first partition of requests tells."""
        self._settings = settings
        self._registry = registry
        self._table = table
        self._verify = verifier_of(settings, insecure_dev)
        self._trusted = TrustedVersion(settings.state_dir, settings.namespace)
        self._on_swap = on_swap
        self._on_refused = on_refused
        self._topic = topic(settings.namespace, "snapshots")
        self._complained: set[tuple[str, str]] = set()
        """(snapshot, reason) of what was counted and logged: once per version, whatever comes under it."""
        self._told: set[tuple[str, str]] = set()
        """(message, reason) of the dead letters."""
        self._waiting: Came | None = None
        """Serves, but names tasks that this worker did not know when it was loaded."""
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
        manifests = self._manifests(consumer(self._settings, "follow-snapshots"))
        chunks = Chunks(
            consumer(self._settings, "follow-snapshot-chunks"),
            topic(self._settings.namespace, "snapshot-chunks"),
            self._stopping,
        )
        try:
            pending = manifests.at_start()
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

    def _manifests(self, client: Consumer) -> Manifests:
        return Manifests(client, self._topic, self._registry, self._stopping, self._may_serve, self._cannot_read)

    def _newer(self, manifests: Manifests, pending: list[Came]) -> list[Came]:
        """What is to be looked at now: what waits, and what has come since, after waiting a moment for it."""
        found = manifests.newer(0.0 if pending else POLL_S)
        if pending:
            found = Few(self._may_serve, [*pending, *found]).in_order
        if not found and self._waiting is not None and self._now_known(self._waiting.manifest):
            found = [self._waiting]
        return found

    def _may_serve(self, manifest: SnapshotManifest) -> bool:
        """Whether it is worth reading its chunks."""
        try:
            check_manifest(manifest, self._verify, self._trusted.value)
        except Refused:
            return False
        return True

    def _take_newest(self, found: Sequence[Came], chunks: Chunks) -> list[Came]:
        """Swap to the newest manifest that passes; returns what to try again because the broker did not answer."""
        serving = self.policy
        for came in sorted(found, key=lambda each: each.manifest.version, reverse=True):
            manifest = came.manifest
            if serving is not None and manifest.version <= serving.version and came is not self._waiting:
                if manifest.version < serving.version or manifest.sha256 != serving.sha256:
                    self._refuse_old(came)
                return []
            try:
                self._take(manifest, chunks)
                self._waiting = came if self._knows_not_all(manifest) else None
                return []
            except Refused as refused:
                self._refuse(came, refused)
            except Unreachable as error:
                log.debug("snapshot %d: %s; trying again", manifest.version, error)
                return list(found)  # the older ones too: this one may prove unusable when the broker is back
        return []

    def _refuse_old(self, came: Came) -> None:
        """An old version rightly signed is one thing, a forgery that says it is old another: the checks tell which."""
        try:
            check_manifest(came.manifest, self._verify, self._trusted.value)
        except Refused as refused:
            self._refuse(came, refused)

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
        log.info(
            "snapshot %d serves (%d bytes, %.0f ms)",
            policy.version,
            manifest.size_bytes,
            1e3 * (time.monotonic() - started_s),
        )
        if self._on_swap is not None:
            self._on_swap(policy)

    def _knows_not_all(self, manifest: SnapshotManifest) -> bool:
        return self.policy is not None and len(self.policy.tasks) != len(manifest.tasks)

    def _now_known(self, manifest: SnapshotManifest) -> bool:
        serving = self.policy
        return serving is not None and any(key in self._table and key not in serving.tasks for key in manifest.tasks)

    def _cannot_read(self, raw: RawManifest, error: BadRecord | RegistryUnavailable) -> None:
        """A message that is no manifest is refused for good; one whose schema cannot be fetched now is not."""
        if isinstance(error, BadRecord):
            self._complain(f"at offset {raw.offset}", Refused("unreadable-manifest", str(error)))
            self._tell(raw, error.reason, error.detail)
        else:
            self._complain(f"at offset {raw.offset}", Refused("unreadable-manifest", f"will be tried again: {error}"))

    def _refuse(self, came: Came, refused: Refused) -> None:
        self._complain(str(came.manifest.version), refused)
        if refused.reason not in NOT_OF_THE_RECORD:
            self._tell(came.raw, refused.reason, f"version {came.manifest.version}: {refused.detail}")

    def _tell(self, raw: RawManifest, reason: str, detail: str) -> None:
        """A dead letter, once per message and reason."""
        if _is_new((str(raw.offset), reason), self._told):
            where = (self._topic, 0, raw.offset)
            self.untold.append(letter_of(where, raw.payload, raw.time_ms, reason, detail))

    def _complain(self, which: str, refused: Refused) -> None:
        """Count and log a refusal, once per snapshot and reason; `which` is its version, or where it stood."""
        if not _is_new((which, refused.reason), self._complained):
            return
        serving = self.policy
        self.refused = True
        log.error(
            "snapshot %s refused: %s; %s",
            which,
            refused,
            f"version {serving.version} goes on serving" if serving else "the baseline serves",
        )
        self._count(refused.reason)

    def _count(self, reason: str) -> None:
        if self._on_refused is not None:
            self._on_refused(reason)


def _is_new(key: tuple[str, str], seen: set[tuple[str, str]]) -> bool:
    """Whether `key` was not in `seen`, where it is from now on."""
    if key in seen:
        return False
    if len(seen) >= REMEMBERED_MAX:
        seen.clear()
    seen.add(key)
    return True
