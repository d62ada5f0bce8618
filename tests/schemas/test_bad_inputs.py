"""Every bad input of the corpus is refused for its exact reason, and in the columns of ingest for the same one."""

from __future__ import annotations

import numpy as np
import pytest

from schemas import codec
from schemas.bounds import REASONS, BadRecord
from schemas.columns import decode_outcomes, sound_rows
from schemas.outcome_columns import LOOK_AGAIN
from schemas.records import DecisionRequest, Outcome
from schemas.registry import FileRegistry
from tests.schemas.bad_inputs.corpus import Case, load

REGISTRY = FileRegistry()
CASES = load()


def decoded(case: Case) -> object:
    if case.expect == "DecisionRequest":
        return codec.decode_request(case.payload, REGISTRY)
    if case.expect == "Outcome":
        return codec.decode_outcome(case.payload, REGISTRY)
    return codec.decode(case.payload, REGISTRY, expect=codec.TYPES[case.expect])


@pytest.mark.parametrize("case", [case for case in CASES if case.reason], ids=lambda case: case.name)
def test_it_is_refused_for_its_reason(case: Case) -> None:
    with pytest.raises(BadRecord) as caught:
        decoded(case)
    assert caught.value.reason == case.reason, caught.value.detail
    assert caught.value.detail


@pytest.mark.parametrize("case", [case for case in CASES if not case.reason], ids=lambda case: case.name)
def test_only_the_spoilt_rows_are_quarantined(case: Case) -> None:
    block = codec.decode(case.payload, REGISTRY)
    assert np.flatnonzero(~sound_rows(block)).tolist() == list(case.unsound)


def test_outcomes_are_refused_for_the_same_reason_in_columns() -> None:
    cases = [case for case in CASES if case.expect == "Outcome" and len(case.payload) < 1 << 21]
    buffer = np.frombuffer(b"".join(case.payload for case in cases), np.uint8)
    lengths = np.array([len(case.payload) for case in cases])
    columns = decode_outcomes(buffer, np.cumsum(lengths) - lengths, lengths, REGISTRY.id_of("Outcome"))
    for case, code in zip(cases, columns.reason_codes, strict=True):
        assert code == LOOK_AGAIN or REASONS[code][0] == case.reason, case.name
    assert (columns.reason_codes != LOOK_AGAIN).sum() >= 20


def test_the_corpus_covers_every_reason_that_bytes_alone_can_have() -> None:
    needs_more = {
        "bad-enum",  # no schema of ours has an enum; test_bounds.py covers it
        "bad-compression",  # of a record batch, not of a record; tests/kafka/test_compression_bombs.py covers it
        "bad-definition",  # what stands in sound bytes; tests/kafka/test_tasks_following.py covers it
        "wrong-format",  # only a foreign topic declares one; tests/streams/test_ingest.py covers it
    }
    assert {case.reason for case in CASES} == {reason for reason, _ in REASONS} - needs_more


def test_names_are_unique_and_types_known() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert {case.expect for case in CASES} <= {*codec.TYPES}
    assert {DecisionRequest.__name__, Outcome.__name__} <= {case.expect for case in CASES}
