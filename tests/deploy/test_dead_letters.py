"""How a dead letter is shown."""

from __future__ import annotations

import re

from deploy.dead_letters import UNREADABLE, Letter, letter_of
from deploy.reading import Entry
from schemas.codec import encode
from schemas.records import DeadLetter
from schemas.registry import FileRegistry

JSON = b'{"decision_id":"d"'


def letter(detail: str = "it is not JSON", first_bytes: bytes = JSON) -> DeadLetter:
    return DeadLetter("shop.requests", 3, 17, "bad-json", detail, first_bytes, b"\1" * 32, 1_767_225_600_123)


def test_a_row_has_time_place_reason_detail_and_first_bytes() -> None:
    assert re.split(" {2,}", Letter(letter(), 0).as_row()) == [
        "2026-01-01T00:00:00.123Z",
        "shop.requests/3/17",
        "bad-json",
        "it is not JSON",
        '{"decision_id":"d"',
    ]


def test_what_a_record_holds_does_not_reach_the_terminal_as_it_is() -> None:
    row = Letter(letter("got '\x1b]0;owned\x07\n'", b"\x1b[2Jx"), 0).as_row()

    assert row.isprintable()
    assert "got '\\x1b]0;owned\\x07\\n'" in row
    assert row.endswith("0x1b5b324a78")


def test_bytes_that_are_no_text_are_shown_in_hex_and_long_ones_are_cut() -> None:
    assert Letter(letter(first_bytes=b"\0\xff"), 0).as_row().endswith("0x00ff")
    assert Letter(letter(first_bytes="ä".encode() * 100), 0).as_row().endswith("ä" * 30 + "…")
    assert Letter(letter(first_bytes=b"x" + "ä".encode() * 100), 0).as_row().endswith("x" + "ä" * 29 + "…")


def test_json_has_everything() -> None:
    shown = Letter(letter(first_bytes=b"\xffa"), 1_767_225_601_000).as_json()

    assert (shown["topic"], shown["partition"], shown["offset"]) == ("shop.requests", 3, 17)
    assert (shown["first_bytes"], shown["first_bytes_hex"]) == ("\N{REPLACEMENT CHARACTER}a", "ff61")
    assert shown["written"] == "2026-01-01T00:00:01.000Z"


def test_what_is_no_dead_letter_is_told_as_one() -> None:
    registry = FileRegistry()
    good = letter_of(Entry("t", 0, 0, 5, b"", encode(letter(), registry)), registry)
    bad = letter_of(Entry("shop.dead-letters", 1, 9, 5, b"", b"hello"), registry)

    assert good.letter == letter()
    assert (bad.letter.reason, bad.letter.offset) == (UNREADABLE, 9)
    assert "bad-magic" in bad.letter.detail
