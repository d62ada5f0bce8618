"""Token × token: weights of tokens, places in the hashed table, sums over a candidate's crosses.

Owns the arithmetic that worker and learner must share to the last bit, as numba loops over flat columns. Knows nothing
of tasks, of what is in the table or of how it is learnt. Tokens of one owner (a context or a candidate):

    raw value · idf (text only)  →  scaled to norm 1  →  one more token joins with equal weight:
        a declared action's own id; or, without a catalogue, a constant on the context's side, whose crosses are the
        main effects of the action's tokens (a catalogue has the wide head for them, which unlike this one is exact)

A cross of a context token p and an action token q has the value v_p · v_q and the table slot ``slot_of``.

Simplification: slots are found by hashing and collide; with 2**18 slots that cost nothing measurable on BANKING77.

Shape legend
    N rows, M candidates, T tokens of one side, C crosses, L columns of the table
"""

from __future__ import annotations

import numpy as np
from numba import njit

from schemas.arrays import F32, F64, I32, I64, U64
from schemas.decision_columns import TEXT_TOKEN

IDF_BITS = 16
"""The idf table has 2**16 slots: 256 KiB, and BANKING77's 32,000 tokens rarely meet there."""
NO_ID = -1
"""Nothing joins."""
CONSTANT = (1 << 30) - 1
"""The context's constant token, where there is no catalogue."""

_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_ACTION_SALT = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_S33 = np.uint64(33)


def id_tokens(action_keys: U64) -> I64:
    """The token (K,) that stands for each declared action's id: 30 bits of its key."""
    return (action_keys >> np.uint64(34)).astype(np.int64)


def constants(num_owners: int, catalogue: bool) -> I64:
    """What joins the contexts' tokens: `CONSTANT` each (n,), or nothing (0,) with a catalogue."""
    return np.full(0 if catalogue else num_owners, CONSTANT, np.int64)


def bounds_of(counts: I32) -> I64:
    """Start of every owner's tokens and the end of the last, (len + 1,)."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


@njit(cache=True, nogil=True, inline="always")
def mixed(word):  # type: ignore[no-untyped-def]  # numba
    """murmur3's 64-bit finaliser."""
    word ^= word >> _S33
    word *= _MIX_1
    word ^= word >> _S33
    word *= _MIX_2
    return word ^ (word >> _S33)


@njit(cache=True, nogil=True, inline="always")
def context_hash(token):  # type: ignore[no-untyped-def]  # numba
    """Hash of a token on the context's side."""
    return mixed(np.uint64(token) + np.uint64(1))


@njit(cache=True, nogil=True, inline="always")
def action_hash(token):  # type: ignore[no-untyped-def]  # numba
    """Hash of a token on the action's side: the same token means something else there."""
    return mixed(np.uint64(token) + _ACTION_SALT)


@njit(cache=True, nogil=True, inline="always")
def slot_of(context, action, shift):  # type: ignore[no-untyped-def]  # numba
    """Table slot of a cross, from both hashes; `shift` is 64 - bits."""
    return np.int64(((context + action) * _GOLDEN) >> shift)


@njit(cache=True, nogil=True, inline="always")
def idf_slot(token):  # type: ignore[no-untyped-def]  # numba
    """Slot of a text token in the idf table."""
    return np.int64(mixed(np.uint64(token)) >> np.uint64(64 - IDF_BITS))


@njit(cache=True, nogil=True)
def weigh(tokens, values, start, stop, idf, id_token, hashes, weights, offset, is_action):  # type: ignore[no-untyped-def]  # numba
    """Hashes and normalised weights of one owner's tokens [start, stop), written from `offset`; returns the end.

    `idf` (2**IDF_BITS,), or (0,) without text. `id_token` joins last, or `NO_ID`.
    """
    total = 0.0
    end = offset
    for t in range(start, stop):
        token = tokens[t]
        weight = np.float64(values[t])
        if token >= TEXT_TOKEN and len(idf) > 0:
            weight *= idf[idf_slot(token)]
        total += weight * weight
        hashes[end] = action_hash(token) if is_action else context_hash(token)
        weights[end] = weight
        end += 1
    share = 1.0 / np.sqrt(total) if total > 0.0 else 0.0
    if id_token >= 0 and total > 0.0:
        share *= np.sqrt(0.5)
    for t in range(offset, end):
        weights[t] *= share
    if id_token >= 0:
        hashes[end] = action_hash(id_token) if is_action else context_hash(id_token)
        weights[end] = np.sqrt(0.5) if total > 0.0 else 1.0
        end += 1
    return end


