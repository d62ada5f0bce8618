"""Uploads: which snapshots go to the publisher, and what to do with those that stand in the topic already.

Every cut passes here. After a restart the cuts between checkpoint and the newest published version are made again: they
are compared with what was published and not published twice. In catch-up only the newest is worth an upload.

What others publish meanwhile (a second learner, by mistake) is compared too: the same bytes do no harm and spare us an
upload, other bytes under one version are an equivocation, whichever of the two came first.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from learner import environment
from learner.namespace import Snapshot
from learner.published import Entry, Published
from schemas.records import SnapshotManifest
from schemas.telemetry import Metrics

log = logging.getLogger(__name__)

BEHIND_PUBLISH_S = 5.0
"""Even a long catch-up serves something this often."""
MADE_MAX = 4096
"""Own cuts remembered, for comparison with manifests that come later: half an hour of them at two a second."""


class TakesSnapshots(Protocol):
    """What is needed of `learner.publish.Publisher`."""

    def submit(self, snapshot: Snapshot) -> None:
        """Upload it unless a newer one comes first."""

    def adopt(self, snapshot: Snapshot, age_s: float) -> None:
        """It stands in the topic already."""


class Uploads:
    """Between the cuts and the publisher."""

    def __init__(self, publisher: TakesSnapshots, published: Published, metrics: Metrics) -> None:
        """`published` is what the topic held at the start."""
        self._publisher, self._published, self._metrics = publisher, published, metrics
        self._made: dict[int, bytes] = {}
        """sha256 of own cuts by version, oldest first."""
        self._seen: set[int] = set()
        """Versions that somebody published since the start and that we have not made yet."""
        self._deferred: Snapshot | None = None
        self._submitted_at = -BEHIND_PUBLISH_S

    def offer(self, snapshot: Snapshot, is_behind: bool) -> None:
        """A cut was made; `is_behind` tells that much of the log is still unread."""
        version = snapshot.draft.version
        self._made[version] = snapshot.draft.sha256
        if len(self._made) > MADE_MAX:
            del self._made[next(iter(self._made))]
        if version <= self._published.version:
            entry = self._published.entries.get(version)
            if entry is not None:
                self._compare(snapshot, entry)
        elif is_behind and time.monotonic() - self._submitted_at < BEHIND_PUBLISH_S:
            if self._deferred is not None:
                self._metrics.add("headrace_learner_snapshots_overtaken")
            self._deferred = snapshot
        else:
            self._submit(snapshot)

    def saw(self, manifest: SnapshotManifest, time_ms: int) -> None:
        """A manifest of our channel came at `time_ms` (append time): our own, or somebody else's."""
        version = manifest.version
        made = self._made.get(version)
        if made is not None:
            if made != manifest.sha256:
                self._metrics.add("headrace_learner_equivocations")
                log.error(
                    "equivocation: version %d is published with sha256 %s…, made here with %s…; another learner runs "
                    "in this namespace and learns something else: stop one of them",
                    version,
                    manifest.sha256.hex()[:16],
                    made.hex()[:16],
                )
        elif version > max(self._made, default=0):
            self._published.entries.setdefault(version, Entry(manifest.sha256, manifest.environment, time_ms))
            self._seen.add(version)
            if version > self._published.version:  # workers take nothing below it any more
                self._published.newest = manifest

    def settle(self) -> None:
        """The log is read: whatever waited for that goes up now."""
        if self._deferred is not None:
            self._submit(self._deferred)

    def _submit(self, snapshot: Snapshot) -> None:
        self._deferred = None
        self._submitted_at = time.monotonic()
        self._publisher.submit(snapshot)

    def _compare(self, snapshot: Snapshot, entry: Entry) -> None:
        """The same bytes as published, or an alarm."""
        if entry.sha256 == snapshot.draft.sha256:
            if snapshot.draft.version == self._published.version:
                self._publisher.adopt(snapshot, max(0.0, time.time() - entry.time_ms / 1000))
            return
        changed = environment.differences(entry.environment, snapshot.draft.environment)
        if not changed or snapshot.draft.version in self._seen:
            self._metrics.add("headrace_learner_equivocations")
        log.log(
            logging.WARNING if changed else logging.ERROR,
            "version %d is published with sha256 %s…, made again here with %s…; the published one stays (%s)",
            snapshot.draft.version,
            entry.sha256.hex()[:16],
            snapshot.draft.sha256.hex()[:16],
            "; ".join(changed) or "equal environments: bit identity is broken on this machine",
        )
