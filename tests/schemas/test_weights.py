from __future__ import annotations

import json
import math
import stat
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from schemas.errors import UserError
from schemas.records import ChainPosition, SnapshotManifest, TrainedPosition
from schemas.signing_keys import PRIVATE_KEY_FILE, create_keys, load_private_key, load_public_key, pair_of
from schemas.weights import DTYPES, BadWeights, WeightLimits, pack, sha256, sign, unpack, verify

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], np.int64), "s": np.array(3.0)}

some_arrays = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=5),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda code: arrays_of.arrays(
            DTYPES[code],
            arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            elements=None
            if DTYPES[code].kind != "f"
            else st.floats(allow_nan=False, allow_infinity=False, width=32 if code == "F32" else 64),
        )
    ),
    max_size=5,
)


def built(header: Any, size: int = 8, text: bytes | None = None) -> bytes:
    """A payload with a header made by hand and `size` zero bytes of tensors."""
    raw = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(raw)) + raw + bytes(size)


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(some_arrays, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_packed_is_unpacked_and_the_safetensors_library_agrees(
    arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    payload = pack(arrays, metadata)
    found, text = unpack(payload)
    theirs = safetensors.numpy.load(payload)
    assert text == metadata
    assert found.keys() == arrays.keys() == theirs.keys()
    for name, array in arrays.items():
        for other in (found[name], theirs[name]):
            assert (other.dtype, other.shape) == (array.dtype, array.shape)
            assert other.tobytes() == array.tobytes()


@given(some_arrays)
def test_what_the_safetensors_library_writes_is_read(arrays: dict[str, np.ndarray]) -> None:
    found, _ = unpack(safetensors.numpy.save(arrays, {"a": "b"} if arrays else None))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_bytes_depend_on_the_content_and_not_on_its_order() -> None:
    metadata = {str(n): "x" for n in range(20)}
    backwards = dict(reversed(ARRAYS.items()))
    assert pack(ARRAYS, metadata) == pack(backwards, dict(reversed(metadata.items())))
    assert pack({"t": ARRAYS["b"].T}, {}) == pack({"t": ARRAYS["b"].T.copy()}, {})
    assert sha256(pack(ARRAYS, metadata)).hex() == "62dcdb6096b5f726cb4740b3818d1592a76ece97cf8df6ee7b116edb94ad47e9"


def test_arrays_are_aligned_read_only_views() -> None:
    found, _ = unpack(pack(ARRAYS, {}))
    for array in found.values():
        assert array.flags.aligned
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"\0" * 7, "truncated"),
        (struct.pack("<Q", 100) + b"{}", "truncated"),
        (struct.pack("<Q", 1 << 63) + b"{}", "too-large"),
        (b"\x80\x04K\x01.        ", "too-large"),
        (built(None, text=b"\xff\xff"), "header"),
        (built(None, text=b"{"), "header"),
        (built(None, text=b"[" * 200_000), "header"),
        (built(None, text=b'{"a":' * 100_000), "header"),
        (built([]), "header"),
        (built({"a": 1}), "header"),
        (built({"a": {**tensor(), "more": 1}}), "header"),
        (built({"__metadata__": {"a": 1}, "t": tensor()}), "header"),
        (built({"__metadata__": [], "t": tensor()}), "header"),
        (built({"x" * 300: tensor()}), "header"),
        (
            built(
                None, text=b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}"
            ),
            "header",
        ),
        (built({"a": tensor("F16", [4])}), "dtype"),
        (built({"a": tensor(["F32"])}), "dtype"),
        (built({"a": tensor("O", [1])}), "dtype"),
        (built({"a": tensor(shape=[3])}), "shape"),
        (built({"a": tensor(shape=[-2])}), "shape"),
        (built({"a": tensor(shape=[2.0])}), "shape"),
        (built({"a": tensor(shape=[True, 2])}), "shape"),
        (built({"a": tensor(shape="2")}), "shape"),
        (built({"a": tensor(shape=[1 << 62, 1 << 62])}), "shape"),
        (built({"a": tensor(shape=[1] * 8 + [2])}), "shape"),
        (built({"a": tensor(shape=[2] + [1] * 7)}), None),
        (built({"a": tensor(offsets=[8, 0])}), "offsets"),
        (built({"a": tensor(offsets=[0])}), "offsets"),
        (built({"a": tensor(offsets=[-8, 0])}), "offsets"),
        (built({"a": tensor(offsets=[8, 16])}, 16), "offsets"),
        (built({"a": tensor(), "b": tensor(shape=[1], offsets=[4, 8])}), "offsets"),
        (built({"a": tensor(), "b": tensor(offsets=[12, 20])}, 20), "offsets"),
        (built({"a": tensor()}, 4), "truncated"),
        (built({"a": tensor()}, 9), "trailing-bytes"),
        (built({}, 1), "trailing-bytes"),
        (built({}, 0), None),
        (built({"a": tensor("BOOL", [8])}), None),
        (built({"a": tensor("BOOL", [8])}, 0) + b"\x02" * 8, "bool"),
        (built({"a": tensor()}, 0) + struct.pack("<ff", 1.0, math.nan), "not-finite"),
        (built({"a": tensor()}, 0) + struct.pack("<ff", 1.0, -math.inf), "not-finite"),
    ],
)
def test_bad_payloads_are_refused_with_their_reason(payload: bytes, reason: str | None) -> None:
    if reason is None:
        unpack(payload)
        return
    with pytest.raises(BadWeights) as caught:
        unpack(payload)
    assert caught.value.reason == reason


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_raise_anything_but_bad_weights(noise: bytes, place: int, byte: int) -> None:
    altered = bytearray(pack(ARRAYS, {"k": "v"}))
    altered[place % len(altered)] = byte
    for payload in (noise, bytes(altered), struct.pack("<Q", len(noise)) + noise):
        with suppress(BadWeights):
            unpack(payload)


