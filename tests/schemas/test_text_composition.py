from __future__ import annotations

import re
from itertools import groupby
from unicodedata import combining, ucd_3_2_0

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import text_composition
from schemas.text import AS_IT_STANDS, WORDS, Pieces, tokens_of
from schemas.text_composition import COMPOSED_MAX, LENGTH_MAX, MARKS_MAX, composed

EVERY = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
DISGUISED = [letter for letter in EVERY if not combining(letter) and combining(ucd_3_2_0.normalize("NFD", letter)[0])]
MARK = f"[{''.join(letter for letter in EVERY if combining(letter))}{''.join(DISGUISED)}]"
LONG_RUN = re.compile(f"({MARK}{{{MARKS_MAX}}}){MARK}+")

marks = st.sampled_from([*"\u0300\u0316\u0344\u0591\u3099\U0001d165", *DISGUISED])
runs = st.tuples(marks, st.integers(0, 3 * MARKS_MAX)).map(lambda run: run[0] * run[1])
texts = st.lists(st.one_of(runs, st.text(max_size=20)), max_size=12).map("".join)


class Watched:
    """Stands where the database of Unicode 3.2 stands; keeps what is composed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def normalize(self, form: str, text: str) -> str:
        self.seen.append(text)
        return ucd_3_2_0.normalize(form, text)  # type: ignore[arg-type]  # "NFC"


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watch = Watched()
    monkeypatch.setattr(text_composition, "ucd_3_2_0", watch)
    return watch


def longest_run(text: str) -> int:
    """Marks that stand together at most, as the ordering of NFC sees them."""
    return max((len(list(run)) for is_mark, run in groupby(map(combining, text), bool) if is_mark), default=0)


def first_marks_of_each_run(text: str) -> str:
    return LONG_RUN.sub(r"\1", text[:COMPOSED_MAX])


@pytest.mark.parametrize("mode", [AS_IT_STANDS, WORDS])
@pytest.mark.parametrize("mark", ["\u0300\u0316", "\u0344", *DISGUISED])
def test_a_message_of_marks_is_cut_before_it_is_composed(watched: Watched, mode: int, mark: str) -> None:
    pieces = Pieces.none()
    for text in ("a" + mark * 500_000, (mark * 100 + "a") * 2000, mark * 31 + "é" * 100_000):
        pieces.add(0, 1, mode, text)
    assert len(watched.seen) == 3
    for seen in watched.seen:
        assert len(seen) <= COMPOSED_MAX
        assert longest_run(seen) <= MARKS_MAX
        assert longest_run(ucd_3_2_0.normalize("NFD", seen)) <= 2 * MARKS_MAX  # two of one is the worst there is


@given(texts)
def test_of_each_run_of_marks_the_first_are_kept_and_all_else(text: str) -> None:
    expected = first_marks_of_each_run(text)
    assert composed(text) == (ucd_3_2_0.normalize("NFC", expected), expected == text)


@given(st.text(st.characters(exclude_categories=["Mn", "Cs"]), max_size=60), st.integers(1, 9))
def test_a_text_as_people_write_it_is_composed_as_unicode_says(text: str, times: int) -> None:
    spelled = ucd_3_2_0.normalize("NFD", text) * times
    assert composed(spelled) == (ucd_3_2_0.normalize("NFC", text * times), True)


def test_four_characters_at_most_become_one_so_that_as_many_are_left_as_are_read() -> None:
    def spelled(letter: str) -> str:
        return ucd_3_2_0.normalize("NFD", letter)

    lasting = [letter for letter in EVERY if ucd_3_2_0.normalize("NFC", spelled(letter)) == letter]
    widest = max(lasting, key=lambda letter: len(spelled(letter)))
    assert LENGTH_MAX * len(spelled(widest)) <= COMPOSED_MAX
    assert composed(spelled(widest) * (LENGTH_MAX + 9))[0] == widest * LENGTH_MAX


def test_no_letter_but_three_decomposes_into_marks_alone() -> None:
    assert frozenset(DISGUISED) == text_composition._DISGUISED


@pytest.mark.parametrize(
    ("mode", "text", "num_cut"),
    [
        (WORDS, "é" * LENGTH_MAX, 0),
        (WORDS, "é" * (LENGTH_MAX + 1), 1),
        (WORDS, "é" * (COMPOSED_MAX + 1), 1),
        (WORDS, "e" + "\u0316" * (MARKS_MAX + 1), 1),
        (AS_IT_STANDS, "é" * COMPOSED_MAX, 0),
        (AS_IT_STANDS, "é" * (COMPOSED_MAX + 1), 1),
    ],
)
def test_a_text_that_is_cut_counts_once_wherever_it_was_cut(mode: int, text: str, num_cut: int) -> None:
    pieces = Pieces.none()
    pieces.add(0, 1, mode, text)
    assert tokens_of(pieces, 1, 1024).num_cut == num_cut
