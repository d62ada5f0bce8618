"""The arithmetic of one forward pass, row by row, in compiled loops.

Owns the order of operations: sums run over their index in rising order, without BLAS, libm, fused or reordered
additions. So a row's scores depend on nothing but the row and the weights: neither on the other rows of its batch nor
on the machine's libraries. The arrays' meaning stands in `learner.policy.network`, whose results these are but for
rounding.

Shape legend as in `learner.policy.network`; a side's product width P is Dx or Da where it is not projected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from learner.policy.explore import exact_exp
from learner.policy.network import CLIP, EMBEDDED_TOKENS, EMBEDDING_BITS

NUM_SIZES = 11
DX, DA, PX, PA, WIDTH, HIDDEN, JX, JA, HAS_MAIN_X, HAS_MAIN_A, CATALOGUE = range(NUM_SIZES)
"""Places in `sizes`. PX, PA: 0 for a side that is not projected. WIDTH: columns of `wide`. HIDDEN 0 without the deep
expert; JX, JA: J, or 0 for a side whose tokens it does not see. The others are 1 where there is `wide_x`, `wide_a`, a
declared catalogue."""
DOUBLES = ("x_mean", "x_scale", "a_mean", "a_scale", "x_projection", "a_projection", "wide", "wide_x", "wide_a")
SINGLES = ("deep_x", "deep_a", "deep_tx", "deep_ta", "deep_b1", "deep_w2", "deep_b2", "deep_w3")
"""Arrays that the kernels get end to end, in this order; those that a task does not have take no room."""

_TANH_MAX = np.float32(7.90531110763549805)
_P1, _P3, _P5, _P7, _P9, _P11, _P13 = map(
    np.float32,
    (
        4.89352455891786e-03,
        6.37261928875436e-04,
        1.48572235717979e-05,
        5.12229709037114e-08,
        -8.60467152213735e-11,
        2.00018790482477e-13,
        -2.76076847742355e-16,
    ),
)
_Q0, _Q2, _Q4, _Q6 = map(
    np.float32, (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)
_HALF = np.float32(0.5)


@njit(cache=True, nogil=True, inline="always")
def _silu(x):  # type: ignore[no-untyped-def]  # numba
    """x · σ(x) of a float32, σ by tanh as the quotient of two polynomials: within 4e-7 · max(1, |x|).

    Where a caller has numba's numpy error model (no check for q = 0), loops over it become vector instructions.
    The coefficients are the minimax ones that Eigen and XLA use for float32 (degree 13 over 6).
    """
    h = _HALF * x
    h = min(max(h, -_TANH_MAX), _TANH_MAX)
    s = h * h
    p = ((((((_P13 * s + _P11) * s + _P9) * s + _P7) * s + _P5) * s + _P3) * s + _P1) * h
    q = ((_Q6 * s + _Q4) * s + _Q2) * s + _Q0
    return x * (_HALF + _HALF * (p / q))


@njit(cache=True, nogil=True)
def _cut(flat, start, rows, columns):  # type: ignore[no-untyped-def]  # numba
    """(the array of that shape that begins at `start`, where the next one begins)."""
    stop = start + rows * columns
    return flat[start:stop].reshape(rows, columns), stop


@njit(cache=True, nogil=True)
def _standardise(dense, row, mean, scale, out):  # type: ignore[no-untyped-def]  # numba
    """z of one row (learning.md rule 2); NaN stays NaN."""
    for column in range(len(out)):
        value = (np.float64(dense[row, column]) - mean[0, column]) * scale[0, column]
        if value < -CLIP:
            value = -CLIP
        elif value > CLIP:
            value = CLIP
        out[column] = value


@njit(cache=True, nogil=True)
def _add_product(vector, matrix, first_row, out):  # type: ignore[no-untyped-def]  # numba
    """out += vector @ matrix[first_row:], in the precision of `out`. Four rows at a time, in their order."""
    kind = out.dtype.type
    k = 0
    while k + 4 <= len(vector):
        f0, f1, f2, f3 = kind(vector[k]), kind(vector[k + 1]), kind(vector[k + 2]), kind(vector[k + 3])
        r0, r1 = matrix[first_row + k], matrix[first_row + k + 1]
        r2, r3 = matrix[first_row + k + 2], matrix[first_row + k + 3]
        for j in range(len(out)):
            out[j] = (((out[j] + f0 * r0[j]) + f1 * r1[j]) + f2 * r2[j]) + f3 * r3[j]
        k += 4
    while k < len(vector):
        factor = kind(vector[k])
        for j in range(len(out)):
            out[j] += factor * matrix[first_row + k, j]
        k += 1


@njit(cache=True, nogil=True)
def _projected(z, projection, out):  # type: ignore[no-untyped-def]  # numba
    """z @ projection, or z itself where the side is not projected."""
    if projection.shape[1] == 0:
        return z
    out[:] = 0.0
    _add_product(z, projection, 0, out)
    return out


@njit(cache=True, nogil=True)
def _dot(left, right):  # type: ignore[no-untyped-def]  # numba
    total = 0.0
    for k in range(len(left)):
        total += left[k] * right[0, k]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _deep(first, b2, w2, w3, hidden):  # type: ignore[no-untyped-def]  # numba
    """The net's output in its own units from the pre-activations of its first layer, which are overwritten."""
    for j in range(len(first)):
        first[j] = _silu(first[j])
        hidden[j] = b2[0, j]
    _add_product(first, w2, 0, hidden)
    for j in range(len(hidden)):
        hidden[j] = _silu(hidden[j]) * w3[0, j]
    total = np.float32(0.0)
    for j in range(len(hidden)):
        total += hidden[j]
    return np.float64(total)


