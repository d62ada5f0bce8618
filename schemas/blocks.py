"""Blocks: many records as columns in one Kafka message, and the arrays they become.

Owns the in-memory shape of what travels through the journal and the transitions topic.
Knows nothing of Avro, Kafka or time: `schemas.codec` turns these into bytes and back.

Rows, candidates, slots and tokens are called N, M, S and T as in `schemas.decision_columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np

from schemas.arrays import F32, F64, I32, I64, NO_STRINGS, U8, U64, Strings
from schemas.decision_columns import DecisionColumns
from schemas.frozen import frozen

KIND_TRANSITION = 0
KIND_CORRECTION = 1

FLAG_CUT = 1
"""Row flag: closed early because the partition held too many open decisions (join.md rule 14)."""
FLAG_CLIPPED = 2
"""Row flag: the reward stood outside the declared bounds and was clipped."""


@frozen
class DecisionBlock:
    """Decisions of one task fingerprint, made with one snapshot, for one journal partition."""

    task: str
    fingerprint: bytes
    """16 bytes: hash of the task's canonical definition."""
    snapshot_version: int
    """Version of the policy that decided, 0 for none."""
    request_topic: str
    decision_keys: U64
    """(N, 2) BLAKE2b-128 of the decision id, little-endian words."""
    subject_keys: U64
    """(N,) BLAKE2b-64 of the subject."""
    request_partitions: I32
    """(N,) where the request stood, so that a redelivered one is answered as logged."""
    request_offsets: I64
    """(N,)"""
    columns: DecisionColumns
    decision_ids: Strings = field(default=NO_STRINGS)
    subjects: Strings = field(default=NO_STRINGS)
    action_ids: Strings = field(default=NO_STRINGS)
    """M action ids, none with a declared catalogue."""
    episode_ids: Strings = field(default=NO_STRINGS)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self)


@frozen
class OutcomeBlock:
    """Outcomes read from one partition of one source topic, in its order, for one journal partition."""

    source_topic: str
    source_partition: int
    source_offsets: I64
    """(N,) strictly rising; rows at or below the reader's high-water mark of this source are copies."""
    outcome_keys: U64
    """(N, 2) BLAKE2b-128 of the outcome id, or of (topic, partition, offset) when it has none."""
    subject_keys: U64
    """(N,)"""
    decision_keys: U64
    """(N, 2), zeros when the outcome names no decision."""
    action_keys: U64
    """(N,) 0 when the outcome names no action."""
    slots: I32
    """(N,) -1 when the outcome names no slot."""
    types: I32
    """(N,) index into `type_names`."""
    values: F64
    """(N,) finite."""
    times_ms: I64
    """(N,) the client's clock, 0 when absent; informative only, decides nothing."""
    type_names: tuple[str, ...]
    outcome_ids: Strings = field(default=NO_STRINGS)
    subjects: Strings = field(default=NO_STRINGS)
    decision_ids: Strings = field(default=NO_STRINGS)

    def __len__(self) -> int:
        return len(self.source_offsets)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self)


@frozen
class Tick:
    """Heartbeat of a journal partition. Its append time is the message."""


_TRANSITION_ROWS = (
    "positions",
    "closed_at_ms",
    "buckets",
    "flags",
    "rewards",
    "num_outcomes",
    "snapshot_versions",
)
"""Columns of a TransitionBlock that have one entry per row, beside its keys and decision columns."""


@frozen
class TransitionBlock:
    """Closed decisions of one chain, in position order. Every decision stands in exactly one accepted row."""

    partition: int
    """Journal partition the decisions stand in."""
    task: str
    fingerprint: bytes
    kind: int
    """`KIND_TRANSITION` or `KIND_CORRECTION`."""
    prev: int
    """Position of the chain's row before the first one here, -1 at the chain's start."""
    positions: I64
    """(N,) (journal offset << 16) | row; strictly rising."""
    closed_at_ms: I64
    """(N,) T(d) + W: the log time at which the reward window ended; never falling."""
    buckets: U8
    """(N,) code of `schemas.records.DecisionBucket`."""
    flags: U8
    """(N,) `FLAG_CUT` | `FLAG_CLIPPED`."""
    rewards: F32
    """(N, S) clipped reward, the default reward when no outcome counted."""
    num_outcomes: I32
    """(N,) outcomes that counted."""
    snapshot_versions: I64
    """(N,) version of the policy that decided, 0 for none."""
    decision_keys: U64
    """(N, 2)"""
    columns: DecisionColumns

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self)

    @property
    def last(self) -> int:
        """Position of the last row."""
        return int(self.positions[-1])

    def rows(self, start: int, stop: int) -> TransitionBlock:
        """Rows [start, stop) as views; `prev` follows the row before."""
        cut: dict[str, Any] = {name: getattr(self, name)[start:stop] for name in _TRANSITION_ROWS}
        return replace(
            self,
            prev=self.prev if start == 0 else int(self.positions[start - 1]),
            decision_keys=self.decision_keys[start:stop],
            columns=self.columns.rows(start, stop),
            **cut,
        )

    @staticmethod
    def concat(parts: Sequence[TransitionBlock]) -> TransitionBlock:
        """Rows of all parts, one after another; `prev` and the ids are those of the first part."""
        names = (*_TRANSITION_ROWS, "decision_keys")
        joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], columns=DecisionColumns.concat([part.columns for part in parts]), **joined)


Block = DecisionBlock | OutcomeBlock | Tick | TransitionBlock


def num_rows(blocks: Iterable[DecisionBlock | OutcomeBlock | TransitionBlock]) -> int:
    """Rows of all blocks together."""
    return sum(len(block) for block in blocks)
