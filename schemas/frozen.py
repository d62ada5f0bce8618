"""Value objects for the hot paths: frozen dataclasses with slots, frozen by the type checker.

A dataclass with `frozen=True` sets each field by a call of ``object.__setattr__``, which is three quarters of what
making one costs, and a decision makes twenty. Here mypy refuses an assignment (PEP 681); nothing refuses it at run
time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make the class a dataclass with slots, equality and hash by its fields, that must not be changed.

    >>> @frozen
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1) == Point(1, 0)
    True
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@cache
def names_of(cls: type) -> tuple[str, ...]:
    """Names of the fields of such a class, in order."""
    slots: tuple[str, ...] = vars(cls)["__slots__"]
    return slots
