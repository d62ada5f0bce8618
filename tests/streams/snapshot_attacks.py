"""Mutations of a published snapshot, each with the reason for which a reader must refuse it.

An attack without the key can alter what travels; an attack with the key (a learner gone wrong) can sign anything but
what a reader would load. Every mutation is a function of a seed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner.policy import probes
from schemas import weights as tensors
from schemas.codec import BadRecord, decode, encode
from schemas.records import SnapshotManifest
from schemas.registry import FileRegistry
from schemas.task import Task

REGISTRY = FileRegistry()
CHUNK_BYTES = 900 * 1024
Arrays = dict[str, Any]


@dataclass
class Sent:
    """What stands in the two topics: a manifest's bytes, and the chunks that its offsets lead to."""

    manifest: bytes
    chunks: list[bytes]
    reason: str = ""
    """For which it must be refused."""
    detail: str = ""
    """Part of the sentence."""
    is_gone: bool = False
    """The chunks are not in the log (any more)."""


@dataclass
class Forge:
    """Makes snapshots of one task and spoils them."""

    task: Task
    key: Ed25519PrivateKey
    inputs: probes.ProbeInputs
    arrays: Callable[[Random], Arrays]
    """Weights of the task's network."""
    padding: bytes = field(default=b"")
    """Of a task that no worker knows: makes several chunks of it."""

    def make(
        self,
        version: int,
        rng: Random,
        payload: Callable[[bytes], bytes] = lambda payload: payload,
        manifest: Callable[[SnapshotManifest], SnapshotManifest] = lambda manifest: manifest,
        arrays: Callable[[Arrays], Arrays] = lambda arrays: arrays,
        padding: bytes | None = None,
        sign: bool = True,
    ) -> Sent:
        """A good snapshot unless a hook spoils it: before packing, before hashing, before signing."""
        weights = self.arrays(rng)
        prefix = self.task.fingerprint.hex()
        packed = {f"{prefix}/{name}": array for name, array in arrays(dict(weights)).items()}
        filler = self.padding if padding is None else padding
        if filler:
            packed[f"{'0' * 32}/padding"] = np.frombuffer(filler, np.uint8)
        content = payload(tensors.pack(packed, {}))
        chunks = [content[start : start + CHUNK_BYTES] for start in range(0, max(1, len(content)), CHUNK_BYTES)]
        keyed = {self.task.fingerprint: weights}
        draft = SnapshotManifest(
            version=version,
            parent_sha256=b"",
            sha256=tensors.sha256(content),
            size_bytes=len(content),
            chunk_offsets=tuple(range(len(chunks))),
            cut_ms=version,
            trained=(),
            chain_hash=b"\0" * 32,
            cut_number=version,
            tasks=(self.task.fingerprint,),
            environment={"genesis": "g"},
            rows_learnt={prefix: version},
            probes=probes.pack({self.task.fingerprint: self.inputs}, {self.task.fingerprint: self.task}, keyed),
            channel="main",
        )
        draft = manifest(draft)
        return Sent(encode(tensors.sign(draft, self.key) if sign else draft, REGISTRY), chunks)


def manifest_of(sent: Sent) -> SnapshotManifest:
    manifest = decode(sent.manifest, REGISTRY, expect=SnapshotManifest)
    assert isinstance(manifest, SnapshotManifest)
    return manifest


def caps_broken(manifest: SnapshotManifest) -> bool:
    """The first check, written once more: what is too large is refused before any signature is looked at."""
    sizes = not 0 < manifest.size_bytes <= 1 << 30
    num_chunks = (manifest.size_bytes + CHUNK_BYTES - 1) // CHUNK_BYTES
    return sizes or len(manifest.chunk_offsets) != num_chunks or len(manifest.tasks) > 4096


def refused_unsigned(sent: Sent, good: SnapshotManifest) -> Sent | None:
    """`sent` with the reason that bytes altered after signing must give; None when they decode to the same."""
    try:
        found = manifest_of(sent)
    except BadRecord:
        return replace(sent, reason="unreadable-manifest")
    if found == good:
        return None
    if caps_broken(found):
        return replace(sent, reason="too-large")
    return replace(sent, reason="bad-signature" if found.signature else "no-signature")


Attack = Callable[["Forge", int, Random, Sent], Sent | None]
"""(forge, the version to come, seed, an older rightly signed snapshot) → what is sent."""