@njit(cache=True, nogil=True)
def pooled(bounds, hashes, weights, embedding):  # type: ignore[no-untyped-def]  # numba
    """Σ weight · embedding of each owner's first tokens, (n, J) float32, as `network.pooled_embedding`."""
    out = np.zeros((len(bounds) - 1, embedding.shape[1]), np.float32)
    for i in range(len(bounds) - 1):
        for t in range(bounds[i], min(bounds[i + 1], bounds[i] + EMBEDDED_TOKENS)):
            slot = np.int64(hashes[t] >> np.uint64(64 - EMBEDDING_BITS))
            weight = np.float32(weights[t])
            for j in range(out.shape[1]):
                out[i, j] += weight * embedding[slot, j]
    return out


@njit(cache=True, nogil=True)
def _heads(doubles, sizes):  # type: ignore[no-untyped-def]  # numba
    """The arrays of `DOUBLES`; one that the task does not have has no rows or no columns."""
    dx, da, px, width = sizes[DX], sizes[DA], sizes[PX], sizes[WIDTH]
    x_mean, at = _cut(doubles, 0, 1, dx)
    x_scale, at = _cut(doubles, at, 1, dx)
    a_mean, at = _cut(doubles, at, 1, da)
    a_scale, at = _cut(doubles, at, 1, da)
    x_projection, at = _cut(doubles, at, dx, px)
    a_projection, at = _cut(doubles, at, da, sizes[PA])
    wide, at = _cut(doubles, at, 1 + (px if px > 0 else dx), width)
    wide_x, at = _cut(doubles, at, sizes[HAS_MAIN_X], dx)
    wide_a, _ = _cut(doubles, at, sizes[HAS_MAIN_A], da)
    return x_mean, x_scale, a_mean, a_scale, x_projection, a_projection, wide, wide_x, wide_a


@njit(cache=True, nogil=True)
def _layers(singles, sizes):  # type: ignore[no-untyped-def]  # numba
    """The arrays of `SINGLES`, likewise."""
    h = sizes[HIDDEN]
    deep_x, at = _cut(singles, 0, sizes[DX], h)
    deep_a, at = _cut(singles, at, sizes[DA], h)
    deep_tx, at = _cut(singles, at, sizes[JX], h)
    deep_ta, at = _cut(singles, at, sizes[JA], h)
    b1, at = _cut(singles, at, min(1, h), h)
    w2, at = _cut(singles, at, h, h)
    b2, at = _cut(singles, at, min(1, h), h)
    w3, _ = _cut(singles, at, min(1, h), h)
    return deep_x, deep_a, deep_tx, deep_ta, b1, w2, b2, w3


