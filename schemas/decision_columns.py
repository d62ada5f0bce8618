"""Decisions as columns: what a policy saw of them, and what was decided.

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

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.arrays import F32, F64, I32, U8, U64
from schemas.frozen import frozen, names_of

PROPENSITY_ONE = 1 << 24
"""Propensities are integers that sum to this per row and slot: what is logged is what was sampled, exactly."""

TEXT_TOKEN = 1 << 30
"""Flag in a token id: the token comes from a text feature, so idf applies (learning.md rule 4)."""

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


def _joined(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One column after another; a task does not use most of them, and those cost no call."""
    return np.concatenate(columns) if any(map(len, columns)) else columns[0]


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

    def rows(self, start: int, stop: int, candidates: tuple[int, int] | None = None) -> FeatureColumns:
        """Rows [start, stop) as views; `candidates` where theirs begin and end, for whoever has counted them."""
        first, last = candidates or _ragged(self.num_candidates, start, stop)
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
            features=self.features.rows(start, stop, (first, last)),
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
