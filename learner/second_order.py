"""Second order: exact ridge regression whose ridges are set by the evidence, group by group.

Owns moments (Gram, Φ'y, …), their exact re-standardisation, the Cholesky solve with its ladder, and MacKay's update of
the ridges. learning.md rules 3, 10 and 12; hybrid-learner.md §2. Knows nothing of rows, time or what features mean.

The Gram may live on a GPU; every solve is float64 on the CPU.

Shape legend
    D columns of the design, K actions (shape of blocks), G groups
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learner.design import CONSTANT, NUM_GROUPS, Design
from schemas.arrays import F64, I64

RIDGE_CONSTANT = 1e-2
LADDER = (0.0, 10.0, 100.0, 1e3, 1e4)
"""Extra ridge, in units of the group's own, tried in turn when the Cholesky fails (rule 3)."""
GROWTH = 1.15
"""Evidence is looked at again when this many times the rows have been seen."""
STEP_MAX = 4.0
"""A ridge moves at most by this factor at a time."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows, decayed or not. Never changed in place."""

    gram: torch.Tensor
    """Φ'Φ (D, D), or (K, D, D) in the shape of blocks."""
    cross: torch.Tensor
    """Φ'y (D,) or (K, D)."""
    yy: float
    """Σy²."""
    y: float
    """Σy."""
    n: float
    """Σ1."""

    @classmethod
    def none(cls, design: Design, device: str) -> Moments:
        """Of no rows."""
        lead = (design.num_actions,) if design.blocks else ()
        shape = (*lead, design.width)
        zero = torch.zeros((*shape, design.width), dtype=torch.float64, device=device)
        return cls(zero, torch.zeros(shape, dtype=torch.float64, device=device), 0.0, 0.0, 0.0)

    def plus(self, other: Moments, keep: float = 1.0) -> Moments:
        """``keep`` · self + other: one product Φ'Φ serves the wide head and its twin (rule 12)."""
        return Moments(
            self.gram * keep + other.gram if keep != 1.0 else self.gram + other.gram,
            self.cross * keep + other.cross,
            self.yy * keep + other.yy,
            self.y * keep + other.y,
            self.n * keep + other.n,
        )


def moments_of(design: Design, zx: F64, za: F64, ids: I64, y: F64, device: str) -> Moments:
    """Moments of standardised rows."""
    targets = torch.from_numpy(np.ascontiguousarray(y)).to(device)
    sums = (float((y * y).sum()), float(y.sum()), float(len(y)))
    if not design.blocks:
        phi = torch.from_numpy(design.rows(zx, za, ids)).to(device)
        return Moments(phi.T @ phi, phi.T @ targets, *sums)
    empty = Moments.none(design, device)
    left = torch.from_numpy(design.left_rows(zx)).to(device)
    order = np.argsort(ids, kind="stable")
    actions, starts = np.unique(ids[order], return_index=True)
    stops = [*starts[1:], len(ids)]
    for action, start, stop in zip(actions, starts, stops, strict=True):  # at most one turn per action of a step
        some = torch.from_numpy(order[start:stop]).to(device)
        empty.gram[action] = left[some].T @ left[some]
        empty.cross[action] = left[some].T @ targets[some]
    return replace(empty, yy=sums[0], y=sums[1], n=sums[2])


@dataclass(frozen=True, slots=True)
class Ridges:
    """One ridge per group and when the evidence was last asked."""

    by_group: F64
    """(G,) λ of each group."""
    last_evidence: float
    """Rows seen when the ridges were last set."""

    @classmethod
    def start(cls, groups: I64) -> Ridges:
        """λ_g = d_g: every group may explain as much as the noise."""
        sizes = np.bincount(groups.reshape(-1), minlength=NUM_GROUPS).astype(np.float64)
        sizes[CONSTANT] = RIDGE_CONSTANT
        return cls(sizes, 0.0)


@dataclass(frozen=True, slots=True)
class Solution:
    """Weights in terms of z, and what the evidence made of the ridges."""

    weights: F64
    """(D,) or (K, D); the mean reward is in the constant's weight."""
    ridges: Ridges


def solve(
    design: Design, moments: Moments, ridges: Ridges, seen: float, var_floor: float, evidence: bool = True
) -> Solution | None:
    """The ridge solution; with `evidence` also the next ridges once `seen` rows call for it.

    `var_floor`: variance below which rewards count as equal. None when no rung of the ladder gives a finite solution.
    """
    groups = design.groups
    gram, cross, shift, scale = _standardised(design, moments)
    mean = moments.y / moments.n
    target = cross - mean * _constant_column(design, gram)
    yy = moments.yy - moments.n * mean * mean
    penalty = torch.from_numpy(ridges.by_group[groups])
    for rung in LADDER:
        loaded = gram.clone()
        loaded.diagonal(dim1=-2, dim2=-1).add_(penalty * (1.0 + rung))
        factor, failed = torch.linalg.cholesky_ex(loaded)
        if bool((failed == 0).all()):
            w = torch.cholesky_solve(target.unsqueeze(-1), factor).squeeze(-1)
            if bool(torch.isfinite(w).all()):
                break
    else:
        return None
    if evidence and seen >= GROWTH * ridges.last_evidence:
        inverse = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).numpy()
        fit = float((w * target).sum())
        quadratic = float((w.unsqueeze(-2) @ gram @ w.unsqueeze(-1)).sum())
        rss = yy - 2.0 * fit + quadratic
        by_group = _evidence(groups, ridges.by_group, inverse, w.numpy(), rss, moments.n, yy / moments.n, var_floor)
        ridges = Ridges(by_group, seen)
    weights = _unstandardised(design, w.numpy(), shift, scale)
    weights[..., 0] += mean
    return Solution(weights, ridges)


