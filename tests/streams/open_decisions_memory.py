"""Memory that open decisions take, in a process of its own: python -m tests.streams.open_decisions_memory ROWS NUM

Prints the bytes of one open decision beside its features, by the resident memory of the process, of NUM decisions in
blocks of ROWS rows.
"""

from __future__ import annotations

import gc
import sys

import psutil

from schemas.decision_columns import FeatureColumns
from schemas.frozen import names_of
from schemas.task import TaskTable
from streams.join import JoinPartition
from tests.oracle.join_world import SECOND, make_task, many_decisions

WARM_BLOCKS, WARM_ROWS = 200, 10_000
"""What a process takes once: compiled loops, arrays of a first size, the allocator's habits."""


def bytes_per_decision(rows: int, num: int) -> float:
    """Resident bytes of the process per open decision, beside its features."""
    process = psutil.Process()
    join = JoinPartition(0, TaskTable([make_task("a", 600)]))
    num_warm = max(WARM_BLOCKS, WARM_ROWS // rows)
    for offset in range(num_warm):
        join.fold(offset, 10_000 * SECOND, many_decisions(make_task("a", 600), rows, num + offset * rows))
    gc.collect()
    before, num_before = process.memory_info().rss, join.num_open
    for number in range(num // rows):
        block = many_decisions(make_task("a", 600), rows, number * rows)
        join.fold(num_warm + number, 10_000 * SECOND, block)
    gc.collect()
    features = many_decisions(make_task("a", 600), 1).columns.features
    of_features = sum(getattr(features, name).nbytes for name in names_of(FeatureColumns))
    return (process.memory_info().rss - before) / (join.num_open - num_before) - of_features


if __name__ == "__main__":
    print(bytes_per_decision(int(sys.argv[1]), int(sys.argv[2])))
