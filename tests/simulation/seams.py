"""Where the simulation takes hold of the shells: module names that stand for the broker's codec and the clock.

Only names that a shell looks up are replaced, never a line of a core; a control (`tests.simulation.controls`) replaces
one rule in the same way. Everything is put back afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np

from schemas.blocks import TransitionBlock
from streams import agents_owned
from streams.join import JoinPartition
from tests.simulation.virtual import Clock, Envelopes


class CutAnywhere(JoinPartition):
    """The real join; its blocks leave in pieces of any size, as blocks of another age or another limit would."""

    rng = Random(0)

    def emit(self) -> list[TransitionBlock]:
        return [part for block in super().emit() for part in self._pieces(block)]

    def _pieces(self, block: TransitionBlock) -> list[TransitionBlock]:
        if len(block) < 2 or self.rng.random() < 0.5:
            return [block]
        at = self.rng.randrange(1, len(block))
        return [block.rows(0, at), block.rows(at, len(block))]


@contextmanager
def replaced(*names: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes (owner, name, stand-in) replaced for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in names]
    try:
        for owner, name, stand_in in names:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, original in reversed(before):
            setattr(owner, name, original)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is logged meanwhile: a seed does on purpose what a worker warns of."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def owned_partitions(rng: Random, codec: Envelopes | None, clock: Clock, join: type[JoinPartition]) -> Iterator[None]:
    """`OwnedPartition` on this codec (None: the real one), this clock and this join."""
    join.rng = rng  # type: ignore[attr-defined]  # of CutAnywhere
    stand_ins: list[tuple[str, Any]] = []
    if codec is not None:
        stand_ins = [("encode", codec.encode), ("decode", codec.decode), ("read_record", codec.decode)]
        # envelopes have no headers by which many could be read at once
        stand_ins.append(("classify", lambda buffer, starts, *_: np.zeros(len(starts), np.uint8)))
        stand_ins.append(("length_of_group", lambda *_: 0))
    with replaced(
        (agents_owned, "time", clock),
        (agents_owned, "JoinPartition", join),
        *((agents_owned, name, stand_in) for name, stand_in in stand_ins),
    ):
        yield
