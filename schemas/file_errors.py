"""What the user reads when `headrace.toml` is wrong: key path, what was expected, what came, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from schemas.errors import UserError

_REMEDY = "every key stands in docs/reference.md, with its meaning and default"
_MOST = 10
"""Mistakes listed at once; a file with more is likely no headrace.toml at all."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known one, else a few of those known.

    >>> did_you_mean("gama", ["gamma", "epsilon"])
    '; did you mean "gamma"?'
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if nearest:
        return f'; did you mean "{nearest[0]}"?'
    return f"; known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else ""


def user_error(error: ValidationError, raw: Any, where: str) -> UserError:
    """One UserError for all mistakes found in `raw` (the parsed file), each with the path of its key."""
    paths = [(_path(item["loc"], raw), item) for item in error.errors()]
    # each member of a union complains: keep what was said about the deepest key
    found = [
        (path, task, item)
        for (path, task), item in paths
        if not any(other.startswith(f"{path}.") for (other, _), _ in paths)
    ]
    lines = [f"{path or 'the file'}{task}: {_explain(item)}" for path, task, item in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST} more")
    return UserError(f"{where}: " + "\n  ".join(lines), _REMEDY)


def _path(location: tuple[int | str, ...], raw: Any) -> tuple[str, str]:
    """(key path as a user would write it, the task it is in); pydantic's steps for members of unions are left out."""
    path, task, here = "", "", raw
    for depth, step in enumerate(location):
        if isinstance(step, int) and isinstance(here, list):
            path += f"[{step}]"
            here = here[step] if step < len(here) else None
            if depth == 1 and location[0] == "tasks" and isinstance(here, dict):
                task = f' (task "{here.get("name", "?")}")'
        elif isinstance(here, dict) and step in here:
            path += f".{step}"
            here = here[step]
        elif isinstance(here, dict) and depth == len(location) - 1 and step not in _UNION_STEPS:
            path += f".{step}"
    return path.removeprefix("."), task


_UNION_STEPS = ("number", "boolean", "category", "text", "vector", "PathTable", "str", "float", "list", "dict")


def _explain(item: Any) -> str:
    kind, context, got = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "missing":
        return "is required and missing"
    if kind == "value_error":
        text = str(context["error"])
        return text if isinstance(got, dict) else f"{text}, got {_show(got)}"
    if kind == "literal_error":
        near = _nearest_literal(got, str(context["expected"]))
        return f"expected {context['expected']}, got {_show(got)}{near}"
    if kind == "union_tag_invalid":
        return f"expected kind {context['expected_tags']}, got {_show(context['tag'])}"
    if kind == "union_tag_not_found":
        return f'expected kind = "number", "boolean", "category", "text" or "vector", got {_show(got)}'
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {context['pattern']}, got {_show(got)}"
    text = re.sub(r"^(Input|Value|String|List|Dictionary) should (be|have) ", "", item["msg"])
    return f"expected {text[0].lower() + text[1:]}, got {_show(got)}"


def _nearest_literal(got: object, expected: str) -> str:
    known = re.findall(r"'([^']*)'", expected)
    nearest = difflib.get_close_matches(str(got), known, n=1, cutoff=0.6)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""


def _show(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
