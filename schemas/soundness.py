"""Soundness: which rows of a block may be learnt from, and whether its columns fit together.

A row with NaN among its features, or whose propensities do not sum to one, must not spoil the other rows of its
block: the join gives it the bucket "quarantined" (join.md rule 5). What is wrong with the shape of a block spoils
all of it.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from schemas.arrays import F32, F64, I32, I64, U8
from schemas.blocks import DecisionBlock, TransitionBlock
from schemas.compiled import KERNEL, SMALL
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns

Bools = npt.NDArray[np.bool_]


@numba.njit(cache=True, nogil=True)
def count_sums(num_candidates: I32, context_token_counts: I32, action_token_counts: I32) -> tuple[int, int, int, int]:
    """(fewest, most candidates of a row, candidates of all rows, tokens of all contexts, tokens of all actions).

    A negative count makes the sum of its column -1.
    """
    fewest = most = num_candidates[0]
    total = np.int64(0)
    for count in num_candidates:
        fewest, most = min(fewest, count), max(most, count)
        total += count
    if fewest < 1:
        total = np.int64(-1)
    return int(most), int(total), _sum_of_counts(context_token_counts), _sum_of_counts(action_token_counts)


@numba.njit(cache=True, nogil=True)
def _sum_of_counts(counts: I32) -> int:
    total = np.int64(0)
    for count in counts:
        if count < 0:
            return -1
        total += count
    return int(total)


@numba.njit(cache=True, nogil=True)
def segment_sums(counts: I32, sizes: I64) -> I64:
    """(K,) sum of each of K consecutive parts of a column.

    `sizes` not negative, together the length of the column: nothing here looks.
    """
    sums = np.zeros(len(sizes), np.int64)
    at = 0
    for part in range(len(sizes)):
        for index in range(at, at + sizes[part]):
            sums[part] += counts[np.uint64(index)]
        at += sizes[part]
    return sums


@numba.njit(cache=True, nogil=True)
def rises(values: I64, strictly: bool) -> bool:
    """Whether no value falls below the one before it; strictly: nor equals it."""
    for index in range(1, len(values)):
        if values[index] < values[index - 1] or (strictly and values[index] == values[index - 1]):
            return False
    return True


@numba.njit(**SMALL)
def _finite(bits: I32, first: int, last: int) -> bool:
    """Whether the float32 numbers whose bits are bits[first:last] are all finite: no exponent is all ones.

    On integers, because the compiler may not reorder sums of floats and so does not vectorise them.
    """
    highest = np.int32(0)
    for index in range(np.uint64(first), np.uint64(last)):  # a signed index may be negative, and numba looks each time
        highest = max(highest, bits[index] & np.int32(0x7F800000))
    return bool(highest != np.int32(0x7F800000))


@numba.njit(**SMALL)
def _finite_f64(bits: I64, first: int, last: int) -> bool:
    """The same for float64."""
    highest = np.int64(0)
    for index in range(np.uint64(first), np.uint64(last)):
        highest = max(highest, bits[index] & np.int64(0x7FF0000000000000))
    return bool(highest != np.int64(0x7FF0000000000000))


@numba.njit(**SMALL)
def _sampled(propensities: I32, first: int, num_candidates: int, chosen: int, is_first_slot: bool) -> bool:
    """Whether one slot's integers are a distribution and its choice was possible under it."""
    total = np.int64(0)
    fewest = np.int32(0)
    for index in range(np.uint64(first), np.uint64(first + num_candidates)):
        total += propensities[index]
        fewest = min(fewest, propensities[index])
    if chosen < 0:  # a slate may run out of candidates; the first slot never does
        good = not is_first_slot and chosen == -1 and total == 0
    else:
        good = total == PROPENSITY_ONE and chosen < num_candidates and propensities[np.uint64(first + chosen)] > 0
    return bool(good and fewest >= 0)


@numba.njit(**SMALL)
def _tokens(tokens: I32, values: I32, first: int, last: int) -> bool:
    lowest = np.int32(0)
    for index in range(np.uint64(first), np.uint64(last)):
        lowest = min(lowest, tokens[index])
    return bool(lowest >= 0) and _finite(values, first, last)