def flip_manifest(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    spoilt = bytearray(sent.manifest)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return refused_unsigned(replace(sent, manifest=bytes(spoilt)), manifest_of(sent))


def truncate_manifest(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    return replace(sent, manifest=sent.manifest[: rng.randrange(len(sent.manifest))], reason="unreadable-manifest")


def lengthen_manifest(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    return replace(sent, manifest=sent.manifest + rng.randbytes(rng.randint(1, 64)), reason="unreadable-manifest")


def alter_field(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """One field of a rightly signed manifest, the signature left as it was."""
    sent = forge.make(version, rng)
    good = manifest_of(sent)
    changes: dict[str, Any] = {
        "version": rng.choice((version + 1, 2**63 - 1, 2**62, -1, 0)),
        "parent_sha256": rng.randbytes(32),
        "sha256": rng.randbytes(32),
        "size_bytes": good.size_bytes + 1,
        "chunk_offsets": tuple(offset + 1 for offset in good.chunk_offsets),
        "cut_ms": good.cut_ms + rng.choice((-1, 1, 2**40)),
        "chain_hash": rng.randbytes(32),
        "cut_number": good.cut_number + 1,
        "tasks": rng.choice(((), (rng.randbytes(16),), good.tasks * 2)),
        "environment": {"genesis": "another"},
        "rows_learnt": {},
        "probes": b"",
        "channel": "other",
    }
    name = rng.choice(sorted(changes))
    altered = replace(good, **{name: changes[name]})
    return refused_unsigned(replace(sent, manifest=encode(altered, REGISTRY)), good)


def too_large(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Caps hold even against the key."""
    good = manifest_of(forge.make(version, rng))
    change: dict[str, Any] = rng.choice(
        (
            {"size_bytes": rng.choice((0, -1, (1 << 30) + 1, 1 << 62, 2**63 - 1))},
            {"chunk_offsets": (*good.chunk_offsets, 9)},
            {"chunk_offsets": good.chunk_offsets[1:]},
            {"tasks": good.tasks * 5000},
        )
    )
    sent = forge.make(version, rng, manifest=lambda manifest: replace(manifest, **change))
    return replace(sent, reason="too-large")


def version_2_63(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """A version that no Avro long can hold, in place of the real one."""
    sent = forge.make(version, rng)
    zigzag, varint = 2**64 + rng.choice((0, 2, 2**10)), bytearray()
    while zigzag >= 0x80:
        varint.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    varint.append(zigzag)
    before = encode(replace(manifest_of(sent), version=0), REGISTRY)
    assert before[5] == 0, "version is the first field"
    return replace(sent, manifest=before[:5] + bytes(varint) + before[6:], reason="unreadable-manifest")


def unsigned(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    return replace(forge.make(version, rng, sign=False), reason="no-signature")


def wrong_key(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Everything right, signed by somebody else."""
    other = replace(forge, key=Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)))
    return replace(other.make(version, rng), reason="bad-signature")


def others_signature(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """A signature of the right key, of another manifest."""
    sent = forge.make(version, rng)
    mixed = replace(manifest_of(sent), signature=manifest_of(old).signature)
    return replace(sent, manifest=encode(mixed, REGISTRY), reason="bad-signature")


def bent_signature(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    good = manifest_of(sent)
    signature = bytearray(good.signature)
    signature[rng.randrange(64)] ^= 1 << rng.randrange(8)
    kept = bytes(signature)[: rng.choice((64, 64, 63, 32, 1))]
    return replace(sent, manifest=encode(replace(good, signature=kept), REGISTRY), reason="bad-signature")


def old_version(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    return replace(old, reason="old-version")


def version_again(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Another content under the version that serves, rightly signed: equivocation."""
    sent = forge.make(version - 1, rng, padding=rng.randbytes(64))
    return replace(sent, reason="old-version")


def flip_chunk(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    which = rng.randrange(len(sent.chunks))
    spoilt = bytearray(sent.chunks[which])
    spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    chunks = [*sent.chunks[:which], bytes(spoilt), *sent.chunks[which + 1 :]]
    return replace(sent, chunks=chunks, reason="wrong-sha256")


def truncate_chunk(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    sent = forge.make(version, rng)
    which = rng.randrange(len(sent.chunks))
    short = sent.chunks[which][: rng.randrange(len(sent.chunks[which]))]
    more = sent.chunks[which] + rng.randbytes(rng.randint(1, 9))
    chunks = [*sent.chunks[:which], rng.choice((short, more)), *sent.chunks[which + 1 :]]
    return replace(sent, chunks=chunks, reason="wrong-size")


def swap_chunks(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Chunks in another order, or one of them twice and another not at all."""
    sent = forge.make(version, rng, padding=rng.randbytes(1 << 16) * 29)
    first, second, third = sent.chunks
    chunks = rng.choice(([second, first, third], [first, first, third], [second, second, third]))
    return replace(sent, chunks=chunks, reason="wrong-sha256")


def others_chunks(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """The chunks of another snapshot of the same size."""
    other = forge.make(version, Random(rng.random()))
    return replace(forge.make(version, rng), chunks=other.chunks, reason="wrong-sha256")


def missing_chunk(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    return replace(forge.make(version, rng), is_gone=True, reason="missing-chunk")


def not_finite(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """NaN or infinity somewhere in the weights, hashed and signed by the right key."""
    names = sorted(name for name, array in forge.arrays(rng).items() if array.dtype.kind == "f" and array.size)
    name, bad = rng.choice(names), rng.choice((np.nan, np.inf, -np.inf))
    mark = 1.2345678912345e-300

    def spoil(arrays: Arrays) -> Arrays:
        array = np.array(arrays[name])
        array.reshape(-1)[rng.randrange(array.size)] = mark
        return arrays | {name: array}

    def nan(payload: bytes) -> bytes:
        assert payload.count(struct.pack("<d", mark)) == 1
        return payload.replace(struct.pack("<d", mark), struct.pack("<d", bad))

    return replace(forge.make(version, rng, arrays=spoil, payload=nan), reason="bad-weights", detail="NaN or infinity")


def wrong_shape(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """An array of another shape, dtype or name, hashed and signed by the right key."""
    names = sorted(name for name, array in forge.arrays(rng).items() if array.size)

    def spoil(arrays: Arrays) -> Arrays:
        name = rng.choice(names)
        array = arrays.pop(name)
        how = rng.randrange(4)
        if how == 0:
            arrays[name] = np.concatenate([array, array])
        elif how == 1:
            arrays[name] = array[..., None]
        elif how == 2:
            arrays[name] = array[:-1] if array.ndim == 1 else array[:, :-1]
        return arrays

    return replace(forge.make(version, rng, arrays=spoil), reason="bad-weights")


@cache
def _header_of(count: int) -> bytes:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{k:x}": entry for k in range(count)}, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def header_of_many(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """100,000 tensors of no bytes, or as many as fit below the limit of the header."""
    count = rng.choice((100_000, 100_000, 17_500))
    header = _header_of(count)
    detail = "header of at most" if count == 100_000 else "at most 16384"
    sent = forge.make(version, rng, payload=lambda _: struct.pack("<Q", len(header)) + header)
    return replace(sent, reason="bad-weights", detail=detail)


def bad_header(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Lengths, offsets and JSON of the payload's header that lie, hashed and signed by the right key."""

    def spoil(payload: bytes) -> bytes:
        (size,) = struct.unpack_from("<Q", payload)
        header, body = payload[8 : 8 + size], payload[8 + size :]
        how = rng.randrange(6)
        if how == 0:
            return struct.pack("<Q", rng.choice((2**63, 2**64 - 1, len(payload), 1 << 20))) + payload[8:]
        if how == 1:
            return struct.pack("<Q", size) + header.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1) + body
        if how == 2:
            return struct.pack("<Q", size) + header.replace(b"F64", b"F16", 1) + body
        if how == 3:
            return struct.pack("<Q", size) + rng.randbytes(size) + body
        if how == 4:
            return payload[: rng.randrange(1, 8)]
        return payload + rng.randbytes(8)

    return replace(forge.make(version, rng, payload=spoil), reason="bad-weights")


def missing_weights(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    own, other = forge.task.fingerprint.hex().encode(), rng.randbytes(16).hex().encode()
    sent = forge.make(version, rng, payload=lambda payload: payload.replace(own, other))
    return replace(sent, reason="missing-weights")


def probe_mismatch(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Weights of the right shapes that do not compute what the learner computed."""

    def spoil(arrays: Arrays) -> Arrays:
        wide = np.array(arrays["wide"])
        wide[0, rng.randrange(wide.shape[1])] += rng.choice((-1, 1)) * 10 ** rng.uniform(-3.5, 1)
        return arrays | {"wide": wide}

    return replace(forge.make(version, rng, arrays=spoil), reason="probes", detail="scores differ")


def probe_integers(forge: Forge, version: int, rng: Random, old: Sent) -> Sent | None:
    """Probes whose integers do not follow from their own scores, or that cannot be read."""
    name = f"{forge.task.fingerprint.hex()}/integers"

    def spoil(manifest: SnapshotManifest) -> SnapshotManifest:
        if rng.random() < 0.3:
            return replace(manifest, probes=manifest.probes[: rng.randrange(1, len(manifest.probes))])
        arrays, _ = tensors.unpack(manifest.probes)
        integers = np.array(arrays[name])
        integers[rng.randrange(len(integers))] += rng.choice((-1, 1))
        return replace(manifest, probes=tensors.pack({**arrays, name: integers}, {}))

    return replace(forge.make(version, rng, manifest=spoil), reason="probes")


ATTACKS: dict[str, tuple[Attack, int]] = {
    "bits of the manifest": (flip_manifest, 12),
    "manifest cut short": (truncate_manifest, 4),
    "manifest with more behind it": (lengthen_manifest, 2),
    "one field altered after signing": (alter_field, 12),
    "caps": (too_large, 4),
    "version 2^63": (version_2_63, 3),
    "unsigned": (unsigned, 2),
    "signed by another key": (wrong_key, 6),
    "signature of another manifest": (others_signature, 3),
    "bits of the signature": (bent_signature, 4),
    "old version": (old_version, 4),
    "version again, other content": (version_again, 4),
    "bits of a chunk": (flip_chunk, 8),
    "chunk cut short or longer": (truncate_chunk, 6),
    "chunks swapped": (swap_chunks, 1),
    "chunks of another snapshot": (others_chunks, 4),
    "chunk gone": (missing_chunk, 2),
    "NaN weights": (not_finite, 6),
    "wrong shapes": (wrong_shape, 6),
    "header of 100,000 tensors": (header_of_many, 1),
    "lying header": (bad_header, 6),
    "weights missing": (missing_weights, 3),
    "probe mismatch": (probe_mismatch, 8),
    "probe integers": (probe_integers, 4),
}
"""Every attack with its share."""
