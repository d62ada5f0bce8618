"""Composed characters (NFC of Unicode 3.2) of any text, at a cost that grows with its length and no faster.

Canonical ordering sorts each run of combining marks by insertion, so a run of n marks costs n²: 64 KiB of marks took
2.9 s, with Python's lock held. What is composed is therefore bounded first, in length and in marks on one letter.
No text in any language comes near either bound; one that does loses what lies beyond it.

Frozen, as the hash is (`schemas.text`). Simplification: which characters are marks is the interpreter's own table,
the one that its ordering goes by for Unicode 3.2 too.
"""

from __future__ import annotations

from unicodedata import combining, ucd_3_2_0

LENGTH_MAX = 4096
"""Characters of a text that are read; the rest is cut off and counted."""
COMPOSED_MAX = 4 * LENGTH_MAX
"""Characters that are composed: four at most become one (a Greek letter and three marks), so `LENGTH_MAX` are left."""
MARKS_MAX = 30
"""Marks on one letter, the rest is dropped: UAX #15, Stream-Safe Text Format; there a joiner would stand between."""

_DISGUISED = frozenset("\u0f73\u0f75\u0f81")
"""Tibetan vowels that pass for letters and decompose into two marks; Unicode has no others (tests/schemas)."""


def composed(text: str) -> tuple[str, bool]:
    """NFC of a text within the bounds above, and whether that is all of it.

    >>> composed("Cafe\u0301")
    ('Café', True)
    >>> letter, is_whole = composed("e" + 100 * "\u0316")
    >>> len(letter), is_whole
    (31, False)
    """
    fit = text[:COMPOSED_MAX]
    looked_at = fit[MARKS_MAX :: MARKS_MAX + 1]  # a run that is too long holds at least one of these places
    if any(map(combining, looked_at)) or not _DISGUISED.isdisjoint(looked_at):
        fit = _with_short_runs(fit)
    return ucd_3_2_0.normalize("NFC", fit), len(fit) == len(text)


def _with_short_runs(text: str) -> str:
    """The text with the first `MARKS_MAX` of each run of marks."""
    kept, start, end = [], 0, 0
    for place in range(MARKS_MAX, len(text), MARKS_MAX + 1):
        if place < end or not _is_mark(text[place]):
            continue
        first, end = place, place + 1
        while first > start and _is_mark(text[first - 1]):
            first -= 1
        while end < len(text) and _is_mark(text[end]):
            end += 1
        if end - first > MARKS_MAX:
            kept.append(text[start : first + MARKS_MAX])
            start = end
    return "".join(kept) + text[start:]


def _is_mark(character: str) -> bool:
    return combining(character) != 0 or character in _DISGUISED