@njit(cache=True, nogil=True)
def catalogue_first(z_actions, ids, a_pooled, sizes, singles):  # type: ignore[no-untyped-def]  # numba
    """The catalogue's part (K, H) of the first layer. `ids` (K, H) or (0, H), `a_pooled` (K, J) or (0, J)."""
    h = sizes[HIDDEN]
    _, deep_a, _, deep_ta, _, _, _, _ = _layers(singles, sizes)
    out = np.zeros((len(z_actions), h), np.float32)
    for k in range(len(out)):
        _add_product(z_actions[k], deep_a, 0, out[k])
        if len(a_pooled) > 0:
            _add_product(a_pooled[k], deep_ta, 0, out[k])
        if len(ids) > 0:
            for j in range(h):
                out[k, j] += ids[k, j]
    return out


@njit(cache=True, nogil=True)
def scores(  # type: ignore[no-untyped-def]  # numba
    context, actions, num_candidates, sizes, doubles, singles, constants, stack, first, x_pooled, a_pooled, crosses
):
    """Expected reward (M,) float64 of every candidate.

    `sizes`, `doubles` and `singles` as laid out above; `constants`: centre of the stack, mean, sd and last bias of the
    deep expert, base of the cross expert. `stack` (E,). `first` (K, H) the catalogue's part of the first layer, (0, H)
    with candidates. `x_pooled` (N, J), `a_pooled` (M, J) and `crosses` (M, L) are empty where there are no tokens.
    """
    dx, da, h = sizes[DX], sizes[DA], sizes[HIDDEN]
    x_mean, x_scale, a_mean, a_scale, x_projection, a_projection, wide, wide_x, wide_a = _heads(doubles, sizes)
    deep_x, deep_a, deep_tx, deep_ta, deep_b1, deep_w2, deep_b2, deep_w3 = _layers(singles, sizes)
    centre, mean, sd, bias, base = constants[0], constants[1], constants[2], constants[3], constants[4]
    catalogue = sizes[CATALOGUE] == 1
    zx, za = np.empty(dx), np.empty(da)
    x_product, a_product, left = np.empty(sizes[PX]), np.empty(sizes[PA]), np.empty(sizes[WIDTH])
    x_first, pre, hidden = np.empty(h, np.float32), np.empty(h, np.float32), np.empty(h, np.float32)
    out = np.empty(num_candidates.sum())
    m = 0
    for row in range(len(num_candidates)):
        _standardise(context, row, x_mean, x_scale, zx)
        left[:] = wide[0]
        _add_product(_projected(zx, x_projection, x_product), wide, 1, left)
        main = _dot(zx, wide_x) if len(wide_x) > 0 else 0.0
        if h > 0:
            x_first[:] = deep_b1[0]
            _add_product(zx, deep_x, 0, x_first)
            if len(x_pooled) > 0:
                _add_product(x_pooled[row], deep_tx, 0, x_first)
        for k in range(num_candidates[row]):
            if catalogue:
                score = left[k] + main
            else:
                _standardise(actions, m, a_mean, a_scale, za)
                score = left[0] + main
                side = _projected(za, a_projection, a_product)
                for j in range(len(side)):
                    score += left[1 + j] * side[j]
                if len(wide_a) > 0:
                    score += _dot(za, wide_a)
            expert = 1
            total = centre + (score - centre) * stack[0]
            if h > 0:
                pre[:] = x_first
                if catalogue:
                    for j in range(h):
                        pre[j] += first[k, j]
                else:
                    _add_product(za, deep_a, 0, pre)
                    if len(a_pooled) > 0:
                        _add_product(a_pooled[m], deep_ta, 0, pre)
                total += (mean + sd * (bias + _deep(pre, deep_b2, deep_w2, deep_w3, hidden)) - centre) * stack[1]
                expert = 2
            if len(crosses) > 0:
                total += (base + crosses[m, 0] - centre) * stack[expert]
                if crosses.shape[1] > 1:
                    total += (_sigmoid(crosses[m, 1]) - centre) * stack[expert + 1]
            out[m] = total
            m += 1
    return out


@njit(cache=True, nogil=True)
def _sigmoid(x):  # type: ignore[no-untyped-def]  # numba
    if x >= 0.0:
        return 1.0 / (1.0 + exact_exp(-x))
    e = exact_exp(x)
    return e / (1.0 + e)


def packed(arrays: dict[str, Any], names: tuple[str, ...], dtype: Any) -> Any:
    """The arrays of these names end to end, in one owned array: what comes out of a snapshot may be unaligned."""
    parts = [np.asarray(arrays[name], dtype).reshape(-1) for name in names if name in arrays]
    return np.concatenate([np.zeros(0, dtype), *parts])
