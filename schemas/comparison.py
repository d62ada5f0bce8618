"""The small comparisons that guardrails may use instead of a jmespath: fast, and without jmespath's backticks.

    action.in_stock                     a boolean feature that must be true
    action.stock > 0                    a feature against a number
    action.price >= context.floor       a feature against another

A missing feature makes any comparison false: what is not known to be allowed is not on offer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPERAND = r"(context|action)\.([A-Za-z_]\w*)"
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_TEXT = re.compile(rf"\s*{_OPERAND}\s*(?:(<=|>=|==|!=|<|>)\s*(?:{_OPERAND}|({_NUMBER}))\s*)?")


@dataclass(frozen=True, slots=True)
class Operand:
    """A named feature of one side."""

    side: str
    """context or action."""
    name: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """``left operator right``; without an operator, the truth of `left`."""

    left: Operand
    operator: str = ""
    right: Operand | float = 0.0


def parse_comparison(text: str) -> Comparison | None:
    """The comparison that `text` is, None when it is something else (a jmespath).

    >>> parse_comparison("action.stock > 0")
    Comparison(left=Operand(side='action', name='stock'), operator='>', right=0.0)
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    side, name, operator, right_side, right_name, number = found.groups()
    if operator is None:
        return Comparison(Operand(side, name))
    return Comparison(Operand(side, name), operator, Operand(right_side, right_name) if right_side else float(number))
