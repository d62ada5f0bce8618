"""Design: which products of features the wide head regresses on, and which columns share a ridge.

Pure. learning.md rule 1: φ = (1, x) ⊗ (1, a, id), ids being one-hot over a declared catalogue. Three shapes of it:

    product     all of φ, while it has at most `WIDTH_MAX` columns
    blocks      with a catalogue and a larger φ: one regression on (1, x) per action, ridges shared
    projected   without a catalogue and a larger φ: sides wider than 32 enter the product through a fixed random
                projection to 32 and add their main effects in full

Simplification: main effects of a projected side wider than `EXTRA_MAX` are left to the projection.

Shape legend
    N rows, Dx and Da dense features, Px and Pa their width in the product, K actions, D columns, G groups
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import F64, I64
from schemas.task import Task

WIDTH_MAX = 2200
PROJECTED = 32
EXTRA_MAX = 1024
BLOCK_ELEMENTS_MAX = 1 << 22
"""Elements of all actions' Grams: 32 MiB, passed over three times per step."""
BLOCK_WIDTH_MAX = 512

CONSTANT, MAIN_X, MAIN_A, MAIN_ID, PRODUCT_A, PRODUCT_ID, EXTRA_X, EXTRA_A = range(8)
NUM_GROUPS = 8


@dataclass(frozen=True, slots=True)
class Design:
    """Columns of the wide head of one task."""

    blocks: bool
    """One regression per action instead of the product."""
    px: int
    pa: int
    num_actions: int
    """K, 0 without a catalogue."""
    extra_x: int
    """Main effects beside the product: Dx or 0."""
    extra_a: int
    x_projection: F64 | None
    """(Dx, Px), None when the side enters as it is."""
    a_projection: F64 | None

    @property
    def left(self) -> int:
        """1 + Px."""
        return 1 + self.px

    @property
    def right(self) -> int:
        """1 + Pa + K."""
        return 1 + self.pa + self.num_actions

    @property
    def width(self) -> int:
        """D: columns of the product and its extras; of one block in that shape."""
        return self.left if self.blocks else self.left * self.right + self.extra_x + self.extra_a

    @property
    def groups(self) -> I64:
        """(D,) group of each column, or (K, 1 + Px) in the shape of blocks."""
        if self.blocks:
            row = np.full(self.left, PRODUCT_ID)
            row[0] = MAIN_ID
            return np.tile(row, (self.num_actions, 1))
        table = np.empty((self.left, self.right), np.int64)
        a, ids = slice(1, 1 + self.pa), slice(1 + self.pa, self.right)
        table[0, 0], table[0, a], table[0, ids] = CONSTANT, MAIN_A, MAIN_ID
        table[1:, 0], table[1:, a], table[1:, ids] = MAIN_X, PRODUCT_A, PRODUCT_ID
        extras = [EXTRA_X] * self.extra_x + [EXTRA_A] * self.extra_a
        return np.concatenate([table.reshape(-1), np.array(extras, np.int64)])

    def left_rows(self, zx: F64) -> F64:
        """(1, x) as it enters the product, (N, 1 + Px)."""
        inner = zx if self.x_projection is None else zx @ self.x_projection
        return np.concatenate([np.ones((len(zx), 1)), inner], 1)

    def rows(self, zx: F64, za: F64, ids: I64) -> F64:
        """φ (N, D) of standardised features zx (N, Dx), za (N, Da) and ids (N,) or (0,)."""
        right = np.zeros((len(za), self.right))
        right[:, 0] = 1.0
        right[:, 1 : 1 + self.pa] = za if self.a_projection is None else za @ self.a_projection
        if self.num_actions:
            right[np.arange(len(ids)), 1 + self.pa + ids] = 1.0
        product = (self.left_rows(zx)[:, :, None] * right[:, None, :]).reshape(len(zx), -1)
        extras = [zx] * (self.extra_x > 0) + [za] * (self.extra_a > 0)
        return np.concatenate([product, *extras], 1) if extras else product


def design_of(task: Task) -> Design:
    """The shape that the task's widths call for."""
    dx, da, k = task.context.width, task.action.width, len(task.actions)
    if (1 + dx) * (1 + da + k) <= WIDTH_MAX:
        return Design(False, dx, da, k, 0, 0, None, None)
    seed = task.learner.seed
    if k:
        px = min(dx, BLOCK_WIDTH_MAX, max(8, int(np.sqrt(BLOCK_ELEMENTS_MAX / k)) - 1))
        return Design(True, px, 0, k, 0, 0, _projection(dx, px, seed, 1) if px < dx else None, None)
    px, pa = min(dx, PROJECTED), min(da, PROJECTED)
    return Design(
        blocks=False,
        px=px,
        pa=pa,
        num_actions=0,
        extra_x=dx if px < dx <= EXTRA_MAX else 0,
        extra_a=da if pa < da <= EXTRA_MAX else 0,
        x_projection=_projection(dx, px, seed, 1) if px < dx else None,
        a_projection=_projection(da, pa, seed, 2) if pa < da else None,
    )


def uniforms(seed: int, stream: int, count: int) -> F64:
    """`count` numbers in [0, 1): Philox4x64-10 through its raw stream, upper 53 bits (learning.md rule 22)."""
    raw = np.random.Philox(key=[seed % 2**64, stream]).random_raw(count)
    out: F64 = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out


def _projection(width: int, narrow: int, seed: int, stream: int) -> F64:
    """(width, narrow) entries ±1/√width: unit variance for standardised inputs (Achlioptas 2003)."""
    signs = np.where(uniforms(seed, stream, width * narrow) < 0.5, -1.0, 1.0)
    out: F64 = signs.reshape(width, narrow) / np.sqrt(width)
    return out
