"""Weights as bytes: safetensors with every bound checked before an array is made, and signed manifests.

The format is that of the safetensors library (an 8-byte little-endian header length, a JSON header, the arrays) and
the library reads what is written here and the other way round (tests). The bytes are ours because the library's
order of metadata is random, and a snapshot's hash must be a function of its content. Never pickle.

Reading trusts nothing: header size, tensor count, names, dtypes, shapes against sizes, offsets that neither overlap
nor leave holes nor reach beyond the payload, finite values. A signature covers the manifest, the manifest the sha256
of the payload; this file checks what is inside.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.records import SnapshotManifest
from schemas.signing_keys import create_keys
from schemas.task import canonical_json

__all__ = ["create_keys"]  # the files of the keys stand in `schemas.signing_keys`

Array = npt.NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""All that policies and checkpoints are made of; anything else is refused."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_DOMAIN = b"headrace/snapshot-manifest/1\0"
"""Signed before the manifest: a signature of something else can never pass for one of a manifest."""


@dataclass(frozen=True, slots=True)
class WeightLimits:
    """What a payload may hold at most."""

    header_bytes: int = 1 << 20
    tensors: int = 16_384
    rank: int = 8
    name_bytes: int = 256
    total_bytes: int = 1 << 30


LIMITS = WeightLimits()


class BadWeights(ValueError):
    """A payload that is no acceptable safetensors. `reason` is a code for counting, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes: a function of names, values and metadata alone, not of their order.

    Raises BadWeights for a dtype that is not in `DTYPES` and for values that are not finite.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # widest first keeps all aligned
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    pieces, offset = [], 0
    for name in order:
        array = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        if array.dtype not in _CODES:
            raise BadWeights("dtype", f"array {name!r} is {array.dtype}, expected one of {', '.join(DTYPES)}")
        _check_values(name, array)
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        pieces.append(array.tobytes())
        offset += array.nbytes
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *pieces])


def unpack(payload: bytes | memoryview, limits: WeightLimits = LIMITS) -> tuple[dict[str, Array], dict[str, str]]:
    """(arrays, metadata) of a payload. The arrays are read-only views of it. Raises BadWeights."""
    view = memoryview(payload)
    if len(view) > limits.total_bytes:
        raise BadWeights("too-large", f"expected at most {limits.total_bytes} bytes, got {len(view)}")
    if len(view) < 8:
        raise BadWeights("truncated", f"expected 8 bytes of header length, got {len(view)}")
    (size,) = struct.unpack_from("<Q", view)
    if size > limits.header_bytes:
        raise BadWeights("too-large", f"expected a header of at most {limits.header_bytes} bytes, got {size}")
    if 8 + size > len(view):
        raise BadWeights("truncated", f"the header ends at {8 + size}, the payload at {len(view)}")
    header = _header(bytes(view[8 : 8 + size]))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadWeights("header", "expected metadata to be text by text")
    if len(header) > limits.tensors:
        raise BadWeights("too-many-tensors", f"expected at most {limits.tensors}, got {len(header)}")
    places = [_place(name, entry, limits) for name, entry in header.items()]
    _check_cover(places, len(view) - 8 - size)
    arrays = {place.name: _array(place, view[8 + size :]) for place in places}
    return arrays, metadata


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(text: bytes) -> dict[str, Any]:
    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise BadWeights("header", f"{key!r} stands there twice")
            found[key] = value
        return found

    try:
        header = json.loads(text, object_pairs_hook=once)
    except BadWeights:
        raise
    except (ValueError, RecursionError) as error:
        raise BadWeights("header", f"no JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadWeights("header", "expected a JSON object")
    return header


def _place(name: str, entry: Any, limits: WeightLimits) -> _Place:
    if len(name.encode("utf-8", "replace")) > limits.name_bytes:
        raise BadWeights("header", f"expected names of at most {limits.name_bytes} bytes, got {name[:40]!r}…")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadWeights("header", f"tensor {name!r}: expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise BadWeights("dtype", f"tensor {name!r}: expected one of {', '.join(DTYPES)}, got {str(code)[:40]!r}")
    if not _sizes(shape) or len(shape) > limits.rank:
        raise BadWeights("shape", f"tensor {name!r}: expected at most {limits.rank} sizes, got {str(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadWeights("offsets", f"tensor {name!r}: expected [begin, end], got {str(offsets)[:80]}")
    dtype = DTYPES[code]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        detail = f"tensor {name!r}: {code} {shape} does not take {offsets[1] - offsets[0]} bytes"
        raise BadWeights("shape", detail)
    return _Place(name, dtype, tuple(shape), *offsets)


def _sizes(value: Any) -> bool:
    """Whether `value` is a list of whole numbers that can be sizes (JSON's true is none, 2^63 neither)."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def _check_cover(places: list[_Place], size: int) -> None:
    """The tensors must cover the data from first to last byte, each byte once."""
    expected = 0
    for place in sorted(places, key=lambda place: (place.begin, place.end)):
        if place.begin != expected:
            raise BadWeights("offsets", f"tensor {place.name!r} starts at {place.begin}, expected {expected}")
        expected = place.end
    if expected != size:
        reason = "truncated" if expected > size else "trailing-bytes"
        raise BadWeights(reason, f"the tensors take {expected} bytes, the payload has {size}")


def _array(place: _Place, view: memoryview) -> Array:
    part = view[place.begin : place.end]
    if place.dtype == np.bool_ and (np.frombuffer(part, np.uint8) > 1).any():
        raise BadWeights("bool", f"tensor {place.name!r} holds bytes other than 0 and 1")
    array: Array = np.frombuffer(part, place.dtype).reshape(place.shape)
    if not array.flags.aligned:  # a foreign writer's order; products over such a view would be slow
        array = array.copy()
    _check_values(place.name, array)
    array.flags.writeable = False
    return array


def _check_values(name: str, array: Array) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadWeights("not-finite", f"tensor {name!r} holds NaN or infinity")


def sha256(payload: bytes | memoryview) -> bytes:
    """32 bytes."""
    return hashlib.sha256(payload).digest()


def signed_bytes(manifest: SnapshotManifest) -> bytes:
    """What a signature covers: the domain, then the manifest without its signature as canonical JSON, bytes in hex."""
    fields = asdict(replace(manifest, signature=b""))
    return _DOMAIN + canonical_json(_plain(fields)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def sign(manifest: SnapshotManifest, private_key: Ed25519PrivateKey) -> SnapshotManifest:
    """The manifest with its signature (Ed25519, RFC 8032: deterministic)."""
    return replace(manifest, signature=private_key.sign(signed_bytes(manifest)))


def verify(manifest: SnapshotManifest, public_key: Ed25519PublicKey) -> bool:
    """Whether the manifest carries the signature of the key's owner."""
    try:
        public_key.verify(manifest.signature, signed_bytes(manifest))
    except InvalidSignature:
        return False
    return True
