"""Holes and forks put into a finished transitions log: the merge must say so there, and nowhere else.

A block of the reserved kind (corrections, join.md rule 12) is put in likewise: a chain of its own, of which nothing is
said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from learner.merge import Merge
from schemas.blocks import KIND_CORRECTION, TransitionBlock
from schemas.chain import START
from tests.simulation.truth import NaiveReader, Truth, require

PLANTED = "what was planted is not what the merge reports"
FAR = 1 << 60
"""A position that no run reaches."""


def check_planted(rng: Random, records: Sequence[Any], truth: Truth) -> None:
    """Plant one hole, fork or correction anywhere and read it all by the merge."""
    at = rng.randrange(len(records) + 1)
    naive, expected = NaiveReader(truth), []
    verdicts = [naive.verdict(each) if isinstance(each, TransitionBlock) else "" for each in records[:at]]
    blocks = [each for each, verdict in zip(records, verdicts, strict=False) if verdict == "accepted"]
    if not blocks:
        return
    model = rng.choice(blocks)
    kind = rng.choice(("hole", "fork", "correction"))
    last = naive.last(model.fingerprint)
    prev = FAR if kind == "hole" else last - 1
    position = FAR + 1 if kind == "hole" else last + 1
    bad = replace(model.rows(0, 1), prev=max(START, prev), positions=np.array([position], np.int64))
    expected = [("hole", offset) for offset, verdict in enumerate(verdicts) if verdict == "hole"]
    if kind == "correction":
        bad = replace(model.rows(0, 1), prev=START, kind=KIND_CORRECTION)
    else:
        expected.append((kind, at))
    if kind != "fork":  # the partition goes on as if nothing had been there
        for offset, each in enumerate(records[at:]):
            if isinstance(each, TransitionBlock) and naive.verdict(each) == "hole":
                expected.append(("hole", at + offset + 1))
    merge, said = Merge(1, 1_000), []
    for offset, each in enumerate([*records[:at], bad, *records[at:]]):
        alarm = merge.offer(0, offset, replace(each, partition=0), 1)
        if alarm is not None:
            said.append((alarm.kind, alarm.offset))
    require(said == expected, PLANTED, (said, expected))
    require((merge.stopped == [0]) == (kind == "fork"), PLANTED, "a fork stops its partition, a hole does not")
    if kind == "fork":
        (position,) = merge.positions()
        again = Merge(1, 1_000, [position])
        for offset in range(position.offset, at + 1):
            alarm = again.offer(0, offset, replace([*records[:at], bad][offset], partition=0), 1)
        require(alarm is not None and (alarm.kind, alarm.offset) == (kind, at), PLANTED, "a restart meets the fork too")
