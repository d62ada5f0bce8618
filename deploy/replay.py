"""`headrace replay`: find a published version, rebuild it from the log, compare. The shell around `learner.rebuild`.

Loads torch. Its process runs under the pins of `learner.environment`, as a learner does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from deploy import reading
from learner import environment
from learner.consume import first_positions, require_topics
from learner.definitions import Definitions
from learner.environment import GENESIS
from learner.namespace import RowLearner
from learner.rebuild import Goal, Rebuild, before, opened, starts_of
from learner.settings import LearnerSettings
from schemas import weights as tensors
from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.records import SnapshotManifest
from schemas.registry import Registry, open_registry
from schemas.signing_keys import load_public_key
from schemas.task import Task
from schemas.topics import topic

DEFINITIONS_S_MAX = 15.0
STEP = 256
"""Manifests read at first when going backwards; four times as many at each further step."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One version as published and as rebuilt. Plain values but for `payload`."""

    version: int
    cut_number: int
    genesis: str
    start: str
    """Checkpoint, or nothing."""
    start_version: int
    """Version of that state; learning went on from there."""
    num_records: int
    """Records read from the log."""
    seconds: float
    published_sha256: str
    rebuilt_sha256: str
    published_chain: str
    """Hash chain over all cuts of the history up to this one."""
    rebuilt_chain: str
    changed: list[str]
    """Differences between the recorded environment and this one; bits are promised only without any."""
    payload: bytes
    """The rebuilt snapshot."""

    @property
    def is_equal(self) -> bool:
        """Bit for bit the published snapshot, by way of the same cuts."""
        published, rebuilt = (self.published_sha256, self.published_chain), (self.rebuilt_sha256, self.rebuilt_chain)
        return published == rebuilt

    def as_json(self) -> dict[str, Any]:
        """For programs; without the payload."""
        fields = {name: value for name, value in asdict(self).items() if name != "payload"}
        return {"equal": self.is_equal, **fields, "size_bytes": len(self.payload)}


def replay(
    settings: LearnerSettings,
    version: int,
    from_earliest: bool = False,
    make: Callable[[Task], RowLearner] | None = None,
) -> Replayed:
    """Rebuild `version` and compare it with its manifest. `make` builds a task's learner (the tests have their own).

    Starts at the newest state before the version, `from_earliest` at the earliest there is. Raises UserError when the
    version was never published, is out of reach (the earliest within reach is named), or the broker is away.
    """
    began_s = time.monotonic()
    registry = open_registry(settings.schema_registry_url)
    name = topic(settings.namespace, "transitions")
    identity = require_topics(settings, [name, topic(settings.namespace, "tasks")])[name]
    goal = Goal(_manifest(settings, registry, version))
    device = settings.device if settings.device != "auto" else goal.manifest.environment.get("device", "auto")
    device = environment.configure(settings.threads, device)
    spans = [reading.span_of(settings, name, partition) for partition in range(identity.num_partitions)]
    beginning = None
    with contextlib.suppress(UserError):  # nothing left to begin with: a checkpoint may still do
        beginning = first_positions(settings, registry, identity.num_partitions)
    lows = [low for low, _ in spans]
    starts = before(goal, starts_of(goal, settings.checkpoints, identity.topic_id, beginning, lows))
    start, found = opened(goal, starts if from_earliest else starts[::-1])
    definitions = Definitions(settings, registry)
    try:
        definitions.read_to_end(DEFINITIONS_S_MAX)
        rebuild = Rebuild(
            settings, registry, goal, start, found, definitions.find, make or _make(device), identity.num_partitions
        )
        snapshot = rebuild.run([end for _, end in spans])
    finally:
        definitions.close()
    recorded = {key: value for key, value in goal.manifest.environment.items() if key != GENESIS}
    rules = {key: recorded[key] for key in ("bucket_ms", "publish_ms", "publish_bytes_per_s")}
    described = environment.describe(settings.threads, device) | rules
    return Replayed(
        version=version,
        cut_number=goal.manifest.cut_number,
        genesis=goal.genesis,
        start=start.where,
        start_version=start.cut.version,
        num_records=rebuild.num_records,
        seconds=round(time.monotonic() - began_s, 3),
        published_sha256=goal.manifest.sha256.hex(),
        rebuilt_sha256=snapshot.draft.sha256.hex(),
        published_chain=goal.manifest.chain_hash.hex(),
        rebuilt_chain=snapshot.draft.chain_hash.hex(),
        changed=environment.differences(recorded, described),
        payload=snapshot.payload,
    )


def _make(device: str) -> Callable[[Task], RowLearner]:
    from learner.update import TaskLearner

    return lambda task: TaskLearner(task, device)


def _manifest(settings: LearnerSettings, registry: Registry, version: int) -> SnapshotManifest:
    """The first manifest of a version of the channel: the one that readers took. Raises UserError for none.

    With a public key only those count that it signed: no other hides them, nor ends the search.
    """
    name = topic(settings.namespace, "snapshots")
    key = load_public_key(settings.public_key) if settings.public_key is not None else None
    first, start = reading.span_of(settings, name, 0)
    step, lowest, highest = STEP, 0, 0
    found: SnapshotManifest | None = None
    is_forged = False
    while start > first and (found is None or lowest >= version):
        start, stop, step = max(first, start - step), start, 4 * step
        part = []
        for each in _manifests(settings, registry, name, start, stop):
            if key is None or tensors.verify(each, key):
                part.append(each)
            elif each.version == version:
                is_forged = True
        found = next((each for each in part if each.version == version), found)
        versions = [each.version for each in part]
        lowest, highest = min(versions, default=lowest), max([*versions, highest])
        if found is None and versions and lowest < version:
            break
    if found is not None:
        return found
    if is_forged:
        raise UserError(
            f"the manifest of version {version} is not signed with {settings.public_key}",
            "name the key that the learner signs with, or do not trust this manifest",
        )
    there = f"published are {lowest} to {highest}, not all of them" if highest else "none is"
    raise UserError(
        f"version {version} was never published in {name} (channel {settings.channel}; {there})",
        "a learner in catch-up publishes only its newest cut: take a version that `headrace status` or a decision "
        "names",
    )


def _manifests(
    settings: LearnerSettings, registry: Registry, name: str, start: int, stop: int
) -> Iterator[SnapshotManifest]:
    for entry in reading.read_span(settings, name, 0, start, stop):
        with contextlib.suppress(BadRecord):
            manifest: SnapshotManifest = decode(entry.value, registry, expect=SnapshotManifest)
            if manifest.channel == settings.channel:
                yield manifest
