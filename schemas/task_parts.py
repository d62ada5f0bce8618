"""The parts of a task: how outcomes become a reward and scores probabilities, what is learnt, what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

AGGREGATES = ("sum", "first", "last", "min", "max", "mean", "count")


@dataclass(frozen=True, slots=True)
class OutcomeType:
    """One type of outcome that counts for the reward."""

    name: str
    aggregate: str
    """One of `AGGREGATES`, over the values of the outcomes of this type."""
    weight: float
    """Factor of the aggregate in the weighted sum."""
    window_ms: int
    """How long after the decision outcomes of this type count."""
    binary: bool
    """Its values are 0 or 1."""


@dataclass(frozen=True, slots=True)
class Reward:
    """How outcomes become one number (join.md rule 4)."""

    window_ms: int
    """W: the longest window of any type; the decision closes at T(d) + W."""
    backward_ms: int
    """bw ≤ W: how long before its decision an outcome may stand in the journal."""
    default: float
    """Reward when no outcome came."""
    min: float
    max: float
    """The weighted sum is clipped to [min, max]. Near what rewards really reach: the learner takes no spread for
    smaller than a thousandth of max - min, and explores accordingly."""
    binary: bool
    """The reward is 0 or 1 and nothing else: the logistic cross expert applies (learning.md rule 5)."""
    types: tuple[OutcomeType, ...]
    """In order of name."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """How the policy turns scores into probabilities."""

    kind: str
    """squarecb, epsilon or softmax."""
    gamma: float
    """squarecb: factor before √n / sd(reward) (learning.md rule 16)."""
    epsilon: float
    """epsilon: share spread evenly."""
    temperature: float
    """softmax: in units of the reward's standard deviation."""


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """What the learner builds for this task; part of the fingerprint (join.md rule 13)."""

    seed: int
    cross_bits: int
    """log2 of the slots of the token tables."""
    deep: bool
    """Whether the neural expert is trained and stacked."""
    cross: bool
    """Whether the token × token expert is trained and stacked."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A rule that a candidate must meet to be on offer."""

    name: str
    allow_if: str
    """Comparison or jmespath over {context, action}: see `streams.guardrails`."""