@njit(cache=True, nogil=True)
def weigh_side(bounds: I64, tokens: I32, values: F32, idf: F32, ids: I64, is_action: bool) -> tuple[I64, U64, F64]:
    """All owners of one side: bounds (n + 1,), hashes (T,) and weights (T,). `ids` (n,) tokens that join, or (0,)."""
    num_owners = len(bounds) - 1
    out_bounds = np.zeros(num_owners + 1, np.int64)
    hashes = np.empty(len(tokens) + len(ids), np.uint64)
    weights = np.empty(len(tokens) + len(ids), np.float64)
    for i in range(num_owners):
        id_token = ids[i] if len(ids) > 0 else NO_ID
        out_bounds[i + 1] = weigh(
            tokens, values, bounds[i], bounds[i + 1], idf, id_token, hashes, weights, out_bounds[i], is_action
        )
    return out_bounds, hashes, weights


@njit(cache=True, nogil=True)
def sums(table, num_candidates, shared, x_bounds, x_hashes, x_weights, a_bounds, a_hashes, a_weights):  # type: ignore[no-untyped-def]  # numba
    """Σ v · table[slot] over each candidate's crosses, (M, L) float64; `table` (2**bits, L).

    `shared`: every row has the same candidates (a catalogue), and the action side holds them once.
    """
    num_links = table.shape[1]
    out = np.zeros((num_candidates.sum(), num_links))
    shift = np.uint64(64)
    size = 1
    while size < table.shape[0]:
        size *= 2
        shift -= np.uint64(1)
    m = 0
    for i in range(len(num_candidates)):
        for k in range(num_candidates[i]):
            a = k if shared else m
            linear = 0.0
            logistic = 0.0
            for q in range(a_bounds[a], a_bounds[a + 1]):
                for p in range(x_bounds[i], x_bounds[i + 1]):
                    slot = slot_of(x_hashes[p], a_hashes[q], shift)
                    value = x_weights[p] * a_weights[q]
                    linear += value * table[slot, 0]
                    if num_links > 1:
                        logistic += value * table[slot, 1]
            out[m, 0] = linear
            if num_links > 1:
                out[m, 1] = logistic
            m += 1
    return out


@njit(cache=True, nogil=True)
def places(bits, num_candidates, shared, x_bounds, x_hashes, x_weights, a_bounds, a_hashes, a_weights):  # type: ignore[no-untyped-def]  # numba
    """The same crosses written out: candidate (C,), slot (C,) and value (C,). For tables that numba cannot read."""
    total = 0
    m = 0
    for i in range(len(num_candidates)):
        for k in range(num_candidates[i]):
            a = k if shared else m
            total += (a_bounds[a + 1] - a_bounds[a]) * (x_bounds[i + 1] - x_bounds[i])
            m += 1
    candidates = np.empty(total, np.int64)
    slots = np.empty(total, np.int64)
    values = np.empty(total)
    m = 0
    c = 0
    for i in range(len(num_candidates)):
        for k in range(num_candidates[i]):
            a = k if shared else m
            for q in range(a_bounds[a], a_bounds[a + 1]):
                for p in range(x_bounds[i], x_bounds[i + 1]):
                    candidates[c] = m
                    slots[c] = slot_of(x_hashes[p], a_hashes[q], np.uint64(64 - bits))
                    values[c] = x_weights[p] * a_weights[q]
                    c += 1
            m += 1
    return candidates, slots, values


@njit(cache=True, nogil=True)
def padded(bounds, hashes, weights, width, bits):  # type: ignore[no-untyped-def]  # numba
    """The first `width` tokens of each owner as embedding slots (n, width) uint16 and weights float32, 0 for none."""
    slots = np.zeros((len(bounds) - 1, width), np.uint16)
    values = np.zeros((len(bounds) - 1, width), np.float32)
    for i in range(len(bounds) - 1):
        for t in range(min(width, bounds[i + 1] - bounds[i])):
            slots[i, t] = hashes[bounds[i] + t] >> np.uint64(64 - bits)
            values[i, t] = weights[bounds[i] + t]
    return slots, values


Tokens = tuple[I64, U64, F64]
"""One side, weighed: bounds (n + 1,), hashes (T,), weights (T,)."""
