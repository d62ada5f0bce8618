"""The whole loop for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.loop import Loop


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Started, not yet ready; nothing of it is left afterwards."""
    running = Loop(tmp_path)
    try:
        yield running
    finally:
        running.end()
        running.ready.close()
