"""What is said of tests is said of tests: marks stand on what pytest runs."""

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
