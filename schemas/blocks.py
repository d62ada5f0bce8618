"""Blocks: many records as columns in one Kafka message, and the arrays they become.

Owns the in-memory shape of what travels through the journal and the transitions topic.
Knows nothing of Avro, Kafka or time: `schemas.codec` turns these into bytes and back.

Shape legend
    N rows of the block, one decision (or outcome) each
    M candidates of the block, ``num_candidates.sum()``; row after row
    S slots of a slate, 1 for the task kind ``choice``
    Dx, Da dense features of the context and of an action
    Tc, Ta hashed tokens of all contexts and of all actions of the block

A column that a task does not use is an empty array, never None. Arrays that come out of a message may be
read-only views of its bytes: copy before writing to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.frozen import frozen, names_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]

PROPENSITY_ONE = 1 << 24
"""Propensities are integers that sum to this per row and slot: what is logged is what was sampled, exactly."""

TEXT_TOKEN = 1 << 30
"""Flag in a token id: the token comes from a text feature, so idf applies (learning.md rule 4)."""

KIND_TRANSITION = 0
KIND_CORRECTION = 1

FLAG_CUT = 1
"""Row flag: closed early because the partition held too many open decisions (join.md rule 14)."""
FLAG_CLIPPED = 2
"""Row flag: the reward stood outside the declared bounds and was clipped."""


def empty(dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """A column that the task does not use: no elements, the right dtype and rank."""
    return np.empty(shape or (0,), dtype)


def _joined(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One column after another; a task does not use most of them, and those cost no call."""
    return np.concatenate(columns) if any(map(len, columns)) else columns[0]


