from __future__ import annotations

import csv
import re
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.decision_columns import TEXT_TOKEN
from schemas.text import (
    AS_IT_STANDS,
    LENGTH_MAX,
    WORDS,
    WORDS_COUNTED,
    Pieces,
    Tokens,
    folded,
    seed_of,
    tokens_of,
    tokens_of_text,
)

U64 = (1 << 64) - 1


def token_id(feature: str, token: str) -> int:
    """The hash of the specification, in plain Python."""
    state = int.from_bytes(blake2b(feature.encode(), digest_size=8, person=b"hr-feature").digest(), "little")
    for character in token:
        state = (state ^ ord(character)) * 0x100000001B3 & U64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        state = (state ^ state >> 33) * factor & U64
    return (state ^ state >> 33) >> 34


def tokens_by_hand(text: str) -> list[str]:
    """Words, pairs, 4-grams of a text without letters beyond ASCII; each once."""
    words = re.findall("[a-z0-9']+", text.lower())
    line = f" {' '.join(words)} "
    grams = [line[at : at + 4] for at in range(len(line) - 3)] if words else []
    return list(dict.fromkeys([*words, *(f"{a}_{b}" for a, b in pairwise(words)), *grams]))


def tokens(*pieces: tuple[int, str, int, str], owners: int = 1, most: int = 1024) -> Tokens:
    waiting = Pieces.none()
    for owner, feature, mode, string in pieces:
        waiting.add(owner, seed_of(feature), mode, string)
    return tokens_of(waiting, owners, most)


@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_tokens_of_a_text_are_its_words_pairs_and_4_grams_each_once(text: str) -> None:
    expected = list(dict.fromkeys(token_id("text", token) | TEXT_TOKEN for token in tokens_by_hand(text)))
    assert tokens_of_text("text", text) == expected


@given(st.text(max_size=60))
def test_any_text_gives_tokens_of_its_folded_form_alone(text: str) -> None:
    assert tokens_of_text("text", text) == tokens_of_text("text", folded(folded(text)))


@given(st.text(max_size=30))
def test_a_category_gives_its_value_as_it_stands(value: str) -> None:
    from unicodedata import ucd_3_2_0

    found = tokens((0, "sku", AS_IT_STANDS, value))
    assert found.ids.tolist() == [token_id("sku", ucd_3_2_0.normalize("NFC", value))]


def test_case_typographic_apostrophes_and_composed_letters_do_not_matter() -> None:
    assert folded("I CAN’T — pay… Größe ÉTÉ, ПРИВЕТ! 早く 😀") == " i can't pay größe été привет 早く 😀 "
    assert tokens_of_text("t", "Cafe\u0301") == tokens_of_text("t", "CAFÉ")


def test_a_text_without_words_has_no_tokens() -> None:
    for text in ("", " ", "?!…", "\ud800"):
        assert tokens_of_text("t", text) == []


def test_counted_tokens_carry_how_often_they_occur() -> None:
    found = tokens((0, "t", WORDS_COUNTED | TEXT_TOKEN, "no no no"))
    by_id = dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))
    assert by_id[token_id("t", "no") | TEXT_TOKEN] == 3
    assert by_id[token_id("t", "no_no") | TEXT_TOKEN] == 2
    assert by_id[token_id("t", " no ") | TEXT_TOKEN] == 3


texts = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["a", "b"]), st.text(st.sampled_from("abc e'é"), max_size=12)),
    max_size=12,
)


@given(texts, st.integers(1, 40))
def test_owners_do_not_disturb_one_another(drawn: list[tuple[int, str, str]], most: int) -> None:
    drawn = sorted(drawn, key=lambda piece: piece[0])
    together = tokens(*((owner, name, WORDS, text) for owner, name, text in drawn), owners=5, most=most)
    ends = np.cumsum(together.counts)
    for owner in range(5):
        alone = tokens(*((0, name, WORDS, text) for place, name, text in drawn if place == owner), most=most)
        part = together.ids[ends[owner] - together.counts[owner] : ends[owner]]
        assert part.tolist() == alone.ids.tolist()
        assert len(set(part.tolist())) == len(part) <= most


def test_two_texts_share_the_tokens_an_owner_may_have() -> None:
    long = " ".join(f"word{n}" for n in range(100))
    found = tokens((0, "a", WORDS, long), (0, "b", WORDS, "hello"), most=60)
    assert found.num_dropped == 1
    assert set(tokens_of_text("b", "hello")) - {n | TEXT_TOKEN for n in found.ids.tolist()} == set()
    assert len(found.ids) == 30 + 5


def test_what_falls_off_are_the_last_4_grams() -> None:
    whole = tokens((0, "t", WORDS, "the card did not arrive")).ids.tolist()
    assert tokens((0, "t", WORDS, "the card did not arrive"), most=12).ids.tolist() == whole[:12]


def test_a_long_text_is_cut_and_counted() -> None:
    found = tokens((0, "t", WORDS, "x" * LENGTH_MAX + " tail"))
    assert found.num_cut == 1
    assert token_id("t", "tail") not in found.ids.tolist()
    assert token_id("t", "x" * LENGTH_MAX) in found.ids.tolist()


def test_tokens_are_pinned() -> None:
    assert tokens_of_text("text", "Where’s my card?") == [
        1758145520,
        1552123916,
        1857247709,
        1907496670,
        2116601703,
        1517032046,
        2044681545,
        1878694964,
        2046682883,
        1109246379,
        1979236215,
        1173905851,
        1929450934,
        2135472744,
        1699612073,
        1654114314,
        1838497014,
        1725648836,
    ]
    assert tokens_of_text("text", "Привет 早く") == [
        1504624606,
        1308648035,
        1294241027,
        1104614297,
        1753546210,
        1922825383,
        1317408476,
        2122810282,
        1282093344,
        1739730883,
        1084066402,
    ]
    assert tokens((0, "sku", AS_IT_STANDS, "A-17")).ids.tolist() == [1006819053]


def test_real_messages_give_the_tokens_of_the_specification() -> None:
    for message in messages()[1:200]:
        if message.isascii():
            assert len(tokens_of_text("text", message)) == len({token_id("text", t) for t in tokens_by_hand(message)})


def messages() -> list[str]:
    path = Path(__file__).parents[2] / "examples" / "support" / "train.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        return [row[0] for row in csv.reader(lines)]