def _evidence(
    groups: I64, ridges: F64, inverse: F64, w: F64, rss: float, n: float, variance: float, var_floor: float
) -> F64:
    """One fixed-point step of every group's ridge (MacKay 1992, eq. 4.9-4.10; Tipping 2001, eq. 16-17)."""
    sizes = np.bincount(groups.reshape(-1), minlength=NUM_GROUPS).astype(np.float64)
    traces = np.bincount(groups.reshape(-1), weights=inverse.reshape(-1), minlength=NUM_GROUPS)
    norms = np.bincount(groups.reshape(-1), weights=(w * w).reshape(-1), minlength=NUM_GROUPS)
    determined = sizes - ridges * traces
    noise = max(rss, var_floor * n) / max(n - determined.sum(), 0.1 * n)
    out = ridges.copy()
    for group in range(NUM_GROUPS):
        if group == CONSTANT or not sizes[group]:
            continue
        if variance < var_floor or norms[group] <= 1e-12 * variance:
            out[group] = sizes[group]
            continue
        wanted = noise * max(determined[group], 1e-3) / norms[group]
        stepped = np.clip(wanted, ridges[group] / STEP_MAX, ridges[group] * STEP_MAX)
        out[group] = np.clip(stepped, 0.1, 1e5 * sizes[group])
    return out


def _constant_column(design: Design, gram: torch.Tensor) -> torch.Tensor:
    """Φ'1 in the standardised basis: the constant's column of the Gram."""
    return gram[..., 0]


Affine = tuple[list[torch.Tensor], list[torch.Tensor]]


def _standardised(
    design: Design, moments: Moments
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """T G T' and T Φ'y, with T standardising each side exactly: (1, x) ⊗ (1, a) is closed under affine maps.

    Also the shifts and scales of the three axes (left, right, extras) for the way back. A column that does not vary
    gets scale 0: its weight is 0.
    """
    gram, cross = moments.gram.cpu(), moments.cross.cpu()
    pooled = gram.sum(0) if design.blocks else gram
    left, right = design.left, 1 if design.blocks else design.right
    product = left * right
    picks = (
        torch.arange(1, left) * right,
        torch.arange(1, right),
        torch.arange(product, product + design.extra_x + design.extra_a),
    )
    shift, scale = [], []
    for columns in picks:
        mean = pooled[0, columns] / moments.n
        square = pooled.diagonal()[columns] / moments.n
        variance = square - mean * mean
        varies = (variance > 1e-12 * square) & (variance > 0.0)
        shift.append(mean)
        scale.append(torch.where(varies, variance.clamp_min(1e-300).rsqrt(), 0.0))
    gram, cross = gram.clone(), cross.clone().unsqueeze(-1)
    _apply(gram, left, right, shift, scale)
    _apply(gram.transpose(-2, -1), left, right, shift, scale)
    _apply(cross, left, right, shift, scale)
    return gram, cross[..., 0], shift, scale


def _apply(matrix: torch.Tensor, left: int, right: int, shift: list[torch.Tensor], scale: list[torch.Tensor]) -> None:
    """matrix ← T @ matrix, in place, for matrix (…, D, C) or a transposed view; T is never written out."""
    product = left * right
    matrix[..., product:, :] -= shift[2][:, None] * matrix[..., :1, :]
    matrix[..., product:, :] *= scale[2][:, None]
    core = matrix[..., :product, :].view(*matrix.shape[:-2], left, right, matrix.shape[-1])
    core[..., 1:, :, :] -= shift[0][:, None, None] * core[..., :1, :, :]
    core[..., 1:, :, :] *= scale[0][:, None, None]
    core[..., 1:, :] -= shift[1][:, None] * core[..., :1, :]
    core[..., 1:, :] *= scale[1][:, None]


def _unstandardised(design: Design, w: F64, shift: list[torch.Tensor], scale: list[torch.Tensor]) -> F64:
    """T' w: the same function of z itself."""
    left, right = design.left, 1 if design.blocks else design.right
    product = left * right
    (s0, s1, s2), (k0, k1, k2) = [s.numpy() for s in shift], [k.numpy() for k in scale]
    core = w[..., :product].reshape(*w.shape[:-1], left, right).copy()
    core[..., 1:] *= k1
    core[..., 0] -= core[..., 1:] @ s1
    core[..., 1:, :] *= k0[:, None]
    core[..., :1, :] -= (s0[:, None] * core[..., 1:, :]).sum(-2, keepdims=True)
    extras = w[..., product:] * k2
    core[..., 0, 0] -= extras @ s2
    return np.concatenate([core.reshape(*w.shape[:-1], product), extras], -1)


def arrays_of(prefix: str, moments: Moments, ridges: Ridges) -> dict[str, np.ndarray[Any, Any]]:
    """A head's sums and ridges by name, for a checkpoint."""
    return {
        prefix + "gram": moments.gram.cpu().numpy().copy(),
        prefix + "cross": moments.cross.cpu().numpy().copy(),
        prefix + "sums": np.array([moments.yy, moments.y, moments.n]),
        prefix + "ridges": np.array([*ridges.by_group, ridges.last_evidence]),
    }


def of_arrays(prefix: str, arrays: Mapping[str, np.ndarray[Any, Any]], device: str) -> tuple[Moments, Ridges]:
    """The inverse of `arrays_of`."""
    gram = torch.from_numpy(np.array(arrays[prefix + "gram"])).to(device)
    cross = torch.from_numpy(np.array(arrays[prefix + "cross"])).to(device)
    yy, y, n = (float(value) for value in arrays[prefix + "sums"])
    ridges = np.array(arrays[prefix + "ridges"])
    return Moments(gram, cross, yy, y, n), Ridges(ridges[:-1], float(ridges[-1]))
