"""Outcome columns: many Avro Outcome messages of one fetched batch, decoded in place without a Python object each.

For ingest. The result points into the buffer; a row that is refused has its reason, and the others go on. Rows with
another framing (JSON, or a schema other than the one given) are marked `LOOK_AGAIN` and belong to
`schemas.codec.decode_outcome`, which gives the same values and the same reasons; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from schemas.arrays import F64, I32, I64, U8, Strings
from schemas.bounds import LIMITS, Limits, view_of
from schemas.varints import (
    BAD_MAGIC,
    BAD_UNION,
    EMPTY,
    MISSING_FIELD,
    NOT_FINITE,
    OUT_OF_RANGE,
    TOO_LARGE,
    TRAILING_BYTES,
    TRUNCATED,
    copy_bytes,
    is_finite_f64,
    read_length,
    read_long,
    utf8_end,
)

LOOK_AGAIN = 255
"""Code of a row that is neither good nor bad yet: decode it with `schemas.codec.decode_outcome`."""
_OPEN_BRACE = 0x7B
_NO_SLOT = 1 << 40
"""Not -1: a message that says -1 is refused."""

OUTCOME_ID, SUBJECT, DECISION_ID, ACTION_ID, TYPE = range(5)


class _Caps(NamedTuple):
    message: int
    name: int
    id: int
    slots: int


@dataclass(frozen=True, slots=True)
class OutcomeColumns:
    """N outcomes. Columns of rows that are not `ok` hold no meaning."""

    ok: npt.NDArray[np.bool_]
    """(N,)"""
    reason_codes: U8
    """(N,) index into `schemas.varints.REASONS`, 0 for a good row, or `LOOK_AGAIN`."""
    outcome_ids: Strings
    """Spans of the buffer; a length of -1 says that the outcome has none. So do the other strings."""
    subjects: Strings
    decision_ids: Strings
    action_ids: Strings
    types: Strings
    slots: I32
    """(N,) -1 for none."""
    values: F64
    """(N,) finite."""
    times_ms: I64
    """(N,) 0 for none."""

    def __len__(self) -> int:
        return len(self.ok)


@numba.njit(cache=True, nogil=True)
def _read_branch(buffer: U8, position: int, end: int) -> tuple[int, int]:
    """(branch of a union [null, x], position after it or -code)."""
    branch, position = read_long(buffer, position, end)
    if position >= 0 and (branch < 0 or branch > 1):
        position = -BAD_UNION
    return branch, position


@numba.njit(cache=True, nogil=True)
def _read_text(buffer: U8, position: int, end: int, optional: bool, cap: int) -> tuple[int, int, int]:
    """(start, length or -1 for null, position after it or -code) of a string or a [null, string]."""
    branch, start, length = 1, 0, -1
    if optional:
        branch, position = _read_branch(buffer, position, end)
    if position >= 0 and branch == 1:
        length, position = read_length(buffer, position, end, cap)
        if position >= 0:
            start, position = position, utf8_end(buffer, position, position + length)
    return start, length, position


@numba.njit(cache=True, nogil=True)
def _read_number(buffer: U8, position: int, end: int, absent: int, narrow: bool) -> tuple[int, int]:
    """(value or `absent` for null, position after it or -code) of a [null, long] or, if narrow, a [null, int]."""
    value = absent
    branch, position = _read_branch(buffer, position, end)
    if position >= 0 and branch == 1:
        value, position = read_long(buffer, position, end)
        if position >= 0 and narrow and not -(1 << 31) <= value < (1 << 31):
            position = -OUT_OF_RANGE
    return value, position


@numba.njit(cache=True, nogil=True)
def _limits_code(length: int, required: bool, cap: int) -> int:
    """What is wrong with the length of an id: it is empty, or longer than its cap."""
    if length == 0 or (required and length < 0):
        return MISSING_FIELD
    return TOO_LARGE if length > cap else 0


@numba.njit(cache=True, nogil=True)
def _read_outcome(
    buffer: U8,
    position: int,
    end: int,
    row: int,
    starts: I64,
    lengths: I32,
    slots: I32,
    bits: U8,
    times: I64,
    caps: _Caps,
) -> int:
    """Code of one message body, 0 if it is good; fills the row. Shape first, then the limits, field by field."""
    code = 0
    for field in range(4):
        if position >= 0:
            start, length, position = _read_text(buffer, position, end, field != SUBJECT, caps.message)
            starts[field, row], lengths[field, row] = start, length
            if code == 0:
                code = _limits_code(length, field == SUBJECT, caps.id if field == DECISION_ID else caps.name)
    if position >= 0:
        slot, position = _read_number(buffer, position, end, _NO_SLOT, True)
        if code == 0 and slot != _NO_SLOT and (slot < 0 or slot >= caps.slots):
            code = OUT_OF_RANGE
        slots[row] = -1 if slot == _NO_SLOT else slot
    if position >= 0:
        start, length, position = _read_text(buffer, position, end, False, caps.message)
        starts[TYPE, row], lengths[TYPE, row] = start, length
        if code == 0:
            code = _limits_code(length, True, caps.id)
    if position >= 0 and end - position < 8:
        position = -TRUNCATED
    if position >= 0 and not is_finite_f64(buffer, position):
        position = -NOT_FINITE
    if position >= 0:
        copy_bytes(buffer, position, 8, bits, 8 * row)
        times[row], position = _read_number(buffer, position + 8, end, 0, False)
    if position >= 0 and position < end:
        position = -TRAILING_BYTES
    return code if position >= 0 else -position


@numba.njit(cache=True, nogil=True)
def _read_all(
    buffer: U8,
    firsts: I64,
    sizes: I64,
    schema_id: int,
    starts: I64,
    lengths: I32,
    slots: I32,
    bits: U8,
    times: I64,
    caps: _Caps,
) -> U8:
    """Code of every message."""
    codes = np.zeros(len(firsts), np.uint8)
    for row in range(len(firsts)):
        first, size = firsts[row], sizes[row]
        if size <= 0:
            codes[row] = EMPTY
        elif size > caps.message:
            codes[row] = TOO_LARGE
        elif buffer[first] == _OPEN_BRACE:
            codes[row] = LOOK_AGAIN
        elif buffer[first] != 0:
            codes[row] = BAD_MAGIC
        elif size < 5:
            codes[row] = TRUNCATED
        else:
            found = np.int64(0)
            for index in range(first + 1, first + 5):
                found = (found << 8) | np.int64(buffer[index])
            if found != schema_id:
                codes[row] = LOOK_AGAIN
            else:
                codes[row] = _read_outcome(
                    buffer, first + 5, first + size, row, starts, lengths, slots, bits, times, caps
                )
    return codes


def decode_outcomes(
    buffer: U8,
    starts: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.integer],
    schema_id: int,
    limits: Limits = LIMITS,
) -> OutcomeColumns:
    """Outcomes whose messages (framing included) are buffer[starts[i]:starts[i] + lengths[i]].

    `schema_id` is the registry's id of the current Outcome schema. Spans must lie within the buffer; a length ≤ 0 is
    an empty message. Never raises for what the bytes contain.
    """
    num = len(starts)
    buffer = view_of(buffer)
    firsts, counts = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths, np.int64)
    if num and (firsts.min() < 0 or (firsts + counts).max() > len(buffer)):
        raise ValueError(f"spans reach outside the buffer of {len(buffer)} bytes")
    span_starts, span_lengths = np.zeros((5, num), np.int64), np.full((5, num), -1, np.int32)
    slots, values, times = np.full(num, -1, np.int32), np.zeros(num), np.zeros(num, np.int64)
    caps = _Caps(limits.message_bytes_max, limits.name_bytes_max, limits.id_bytes_max, limits.num_slots_max)
    bits = values.view(np.uint8)
    codes = _read_all(buffer, firsts, counts, schema_id, span_starts, span_lengths, slots, bits, times, caps)
    strings = [Strings(buffer, span_starts[field], span_lengths[field]) for field in range(5)]
    return OutcomeColumns(
        ok=codes == 0,
        reason_codes=codes,
        outcome_ids=strings[OUTCOME_ID],
        subjects=strings[SUBJECT],
        decision_ids=strings[DECISION_ID],
        action_ids=strings[ACTION_ID],
        types=strings[TYPE],
        slots=slots,
        values=values,
        times_ms=times,
    )
