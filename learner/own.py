"""Own: which messages of the `snapshots` topic are manifests of one channel, signed by the learner's own key. Pure.

Whoever may write there can write a manifest, and a version, a history or an environment that is believed decides what
a learner does next. So every manifest that the learner reads passes here, at its start and while it runs.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas import weights as tensors
from schemas.codec import BadRecord, decode
from schemas.records import SnapshotManifest
from schemas.registry import Registry


class Foreign(ValueError):
    """A message that this learner's key did not sign, or that is no manifest; says which."""


def own_manifest(payload: bytes, registry: Registry, channel: str, key: Ed25519PublicKey) -> SnapshotManifest | None:
    """The manifest if `key` signed it, None for one of another channel, whose key may be another one.

    Raises Foreign, and RegistryUnavailable while the schema cannot be fetched.
    """
    try:
        manifest = decode(payload, registry, expect=SnapshotManifest)
    except BadRecord as error:
        raise Foreign(str(error)) from error
    assert isinstance(manifest, SnapshotManifest)
    if manifest.channel != channel:
        return None
    if not tensors.verify(manifest, key):
        raise Foreign(f"version {manifest.version} is not signed with this learner's key")
    return manifest
