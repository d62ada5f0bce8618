"""What reads a definition is compiled before anybody waits for one to be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_READS = """
import gc
from numba.core.dispatcher import Dispatcher
from schemas.codec import decode, encode
from schemas.registry import FileRegistry
from schemas.task import TaskTable, load
from streams.tasks import rehearse

def compiled():
    return {repr(each): len(each.signatures) for each in gc.get_objects() if isinstance(each, Dispatcher)}

registry = FileRegistry()
rehearse()
before = compiled()
record = load("examples/support/headrace.toml").tasks[0].record()
TaskTable().apply(decode(encode(record, registry), registry))
after = compiled()
assert sum(before.values()), "nothing was compiled: this test tests nothing"
assert after == before, {name: count for name, count in after.items() if before.get(name) != count}
"""


def test_reading_a_definition_compiles_nothing_that_the_rehearsal_did_not() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", _READS], check=True, cwd=root, timeout=200)
