"""jmespath expressions of tasks and sources: bounded where they are declared, so that every process can use them.

jmespath parses and evaluates by recursion: how deep an expression may be then depends on how deep the caller stands
already. One that `headrace apply` could just read would end a worker, for ever, because the `tasks` topic keeps it.
"""

from __future__ import annotations

from typing import Any

import jmespath

LENGTH_MAX = 1000
"""Characters: ten lines of conditions. Older versions took any length."""
DEPTH_MAX = 64
"""Nesting, of brackets and of what is made of them: up to four of Python's 1,000 frames each, a caller has 100."""

FAILURES = (ArithmeticError, RecursionError, TypeError, ValueError)
"""What evaluating an expression may raise for a document: jmespath's own errors are ValueErrors, and those of Python
pass through it (a slice with step 0, `contains` of a text and a number, `ceil` of an infinite number)."""


def check_expression(text: str) -> None:
    """Refuse what is no jmespath, and what is too large for one. Raises ValueError."""
    if len(text) > LENGTH_MAX:
        raise ValueError(f"expected a jmespath expression of at most {LENGTH_MAX} characters, it has {len(text)}")
    too_deep = f"expected a jmespath expression nested at most {DEPTH_MAX} deep: take some brackets, ! or || out of it"
    if _bracket_depth(text) > DEPTH_MAX:
        raise ValueError(too_deep)
    try:
        depth = _depth(jmespath.compile(text).parsed)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(f"expected a jmespath expression: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(too_deep) from None
    if depth > DEPTH_MAX:
        raise ValueError(too_deep)


def _bracket_depth(text: str) -> int:
    """Brackets open at once. Those within quotes count too: nobody writes so many."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _depth(tree: Any) -> int:
    """Levels of a parsed expression, counted without recursion."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in node["children"] if isinstance(child, dict)]
    return depth
