"""Feature specifications: what a side of a task is made of, and the layout of its dense columns.

Dense layout of a side (context or action): features in order of name (code points); a number or boolean takes one
column, a category with at most 64 declared values one column per value in declared order, a vector `size` columns.
Text, other categories and nothing else become hashed tokens. The order in the file does not matter.

Token features are emitted in order of name too, categories before texts; see `schemas.encoding`.
"""

from __future__ import annotations

from dataclasses import dataclass

NUM_ONE_HOT_MAX = 64
"""A category with more declared values is hashed: it would swell the second-order Gram (learning.md rule 1)."""
NUM_CROSSES_MAX = 4096
"""learning.md rule 4, per candidate: context tokens × (action tokens + 1 for the action's id)."""
NUM_TOKENS_ALONE = 1024
"""Tokens of a side when only that side has any."""
NUM_TOKENS_CONTEXT = 96
NUM_TOKENS_ACTION = 41
"""When both sides have tokens: 96 · (41 + 1) = 4,032 crosses."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One named feature of the context or of an action."""

    name: str
    kind: str
    """number, boolean, category, text or vector."""
    values: tuple[str, ...] = ()
    """Declared values of a category, in the order of their columns."""
    log: bool = False
    """Numbers: sign(x)·log1p(|x|) before scaling."""
    scale: float = 1.0
    """Numbers: the encoded value is divided by this."""
    size: int = 0
    """Vectors: number of elements."""
    count: bool = False
    """Text: a token's raw value is how often it occurs; otherwise 1."""

    @property
    def width(self) -> int:
        """Dense columns, 0 for a feature that becomes tokens."""
        if self.kind == "category":
            return 0 if self.is_token else len(self.values)
        return {"number": 1, "boolean": 1, "vector": self.size, "text": 0}[self.kind]

    @property
    def is_token(self) -> bool:
        """Whether it becomes hashed tokens instead of dense columns."""
        return self.kind == "text" or (self.kind == "category" and not 0 < len(self.values) <= NUM_ONE_HOT_MAX)


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """All features of one side, in order of name."""

    features: tuple[Feature, ...] = ()
    num_tokens_max: int = NUM_TOKENS_ALONE
    """Tokens kept per context or candidate; the last ones of the longest texts fall off first."""

    @property
    def width(self) -> int:
        """Dense columns: Dx or Da."""
        return sum(feature.width for feature in self.features)

    @property
    def has_tokens(self) -> bool:
        """Whether any feature becomes hashed tokens."""
        return any(feature.is_token for feature in self.features)

    @property
    def has_text(self) -> bool:
        """Whether any feature is text, so that idf applies."""
        return any(feature.kind == "text" for feature in self.features)

    def columns(self) -> tuple[str, ...]:
        """Name of every dense column, in order: ``price``, ``country=de``, ``embedding[0]``."""
        names: list[str] = []
        for feature in self.features:
            if feature.kind == "vector":
                names += [f"{feature.name}[{index}]" for index in range(feature.size)]
            elif feature.kind == "category" and not feature.is_token:
                names += [f"{feature.name}={value}" for value in feature.values]
            elif not feature.is_token:
                names.append(feature.name)
        return tuple(names)