@numba.njit(**KERNEL)
def _sound(
    sound: Bools,
    num_candidates: I32,
    chosen: I32,
    propensities: I32,
    context: I32,
    actions: I32,
    context_token_counts: I32,
    context_tokens: I32,
    context_token_values: I32,
    action_token_counts: I32,
    action_tokens: I32,
    action_token_values: I32,
    drawn: I64,
    widths: tuple[int, int, int, int],
) -> None:
    """Fill `sound` as `sound_rows` on flat arrays, floats as their bits.

    widths: slots, context features, action features, float64 numbers per row.
    """
    num_slots, context_width, action_width, drawn_width = widths
    candidate = context_token = action_token = 0
    is_finite = _finite(context, 0, len(context))  # almost always: one long loop instead of one per row
    for row in range(len(num_candidates)):
        count = num_candidates[np.uint64(row)]
        good = is_finite or _finite(context, row * context_width, (row + 1) * context_width)
        good &= _finite_f64(drawn, row * drawn_width, (row + 1) * drawn_width)
        if len(actions):
            good &= _finite(actions, candidate * action_width, (candidate + count) * action_width)
        for slot in range(num_slots):
            first = candidate * num_slots + slot * count
            good &= _sampled(propensities, first, count, chosen[np.uint64(row * num_slots + slot)], slot == 0)
        if len(context_token_counts):
            last = context_token + context_token_counts[row]
            good &= _tokens(context_tokens, context_token_values, context_token, last)
            context_token = last
        if len(action_token_counts):
            last = action_token
            for index in range(candidate, candidate + count):
                last += action_token_counts[index]
            good &= _tokens(action_tokens, action_token_values, action_token, last)
            action_token = last
        candidate += count
        sound[np.uint64(row)] = good


def _bits(values: F32) -> I32:
    return np.ascontiguousarray(values, np.float32).view(np.int32)


def sound_rows(block: DecisionBlock | TransitionBlock | DecisionColumns) -> Bools:
    """(N,) whether each row may be learnt from.

    A sound row has finite features, token values, drawn values and bounds; tokens in [0, 2**31); per slot propensities
    that are not negative and sum to 2**24, and a chosen candidate among them whose propensity is above 0 (later slots
    of a slate may stay empty: chosen -1 and propensities 0). The columns must fit together, as `codec.decode` checks.
    """
    columns = block if isinstance(block, DecisionColumns) else block.columns
    features = columns.features
    num_rows = len(columns)
    drawn = [part.reshape(num_rows, -1) for part in (columns.values, columns.bounds) if len(part)]
    flat = np.concatenate(drawn, axis=1).reshape(-1) if drawn else np.empty(0)
    sound = np.empty(num_rows, np.bool_)
    _sound(
        sound,
        features.num_candidates,
        columns.chosen.reshape(-1),
        columns.propensities,
        _bits(features.context.reshape(-1)),
        _bits(features.actions.reshape(-1)),
        features.context_token_counts,
        features.context_tokens,
        _bits(features.context_token_values),
        features.action_token_counts,
        features.action_tokens,
        _bits(features.action_token_values),
        flat.view(np.int64),
        (
            columns.num_slots,
            features.context.shape[1],
            features.actions.shape[1] if features.actions.ndim == 2 else 0,
            len(flat) // max(num_rows, 1),
        ),
    )
    return sound


@numba.njit(cache=True, nogil=True)
def all_sound_where(sound: Bools, buckets: U8, bucket_max: int) -> int:
    """Index of the first row that is not sound though its bucket is at most `bucket_max`, -1 for none."""
    for row in range(len(buckets)):
        if buckets[row] <= bucket_max and not sound[row]:
            return row
    return -1


def first_not_finite(values: F32 | F64) -> int:
    """Index of the first value that is NaN or infinite, -1 for none; `values` is flat."""
    narrow = values.dtype == np.float32
    good = (
        _finite(values.view(np.int32), 0, len(values)) if narrow else _finite_f64(values.view(np.int64), 0, len(values))
    )
    return -1 if good else int(np.argmin(np.isfinite(values)))
