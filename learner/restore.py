"""Restore: from checkpoint and topics to a learner that goes on where its predecessor, or nobody, left off.

Owns the document inside a checkpoint and the three ways to begin: at a checkpoint of this very log; anew at the log's
beginning (the same history again: the same cuts, versions and bytes); or anew at what is left of the log (another
history: its versions go on above the highest one published).
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from learner import checkpoint, environment
from learner.checkpoint import Checkpoint
from learner.consume import TopicIdentity, first_positions
from learner.cuts import CutRules, CutState
from learner.definitions import Definitions
from learner.environment import GENESIS, LINEAGE_BREAK
from learner.manifest_size import MANIFEST_BYTES_MAX, size_of
from learner.merge import Merge, Position
from learner.namespace import NamespaceLearner, RowLearner, Snapshot, UnknownTask
from learner.published import Published, read_published
from learner.settings import LearnerSettings
from schemas import codec
from schemas.errors import UserError
from schemas.records import SnapshotManifest
from schemas.registry import Registry
from schemas.task import Namespace, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a process begins."""

    merge: Merge
    learner: NamespaceLearner
    published: Published
    has_broken: bool
    """Its history goes on in another environment than it had: worth a checkpoint at once."""


def restore(
    settings: LearnerSettings,
    registry: Registry,
    definitions: Definitions,
    namespace: Namespace,
    identity: TopicIdentity,
    described: dict[str, str],
    key: Ed25519PublicKey,
    make: Callable[[Task], RowLearner],
) -> Restored:
    """Begin at the newest good checkpoint of this log, else anew. Raises UserError.

    Of what is published only that is believed which `key`, the learner's own, has signed.
    """
    rules = CutRules(namespace.bucket_ms, namespace.publish_ms, settings.publish_bytes_per_s)
    described = described | {
        "bucket_ms": str(rules.bucket_ms),
        "publish_ms": str(rules.publish_ms),
        "publish_bytes_per_s": str(rules.publish_bytes_per_s),
    }
    found = checkpoint.newest(settings.checkpoints)
    if found is not None and found.document["topic_id"] != identity.topic_id:
        log.warning(
            "the checkpoints in %s belong to another log (topic id %s, here %s): learning starts anew",
            settings.checkpoints,
            found.document["topic_id"],
            identity.topic_id,
        )
        found = None
    learner = NamespaceLearner(make, definitions.find, rules, CutState(), described, settings.channel)
    before: dict[str, str] = {}
    if found is None:
        positions = first_positions(settings, registry, identity.num_partitions)
        published = read_published(settings, registry, settings.channel, key, 0)
        learner.cut = start_of(positions, published)
        newest = published.newest
        if newest is not None and newest.environment.get(GENESIS) == learner.cut.genesis:
            before = {name: value for name, value in newest.environment.items() if name != GENESIS}
    else:
        before = found.document["environment"]
        positions = of_checkpoint(found, learner, registry)
        published = read_published(settings, registry, settings.channel, key, learner.cut.version)
        cut = _rebased(learner.cut, published)
        if cut != learner.cut:
            learner.cut, learner.last = cut, None
    has_broken = _keep_or_break_lineage(learner, before, published, settings.allow_lineage_break)
    return Restored(Merge(identity.num_partitions, rules.bucket_ms, positions), learner, published, has_broken)


def _keep_or_break_lineage(
    learner: NamespaceLearner, before: dict[str, str], published: Published, allow: bool
) -> bool:
    """learning.md rule 22: in another environment the same log gives other bits, so it is another history.

    Versions go on above everything published, `lineage_break` in all later manifests says from where and why. Raises
    UserError unless that is allowed.
    """
    if LINEAGE_BREAK in before:
        learner.environment[LINEAGE_BREAK] = before[LINEAGE_BREAK]
    changed = environment.differences(before, learner.environment) if before else []
    if not changed:
        return False
    version, reason = learner.cut.version, "; ".join(changed)
    if not allow:
        raise UserError(
            f"this environment is not the one in which version {max(version, published.version)} was learnt: {reason}",
            "bring that environment back, or start with --allow-lineage-break: later versions are then another "
            "lineage, and their manifests say so",
        )
    learner.environment[LINEAGE_BREAK] = f"after cut {learner.cut.number} of {learner.cut.genesis}: {reason}"
    base = max(version, published.version) - learner.cut.number
    learner.cut, learner.last = learner.cut.broken(reason, base), None
    log.warning("lineage breaks after version %d, as allowed: %s", base + learner.cut.number, reason)
    return True


