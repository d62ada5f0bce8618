"""Which bytes pass for the strings of a block: those that Python reads, string by string."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import codec
from schemas.bounds import BadRecord, view_of
from schemas.column_reader import LayoutFault, read_fields
from schemas.layout import layout_of, without_strings
from schemas.merged_reader import merge_outcomes
from schemas.registry import FileRegistry
from tests.schemas.messages import outcome_block

REGISTRY = FileRegistry()
LAYOUT = layout_of({"fields": [{"name": "names", "type": {"type": "array", "items": "string"}}]})


def written_long(value: int) -> bytes:
    """The zig-zag varint of a number."""
    raw, out = value << 1 if value >= 0 else (-value << 1) - 1, bytearray()
    while raw >= 0x80:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes([*out, raw])


def written(strings: list[bytes]) -> bytes:
    return b"".join(written_long(len(string)) + string for string in strings)


def read_long(body: bytes) -> tuple[int, bytes]:
    """(number, what follows it); raises ValueError."""
    raw = 0
    for index in range(10):
        if index == len(body):
            break
        raw |= (body[index] & 0x7F) << 7 * index
        if body[index] < 0x80:
            if raw >> 64:
                break
            return (raw >> 1) ^ -(raw & 1), body[index + 1 :]
    raise ValueError("no number")


def read_by_hand(body: bytes) -> list[str]:
    """An array of strings and nothing after it, each decoded by itself; raises ValueError."""
    strings = []
    count, body = read_long(body)
    while count:
        size = None
        if count < 0:
            size, body = read_long(body)
        before = len(body)
        for _ in range(abs(count)):
            length, body = read_long(body)
            if not 0 <= length <= len(body):
                raise ValueError("no string")
            strings.append(body[:length].decode())
            body = body[length:]
        if size is not None and before - len(body) != size:
            raise ValueError("the block ends elsewhere")
        count, body = read_long(body)
    if body:
        raise ValueError("bytes are left")
    return strings


STRINGS = st.lists(st.sampled_from([
    b"", b"a", "ß".encode(), "😀".encode(), b"a\xc2", b"a\xe2", b"a\xe2\x82", b"\x80", b"\xbf" + b"b" * 63,
    b"a\xf0\x9f", b"b" * 63, b"b" * 64, b"b" * 95, b"b" * 62 + "ß".encode(), b"b" * 8192,
]), max_size=5)  # fmt: skip
"""From 64 bytes on the length begins with a byte as those within a character, from 8,192 with two."""


def agrees_with_python(body: bytes) -> None:
    try:
        expected: list[str] | None = read_by_hand(body)
    except ValueError:
        expected = None
    for layout in (LAYOUT, without_strings(LAYOUT, frozenset())):
        try:
            found = read_fields(view_of(body), 0, layout, {}, 1 << 20)["names"]
        except LayoutFault:
            assert expected is None
        else:
            assert expected is not None
            assert found == len(expected) if isinstance(found, int) else found.tolist() == expected


@given(st.lists(STRINGS, max_size=3), st.booleans(), st.data())
def test_any_bytes_are_strings_to_the_reader_exactly_when_python_reads_each(
    blocks: list[list[bytes]], sized: bool, data: st.DataObject
) -> None:
    body = bytearray()
    for strings in filter(None, blocks):
        size = len(written(strings))
        body += written_long(-len(strings)) + written_long(size) if sized else written_long(len(strings))
        body += written(strings)
    body += b"\0"
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    agrees_with_python(bytes(body))


@given(st.binary(max_size=40))
@example(written_long(2) + written([b"a\xc2", b"b" * 64]) + b"\0")
@example(written_long(2) + written([b"a\xe2", b"b" * 8192]) + b"\0")
@example(written_long(2) + written([b"\xc2", b"\x80"]) + b"\0")
@example(written_long(1) + b"\x84\x00" + "ß".encode() + b"\0")
def test_rubbish_is_strings_to_the_reader_exactly_when_python_reads_each(body: bytes) -> None:
    agrees_with_python(body)


def test_a_name_cut_within_a_character_is_refused_with_its_block() -> None:
    block = replace(outcome_block(1), types=np.zeros(1, np.int32), type_names=("a?", "b" * 64))
    good = codec.encode(block, REGISTRY)
    bad = good.replace(b"a?", b"a\xc2")  # ended by the first byte of the next length, 0x80, it would be a character
    for strings in (True, False):
        with pytest.raises(BadRecord, match=r"bad-utf8: OutcomeBlock\.type_names"):
            codec.decode(bad, REGISTRY, strings=strings)
    both, starts = view_of(good + bad), np.array([0, len(good)])
    assert merge_outcomes(both, starts, starts + len(good), REGISTRY) is None
