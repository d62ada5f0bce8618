"""The corpus of bad inputs: messages that must be refused, each with its exact reason.

`cases.json` holds the bytes as they were when the case was written, so that a change of the encoder cannot quietly
change what is tested. `write_corpus.py` beside it says how each came about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).with_name("cases.json")


@dataclass(frozen=True, slots=True)
class Case:
    """One bad input."""

    name: str
    """A sentence of what is wrong."""
    expect: str
    """Record that should stand here: DecisionRequest and Outcome may be JSON."""
    reason: str
    """Code of BadRecord, or "" for a block whose `unsound` rows are quarantined."""
    payload: bytes
    unsound: tuple[int, ...] = ()
    """Rows of a block that may not be learnt from."""


def load() -> list[Case]:
    """All cases. A payload is written as [hex, repetitions] pieces: some are ten megabytes of one byte."""
    return [
        Case(
            name=entry["name"],
            expect=entry["expect"],
            reason=entry["reason"],
            payload=b"".join(bytes.fromhex(piece) * times for piece, times in entry["pieces"]),
            unsound=tuple(entry.get("unsound", ())),
        )
        for entry in json.loads(PLACE.read_text())
    ]
