"""Outcomes by the thousand: the same values and the same reasons as one at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.bounds import BadRecord
from schemas.columns import OutcomeColumns, decode_outcomes
from schemas.outcome_columns import LOOK_AGAIN
from schemas.records import Outcome
from schemas.registry import FileRegistry
from schemas.varints import REASONS
from tests.schemas.messages import OUTCOMES, example_outcome

REGISTRY = FileRegistry()
SCHEMA_ID = REGISTRY.id_of("Outcome")


def columns_of(messages: list[bytes]) -> OutcomeColumns:
    """The messages with rubbish between them, as they stand in a fetched batch."""
    lengths = np.array([len(message) for message in messages], np.int32)
    starts = np.cumsum([3, *(len(message) + 3 for message in messages[:-1])])[: len(messages)]
    buffer = np.frombuffer(b"".join(b"\xff\xff\xff" + message for message in messages) + b"\xff", np.uint8)
    return decode_outcomes(buffer, starts, lengths, SCHEMA_ID)


def outcome_at(columns: OutcomeColumns, row: int) -> Outcome:
    def text(strings: object) -> str | None:
        return None if strings.lengths[row] < 0 else strings[row]  # type: ignore[attr-defined,index]  # Strings

    slot, time_ms = int(columns.slots[row]), int(columns.times_ms[row])
    return Outcome(
        outcome_id=text(columns.outcome_ids),
        subject=str(text(columns.subjects)),
        decision_id=text(columns.decision_ids),
        action_id=text(columns.action_ids),
        slot=None if slot < 0 else slot,
        type=str(text(columns.types)),
        value=float(columns.values[row]),
        time_ms=time_ms or None,
    )


def agree(messages: list[bytes]) -> None:
    columns = columns_of(messages)
    for row, message in enumerate(messages):
        code = columns.reason_codes[row]
        assert columns.ok[row] == (code == 0)
        if code == LOOK_AGAIN:
            continue
        reason, outcome = single(message)
        assert REASONS[code][0] == reason, message
        if outcome is not None:
            known = outcome if outcome.time_ms else replace(outcome, time_ms=None)
            assert outcome_at(columns, row) == known


def single(message: bytes) -> tuple[str, Outcome | None]:
    try:
        return "", codec.decode_outcome(message, REGISTRY)
    except BadRecord as error:
        return error.reason, None


@given(st.lists(OUTCOMES, min_size=1, max_size=5))
def test_columns_hold_what_single_decoding_gives(outcomes: list[Outcome]) -> None:
    agree([codec.encode(outcome, REGISTRY) for outcome in outcomes])


@given(OUTCOMES, st.data())
def test_spoilt_messages_get_the_reason_that_single_decoding_gives(outcome: Outcome, data: st.DataObject) -> None:
    message = bytearray(codec.encode(outcome, REGISTRY))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(5, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(message)))
    agree([bytes(message), bytes(message[:cut]), bytes(message) + b"\0", b""])


def test_ids_at_their_limits_agree() -> None:
    outcomes = [
        example_outcome(subject="s" * size, type="t" * min(size, 65), outcome_id="o" * size, decision_id="d" * 64)
        for size in (1, 64, 65, 255, 256, 257)
    ]
    outcomes += [example_outcome(decision_id="d" * 65), example_outcome(slot=1024), example_outcome(subject="")]
    outcomes += [example_outcome(action_id=""), example_outcome(slot=-1), example_outcome(value=float("nan"))]
    agree([codec.encode(outcome, REGISTRY) for outcome in outcomes])


def test_a_bad_row_does_not_harm_its_neighbours() -> None:
    good = codec.encode(example_outcome(), REGISTRY)
    columns = columns_of([good, good[:-1], good])
    assert columns.ok.tolist() == [True, False, True]
    assert columns.subjects[2] == "user-1"


def test_json_and_other_schemas_are_left_to_the_single_decoder() -> None:
    other = b"\0" + REGISTRY.id_of("Tick").to_bytes(4, "big")
    columns = columns_of([b'{"subject":"s","type":"click"}', other, b"\7abc"])
    assert columns.reason_codes.tolist()[:2] == [LOOK_AGAIN, LOOK_AGAIN]
    assert REASONS[columns.reason_codes[2]][0] == "bad-magic"


def test_no_messages_give_no_rows() -> None:
    nothing = np.empty(0, np.int64)
    assert len(decode_outcomes(np.empty(0, np.uint8), nothing, nothing, SCHEMA_ID)) == 0