@frozen
class Strings:
    """A column of UTF-8 strings that makes no Python string until asked for one.

    `buffer` uint8 bytes of all strings, one after another; string i is ``buffer[starts[i]:starts[i] + lengths[i]]``.
    """

    buffer: U8
    starts: I64
    lengths: I32

    @classmethod
    def of(cls, values: Sequence[str]) -> Strings:
        """Pack Python strings.

        >>> Strings.of(["a", "bc"])[1]
        'bc'
        """
        encoded = [value.encode() for value in values]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        starts = np.zeros(len(encoded), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        start = self.starts[index]
        return self.buffer[start : start + self.lengths[index]].tobytes().decode()

    def tolist(self) -> list[str]:
        """All strings; for people and tests, never on the hot path."""
        return [self[index] for index in range(len(self))]

    def slice(self, start: int, stop: int) -> Strings:
        """Rows [start, stop) without copying the bytes."""
        return Strings(self.buffer, self.starts[start:stop], self.lengths[start:stop])


NO_STRINGS = Strings(empty(np.uint8), empty(np.int64), empty(np.int32))


_FEW_ROWS = 64
"""Up to so many, Python's own sum is faster than numpy's: the rows of a micro-batch of decisions."""


def _ragged(counts: I32, start: int, stop: int) -> tuple[int, int]:
    """Element range of rows [start, stop) in a column whose row i has counts[i] elements."""
    if not len(counts):
        return 0, 0
    if stop <= _FEW_ROWS:
        few = counts[:stop].tolist()
        begin = sum(few[:start])
        return begin, begin + sum(few[start:])
    # The ufunc itself: `ndarray.sum` is a Python function around it, and calls shall not depend on the rows.
    first = int(np.add.reduce(counts[:start], dtype=np.int64))
    return first, first + int(np.add.reduce(counts[start:stop], dtype=np.int64))


@frozen
class FeatureColumns:
    """What a policy sees of N decisions: encoded contexts and candidates. Logged as seen, learnt from as logged.

    With a declared catalogue `actions`, `action_keys` and the action tokens are empty (the task definition has them)
    and every row has all actions of the catalogue as candidates, in its order.
    """

    context: F32
    """(N, Dx) dense context features."""
    num_candidates: I32
    """(N,) candidates per row, ≥ 1."""
    actions: F32
    """(M, Da) dense action features, without the one-hot id; (0, Da) with a declared catalogue."""
    action_keys: U64
    """(M,) BLAKE2b-64 of the action id; (0,) with a declared catalogue."""
    context_token_counts: I32
    """(N,) tokens per context, or (0,) when the task has no context tokens."""
    context_tokens: I32
    """(Tc,) token ids in [0, 2**31): 30-bit hash of (feature, token), plus `TEXT_TOKEN` for text features."""
    context_token_values: F32
    """(Tc,) raw token values; idf and normalisation belong to the forward pass."""
    action_token_counts: I32
    """(M,) tokens per candidate, or (0,)."""
    action_tokens: I32
    """(Ta,)"""
    action_token_values: F32
    """(Ta,)"""

    def __len__(self) -> int:
        return len(self.num_candidates)

    @property
    def context_width(self) -> int:
        """Dx."""
        return int(self.context.shape[1])

    @property
    def action_width(self) -> int:
        """Da; 0 also where there is no such column."""
        return int(self.actions.shape[1]) if self.actions.ndim == 2 else 0

    def rows(self, start: int, stop: int) -> FeatureColumns:
        """Rows [start, stop) as views."""
        first, last = _ragged(self.num_candidates, start, stop)
        has_actions = len(self.actions) > 0 or len(self.action_keys) > 0
        a = slice(first, last) if has_actions else slice(0, 0)
        ct = slice(*_ragged(self.context_token_counts, start, stop))
        has_action_tokens = len(self.action_token_counts) > 0
        at = slice(*_ragged(self.action_token_counts, first, last)) if has_action_tokens else slice(0, 0)
        return FeatureColumns(
            context=self.context[start:stop],
            num_candidates=self.num_candidates[start:stop],
            actions=self.actions[a],
            action_keys=self.action_keys[a],
            context_token_counts=self.context_token_counts[start:stop],
            context_tokens=self.context_tokens[ct],
            context_token_values=self.context_token_values[ct],
            action_token_counts=self.action_token_counts[first:last] if has_action_tokens else self.action_token_counts,
            action_tokens=self.action_tokens[at],
            action_token_values=self.action_token_values[at],
        )

    @staticmethod
    def concat(parts: Sequence[FeatureColumns]) -> FeatureColumns:
        """Rows of all parts, one after another; all must come from one feature spec."""
        return FeatureColumns(
            **{name: _joined([getattr(part, name) for part in parts]) for name in names_of(FeatureColumns)}
        )


@frozen
class DecisionColumns:
    """What was decided, beside the features: travels unchanged from the decision into its transition."""

    features: FeatureColumns
    catalogue: bytes
    """16-byte fingerprint of the declared catalogue, or b"" when candidates came with the requests."""
    chosen: I32
    """(N, S) index of the chosen candidate within its row, -1 for none."""
    propensities: I32
    """(S * M,) row after row, slot after slot: integers, sum 2**24 per row and slot, 0 for a masked candidate."""
    reasons: U8
    """(N,) code of `schemas.records.Reason`: how the action came about."""
    values: F64
    """(N, S) drawn value of a continuous action, or (0, S)."""
    bounds: F64
    """(N, 2) lower and upper bound of a continuous action, or (0, 2)."""
    terminal: U8
    """(N,) 1 where the episode ends here, or (0,)."""
    steps: I32
    """(N,) step within the episode, or (0,)."""
    episode_keys: U64
    """(N,) BLAKE2b-64 of the episode id, or (0,)."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_slots(self) -> int:
        """S."""
        return int(self.chosen.shape[1])

    def rows(self, start: int, stop: int) -> DecisionColumns:
        """Rows [start, stop) as views."""
        first, last = _ragged(self.features.num_candidates, start, stop)
        slots = self.num_slots
        return DecisionColumns(
            features=self.features.rows(start, stop),
            catalogue=self.catalogue,
            chosen=self.chosen[start:stop],
            propensities=self.propensities[first * slots : last * slots],
            reasons=self.reasons[start:stop],
            values=self.values[start:stop],
            bounds=self.bounds[start:stop],
            terminal=self.terminal[start:stop],
            steps=self.steps[start:stop],
            episode_keys=self.episode_keys[start:stop],
        )

    @staticmethod
    def concat(parts: Sequence[DecisionColumns]) -> DecisionColumns:
        """Rows of all parts, one after another; all must come from one task fingerprint."""
        names = [name for name in names_of(DecisionColumns) if name not in ("features", "catalogue")]
        return DecisionColumns(
            features=FeatureColumns.concat([part.features for part in parts]),
            catalogue=parts[0].catalogue,
            **{name: _joined([getattr(part, name) for part in parts]) for name in names},
        )


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
