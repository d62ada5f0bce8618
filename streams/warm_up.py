"""One made-up batch through every compiled function, before Faust starts and the group counts on us.

numba loads its compiled functions at their first call, tenths of a second with its cache on disk, half a minute
without. On the event loop that would look like a worker that hangs. Nothing of it leaves the process.
"""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import numpy as np

from schemas.arrays import Strings, empty
from schemas.blocks import DecisionBlock, Tick
from schemas.chain import ChainReader
from schemas.codec import decode, encode
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.keys import decision_key, subject_key
from schemas.records import Outcome, Resume
from schemas.registry import Registry
from schemas.task import Task, TaskTable
from streams.examples import example_task
from streams.ingest import ingest
from streams.transport_batch import RecordBatch, pack

log = logging.getLogger(__name__)

_NUM_ROWS = 2


def warm_up_ingest(registry: Registry) -> None:
    """An Avro and a JSON outcome."""
    started_s = time.monotonic()
    ingest(_batch([_outcome(registry), b'{"subject": "s", "type": "click"}']), None, registry, 1)
    log.info("ingest warmed up in %.1f s", time.monotonic() - started_s)


def warm_up_join(registry: Registry) -> None:
    """Two decisions, their outcomes, and the transitions that come of them."""
    from streams.join import JoinPartition
    from streams.join_groups import classify, read_group
    from streams.join_index import CHAINS_MIN, DECISION, IDENTITY, OUTCOME, PagedRing

    started_s = time.monotonic()
    task = example_task()
    join = JoinPartition(0, TaskTable([task]), Resume(0))
    for dtype in (IDENTITY, DECISION, OUTCOME):
        PagedRing(dtype).widen(2 * CHAINS_MIN)
    ((_, outcomes),) = ingest(_batch([_outcome(registry)]), None, registry, 1).blocks
    blocks = (_decisions(task), outcomes, Tick(), Tick())
    batch = _batch([encode(block, registry) for block in blocks])
    for index in range(len(batch)):
        join.fold(index, index * 1000, decode(batch.value(index) or b"", registry))
    group = read_group(
        batch.buffer, batch.starts[:2], batch.starts[:2] + batch.lengths[:2], np.arange(4, 6), np.full(2, 4_000),
        classify(batch.buffer, batch.starts, batch.lengths, registry)[:2], registry,
    )  # fmt: skip
    assert group is not None
    join.fold_group(group)
    reader = ChainReader()
    for transitions in join.emit():
        payload = memoryview(encode(transitions, registry))
        reader.offer(decode(payload, registry))
        join.accepted(transitions)
    join.progress(reader, 1)
    log.info("join warmed up in %.1f s", time.monotonic() - started_s)


def _batch(values: list[bytes]) -> RecordBatch:
    return pack("warm-up", 0, [SimpleNamespace(offset=i, timestamp=0, value=value) for i, value in enumerate(values)])


def _outcome(registry: Registry) -> bytes:
    return encode(Outcome("s", "click", 1.0, "o", "d-0", "a", 0, 1), registry)


def _decisions(task: Task) -> DecisionBlock:
    num_candidates = len(task.actions)
    no_tokens = {name: empty(np.int32) for name in ("context_token_counts", "context_tokens", "action_token_counts")}
    features = FeatureColumns(
        context=np.zeros((_NUM_ROWS, task.context.width), np.float32),
        num_candidates=np.full(_NUM_ROWS, num_candidates, np.int32),
        actions=empty(np.float32, 0, 0),
        action_keys=empty(np.uint64),
        context_token_values=empty(np.float32),
        action_tokens=empty(np.int32),
        action_token_values=empty(np.float32),
        **no_tokens,
    )
    columns = DecisionColumns(
        features=features,
        catalogue=task.catalogue,
        chosen=np.zeros((_NUM_ROWS, 1), np.int32),
        propensities=np.full(_NUM_ROWS * num_candidates, PROPENSITY_ONE // num_candidates, np.int32),
        reasons=np.zeros(_NUM_ROWS, np.uint8),
        values=empty(np.float64, 0, 1),
        bounds=empty(np.float64, 0, 2),
        terminal=empty(np.uint8),
        steps=empty(np.int32),
        episode_keys=empty(np.uint64),
    )
    ids = [f"d-{row}" for row in range(_NUM_ROWS)]
    return DecisionBlock(
        task=task.name,
        fingerprint=task.fingerprint,
        snapshot_version=0,
        request_topic="",
        decision_keys=np.array([decision_key(each) for each in ids], np.uint64),
        subject_keys=np.array([subject_key("s")] * _NUM_ROWS, np.uint64),
        request_partitions=np.zeros(_NUM_ROWS, np.int32),
        request_offsets=np.zeros(_NUM_ROWS, np.int64),
        columns=columns,
        decision_ids=Strings.of(ids),
        subjects=Strings.of(["s"] * _NUM_ROWS),
    )
