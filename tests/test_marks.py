"""Marks stand on what pytest runs, and nothing on a real broker is passed over."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def functions(folder: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function under a folder, with where it stands."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(TESTS)}:{node.lineno} {node.name}", node


def test_marks_stand_on_tests_only() -> None:
    """On a helper pytest ignores them without a word: a timeout there guards nothing."""
    strayed = [
        where
        for where, function in functions(TESTS)
        if not function.name.startswith("test_")
        and any(ast.unparse(decorator).startswith("pytest.mark.") for decorator in function.decorator_list)
    ]
    assert strayed == []


def test_nothing_on_a_real_broker_is_skipped() -> None:
    """What a machine does not offer is done in another way there, or fails."""
    skips = [
        f"{file.relative_to(TESTS)}:{node.lineno}"
        for file in sorted((TESTS / "kafka").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "xfail", "importorskip")
    ]
    assert skips == []