def start_of(positions: list[Position], published: Published) -> CutState:
    """The cut state of a learner without a checkpoint."""
    cut, newest = CutState.start(positions, 0), published.newest
    if newest is None:
        return cut
    if newest.environment.get(GENESIS) == cut.genesis:
        return replace(cut, version_base=newest.version - newest.cut_number)
    log.warning(
        "no checkpoint, and the log no longer begins where version %d's history does: learning starts anew, "
        "versions go on at %d",
        newest.version,
        newest.version + 1,
    )
    return replace(cut, version_base=newest.version)


def _rebased(cut: CutState, published: Published) -> CutState:
    """Another history was published since this checkpoint was written: go on above it."""
    newest = published.newest
    if newest is None or newest.environment.get(GENESIS) == cut.genesis or newest.version <= cut.version:
        return cut
    log.warning("version %d was published by another history: versions go on above it", newest.version)
    return replace(cut, version_base=newest.version - cut.number)


def to_checkpoint(learner: NamespaceLearner, merge: Merge, topic_id: str, registry: Registry) -> Checkpoint:
    """Everything that decides the future, as owned copies.

    A snapshot whose manifest is too large for a message is left out: it can never be uploaded (`learner.publish` says
    so), and state that is learnt must not hang on it.
    """
    arrays, values = learner.state()
    document: dict[str, Any] = {
        "format": 1,
        "topic_id": topic_id,
        "environment": learner.environment,
        "learner": values,
        "positions": [_to_json(position) for position in merge.positions()],
    }
    if learner.last is not None and size_of(learner.last.draft, 0, registry) <= MANIFEST_BYTES_MAX:
        document["draft"] = b64encode(codec.encode(learner.last.draft, registry)).decode()
        arrays["last/payload"] = np.frombuffer(learner.last.payload, np.uint8)
    return Checkpoint(arrays, document)


def of_checkpoint(found: Checkpoint, learner: NamespaceLearner, registry: Registry) -> list[Position]:
    """Put the state into a new `learner`; returns where to read on. Raises UserError for a task that is not there."""
    document = found.document
    arrays = dict(found.arrays)
    payload = arrays.pop("last/payload", None)
    try:
        learner.load_state(arrays, document["learner"])
    except UnknownTask as error:
        raise UserError(
            f"the checkpoint holds a task that the tasks topic does not: {error.fingerprint.hex()}",
            "apply its definition again, or move the checkpoint folder away to learn anew from the log",
        ) from error
    if payload is not None:
        draft = codec.decode(b64decode(document["draft"]), registry, expect=SnapshotManifest)
        assert isinstance(draft, SnapshotManifest)
        learner.last = Snapshot(draft, payload.tobytes())
    return positions_of(document)


def positions_of(document: dict[str, Any]) -> list[Position]:
    """Where the log goes on after a checkpoint."""
    return [_of_json(value) for value in document["positions"]]


def _to_json(position: Position) -> dict[str, Any]:
    hwm = [[fingerprint.hex(), kind, mark] for (fingerprint, kind), mark in sorted(position.hwm.items())]
    return {
        "partition": position.partition,
        "offset": position.offset,
        "time_ms": position.time_ms,
        "hwm": hwm,
        "taken_offset": position.taken_offset,
    }


def _of_json(value: dict[str, Any]) -> Position:
    hwm = {(bytes.fromhex(fingerprint), kind): mark for fingerprint, kind, mark in value["hwm"]}
    return Position(value["partition"], value["offset"], value["time_ms"], hwm, value["taken_offset"])