def test_limits_are_checked_before_the_header_is_read() -> None:
    payload = pack(ARRAYS, {})
    for limits in (WeightLimits(total_bytes=10), WeightLimits(header_bytes=10)):
        with pytest.raises(BadWeights, match="too-large"):
            unpack(payload, limits)
    with pytest.raises(BadWeights, match="too-many-tensors"):
        unpack(payload, WeightLimits(tensors=2))


@pytest.mark.parametrize(
    ("array", "reason"), [(np.array([math.nan]), "not-finite"), (np.array([1j]), "dtype"), (np.array(["x"]), "dtype")]
)
def test_what_would_be_refused_is_not_packed(array: np.ndarray, reason: str) -> None:
    with pytest.raises(BadWeights, match=reason):
        pack({"a": array}, {})


MANIFEST = SnapshotManifest(
    version=3,
    parent_sha256=b"p" * 32,
    sha256=b"s" * 32,
    size_bytes=10,
    chunk_offsets=(4, 5),
    cut_ms=1000,
    trained=(TrainedPosition(0, 9, 900, (ChainPosition(b"f" * 16, 0, 77),)),),
    chain_hash=b"c" * 32,
    cut_number=8,
    tasks=(b"f" * 16,),
    environment={"numpy": "2"},
    rows_learnt={"66": 5},
    probes=b"probes",
    channel="live",
)


def test_a_signed_manifest_verifies_with_its_key_and_no_other() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signed = sign(MANIFEST, key)
    assert verify(signed, key.public_key())
    assert not verify(signed, other.public_key())
    assert sign(signed, key) == signed


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"x" * 64, b"x" * 65, b"\0" * 64])
def test_a_missing_or_malformed_signature_does_not_verify(signature: bytes) -> None:
    assert not verify(replace(MANIFEST, signature=signature), Ed25519PrivateKey.generate().public_key())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"parent_sha256": b""},
        {"sha256": b"t" * 32},
        {"size_bytes": 11},
        {"chunk_offsets": (5, 4)},
        {"cut_ms": 1001},
        {"trained": ()},
        {"chain_hash": b""},
        {"cut_number": 9},
        {"tasks": ()},
        {"environment": {}},
        {"rows_learnt": {"66": 6}},
        {"probes": b""},
        {"channel": "other"},
    ],
)
def test_a_signature_covers_every_field(change: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.generate()
    assert not verify(replace(sign(MANIFEST, key), **change), key.public_key())


def test_a_signature_of_the_same_bytes_without_the_domain_does_not_verify() -> None:
    from schemas.weights import signed_bytes

    key = Ed25519PrivateKey.generate()
    bare = signed_bytes(MANIFEST).split(b"\0", 1)[1]
    assert not verify(replace(MANIFEST, signature=key.sign(bare)), key.public_key())


def test_signed_bytes_are_pinned() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert (
        sign(MANIFEST, key).signature.hex() == "fbb1c138178141e6de3488c16286a1eea71713920e3550d3cd5683a796453c30"
        "83b80036f652858caae3c59538591987c3b4490ff25caa364d2ad52480f7740a"
    )


def test_created_keys_are_private_and_are_never_overwritten(tmp_path: Path) -> None:
    private, public = create_keys(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert verify(sign(MANIFEST, load_private_key(private)), load_public_key(public))
    before = private.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        create_keys(tmp_path / "keys")
    assert private.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 1])
def test_beside_half_a_pair_no_new_key_is_left(tmp_path: Path, kept: int) -> None:
    pair = create_keys(tmp_path)
    there = pair[kept]
    pair[1 - kept].unlink()
    before = there.read_bytes()

    for make in (create_keys, pair_of, pair_of):
        with pytest.raises(UserError, match="is there"):
            make(tmp_path)
        assert list(tmp_path.glob("*.pem")) == [there]
    assert there.read_bytes() == before


def test_a_pair_is_made_once_and_two_keys_of_different_pairs_are_refused(tmp_path: Path) -> None:
    private, public = pair_of(tmp_path)
    assert pair_of(tmp_path) == (private, public)
    create_keys(tmp_path / "other")[1].replace(public)

    with pytest.raises(UserError, match="do not belong together"):
        pair_of(tmp_path)


def test_files_that_hold_no_key_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / PRIVATE_KEY_FILE).write_text("no key")
    for load in (load_private_key, load_public_key):
        with pytest.raises(UserError, match="holds no"):
            load(tmp_path / PRIVATE_KEY_FILE)
        with pytest.raises(UserError, match="cannot be read"):
            load(tmp_path / "absent.pem")


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        create_keys(tmp_path / "file" / "keys")
