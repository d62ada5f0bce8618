"""The reader rule of the transitions topic (join.md rule 7): which rows of a block are new.

A chain is (task fingerprint, kind) within one journal partition; its blocks name the position before their first
row. One integer per chain, the position accepted last, is enough to take every row once whatever is written twice,
written again after a restart, or lost. Learner, audit, a successor and the join itself read by this.

    block.prev ≤ hwm, hwm ≤ prev or among the positions, or past the last   → rows after hwm are new
    block.prev > hwm                                                        → hole: rows in between are missing
    hwm within (prev, last] but not among the positions                     → fork: two histories; stop
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schemas.blocks import TransitionBlock
from schemas.records import Progress

Chain = tuple[bytes, int]
"""(task fingerprint, kind) within one partition."""

START = -1
"""High-water mark of a chain of which nothing was accepted."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The block continues its chain; rows from `start` on are new (`start` == rows: nothing is)."""

    start: int


@dataclass(frozen=True, slots=True)
class Hole:
    """Rows between `expected` (the reader's hwm) and `got` (the block's prev) are missing. The block is ignored."""

    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class Fork:
    """The reader's `hwm` is not a row of a block that spans it: two different histories exist."""

    hwm: int


class ChainReader:
    """What one reader has accepted of one partition of `transitions`. A hole or a fork changes nothing."""

    def __init__(self, hwm: Mapping[Chain, int] | None = None) -> None:
        self.hwm: dict[Chain, int] = dict(hwm or {})

    def offer(self, block: TransitionBlock) -> Accepted | Hole | Fork:
        """Judge `block`; if accepted, the chain's hwm moves to its last row."""
        chain = (block.fingerprint, block.kind)
        hwm = self.hwm.get(chain, START)
        if block.prev > hwm:
            return Hole(expected=hwm, got=block.prev)
        if len(block) == 0 or hwm >= block.last:
            return Accepted(len(block))
        start = 0
        if hwm > block.prev:
            row = int(np.searchsorted(block.positions, hwm))
            if int(block.positions[row]) != hwm:
                return Fork(hwm)
            start = row + 1
        self.hwm[chain] = block.last
        return Accepted(start)

    def covers(self, progress: Progress) -> bool:
        """Whether every chain of `progress` has been accepted here at least as far (join.md rule 8)."""
        return all(self.hwm.get((chain.fingerprint, chain.kind), START) >= chain.hwm for chain in progress.chains)

    def adopt(self, progress: Progress) -> None:
        """Start at `progress`: what was accepted until now is replaced by its positions."""
        self.hwm = {(chain.fingerprint, chain.kind): chain.hwm for chain in progress.chains}
