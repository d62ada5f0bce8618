from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import keys
from schemas.arrays import Strings
from schemas.hashing import action_keys, keys64, keys128, partitions_of


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_equals_the_vectors_of_kafkas_own_tests(payload: bytes, expected: int) -> None:
    assert keys.murmur2(payload) == expected % (1 << 32)


spans = st.lists(st.one_of(st.binary(max_size=40), st.binary(min_size=100, max_size=400)), max_size=12)


def packed(payloads: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(payload) for payload in payloads], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if payloads else np.empty(0, np.int64)
    return np.frombuffer(b"".join(payloads), np.uint8), starts, lengths


@given(spans, st.binary(max_size=16))
def test_keys_of_a_buffer_equal_hashlib(payloads: list[bytes], person: bytes) -> None:
    buffer, starts, lengths = packed(payloads)
    wide, narrow = keys128(buffer, starts, lengths, person), keys64(buffer, starts, lengths, person)
    for row, payload in enumerate(payloads):
        digest = hashlib.blake2b(payload, digest_size=16, person=person).digest()
        assert wide[row].astype("<u8").tobytes() == digest
        digest = hashlib.blake2b(payload, digest_size=8, person=person).digest()
        assert int(narrow[row]).to_bytes(8, "little") == digest


@pytest.mark.parametrize("length", [0, 1, 7, 8, 127, 128, 129, 255, 256, 257, 1 << 20])
def test_keys_equal_hashlib_at_the_edges_of_blocks(length: int) -> None:
    payload = bytes(range(256)) * (length // 256 + 1)
    buffer, starts, lengths = packed([payload[:length]])
    digest = hashlib.blake2b(payload[:length], digest_size=16, person=b"p").digest()
    assert keys128(buffer, starts, lengths, b"p")[0].astype("<u8").tobytes() == digest


@given(spans, st.integers(1, 1000))
def test_partitions_of_a_buffer_equal_the_one_by_one(payloads: list[bytes], num_partitions: int) -> None:
    buffer, starts, lengths = packed(payloads)
    expected = [(keys.murmur2(payload) & 0x7FFFFFFF) % num_partitions for payload in payloads]
    assert partitions_of(buffer, starts, lengths, num_partitions).tolist() == expected


@given(st.lists(st.text(max_size=20), max_size=8))
def test_action_keys_equal_the_one_by_one(ids: list[str]) -> None:
    assert action_keys(ids).tolist() == [keys.action_key(action_id) for action_id in ids]


def test_scalar_and_vector_versions_share_their_persons() -> None:
    strings = Strings.of(["d-1", "ü"])
    wide = keys128(strings.buffer, strings.starts, strings.lengths, keys.PERSON_DECISION)
    assert [tuple(row) for row in wide.tolist()] == [keys.decision_key("d-1"), keys.decision_key("ü")]
    narrow = keys64(strings.buffer, strings.starts, strings.lengths, keys.PERSON_SUBJECT)
    assert narrow.tolist() == [keys.subject_key("d-1"), keys.subject_key("ü")]


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 4), (3, 1), (4, 0), (2**40, 1)])
def test_a_span_outside_the_buffer_is_refused_before_it_is_read(start: int, length: int) -> None:
    with pytest.raises(ValueError, match="outside the buffer"):
        keys64(np.zeros(3, np.uint8), np.array([start], np.int64), np.array([length], np.int32), b"")


def test_a_negative_length_reads_as_no_bytes() -> None:
    key = keys64(np.zeros(3, np.uint8), np.array([1], np.int64), np.array([-1], np.int32), b"")
    assert int(key[0]) == int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")


def test_keys_of_one_string_differ_by_what_it_names() -> None:
    every = [keys.subject_key("x"), keys.action_key("x"), keys.episode_key("x"), keys.task_key("x")]
    every += [keys.decision_key("x")[0], keys.outcome_key("x")[0], keys.source_outcome_key("x", 0, 0)[0]]
    assert len(set(every)) == len(every)


def test_draws_depend_on_the_task_the_slot_and_the_purpose() -> None:
    cases = [(0, 0, "a", "d"), (0, 0, "b", "d"), (0, 1, "a", "d"), (1, 0, "a", "d"), (0, 0, "a", "e")]
    assert len({keys.draw(b"k", *case) for case in cases}) == len(cases)


def test_draws_do_not_confuse_where_the_task_ends_and_the_decision_begins() -> None:
    assert keys.draw(b"k", 0, 0, "ab", "c") != keys.draw(b"k", 0, 0, "a", "bc")


def test_keys_and_draws_are_pinned() -> None:
    assert keys.draw(b"key", keys.DRAW_ACTION, 0, "support", "d-1") == 4021169
    assert keys.decision_key("d-1") == (4329150095890130278, 1367450422906195549)
    assert keys.action_key("card") == 7470494994653429679
    assert keys.source_outcome_key("shop.orders", 3, 77) == (5633235002799590241, 10507124798954644902)
