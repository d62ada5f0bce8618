"""After the last fault: does every reader come to the end of its log? Nothing may be stuck."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaException

from deploy import lags, probes, reading, status
from deploy.torture.plan import LEARNER
from deploy.torture.stage import Stage
from schemas.errors import UserError
from schemas.records import DECISION_BUCKETS
from schemas.topics import topic

READ = ("requests", "outcomes", "journal")
LOOK_EVERY_S = 0.5
LEARNER_LAG = "headrace_learner_lag_records"
STEADY_S = 3.0
"""The learner has published its last when no version has come for so long."""
STEADY_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Drained:
    """How the end went."""

    seconds: float | None
    """Until the last reader had passed everything that stood in its log when the shop had closed; None: never."""
    stuck: list[str]
    """Who had not, in words."""
    version: int
    """Newest published snapshot, once no more came."""


def drain(stage: Stage, timeout_s: float) -> Drained:
    """Wait for every reader to pass what stands in the topics now, for all windows to close, for the last snapshot."""
    began_s = time.monotonic()
    ends = {name: _ends(stage, name) for name in READ}
    stuck = _stuck(stage, ends)
    while stuck and time.monotonic() - began_s < timeout_s:
        stage.keep()
        time.sleep(LOOK_EVERY_S)
        stuck = _stuck(stage, ends)
    seconds = None if stuck else time.monotonic() - began_s
    if not stuck:
        _until(lambda: _is_settled(stage), timeout_s, stage)
    return Drained(seconds, stuck, _last_version(stage))


def _ends(stage: Stage, name: str) -> dict[int, int]:
    full = topic(stage.settings.namespace, name)
    reader = reading.consumer(stage.settings)
    try:
        partitions = reading.partitions_of(reader, full, stage.settings)
        return {partition: end for partition, (_, end) in reading.bounds(reader, full, partitions).items()}
    finally:
        reader.close()


def _stuck(stage: Stage, ends: dict[str, dict[int, int]]) -> list[str]:
    """Readers that have not passed `ends`."""
    namespace = stage.settings.namespace
    by_topic = {full: offsets for group, full, offsets in lags.committed(stage.settings) if "join" not in group}
    found = []
    for name in ("requests", "outcomes"):
        behind = _behind(ends[name], by_topic.get(topic(namespace, name), {}))
        if behind:
            found.append(f"{name}: {behind} messages not committed")
    try:
        progress = status.look(stage.settings).progress
    except (UserError, KafkaException) as error:
        return [*found, str(error)]
    behind = _behind(ends["journal"], {partition: each.journal_offset for partition, each in progress.items()})
    if behind:
        found.append(f"journal: {behind} records not joined and read back")
    lag = probes.metric(stage.members[LEARNER].port, LEARNER_LAG) if stage.members[LEARNER].is_ready else 1.0
    return [*found, f"transitions: {lag:.0f} records not learnt"] if lag else found


def _behind(ends: dict[int, int], positions: dict[int, int]) -> int:
    return sum(max(0, end - positions.get(partition, 0)) for partition, end in ends.items())


def _is_settled(stage: Stage) -> bool:
    """No decision is open, no outcome waits, in any partition."""
    progress = status.look(stage.settings).progress
    if len(progress) < stage.project.namespace.partitions:
        return False
    assert "open" in DECISION_BUCKETS
    return all(not each.decision_counts["open"] and not each.outcome_counts["pending"] for each in progress.values())


def _last_version(stage: Stage) -> int:
    """Newest version, once none has come for a while."""
    version, since_s, end_s = _version(stage), time.monotonic(), time.monotonic() + STEADY_S_MAX
    while time.monotonic() < min(since_s + STEADY_S, end_s):
        time.sleep(LOOK_EVERY_S)
        newest = _version(stage)
        if newest != version:
            version, since_s = newest, time.monotonic()
    return version


def _version(stage: Stage) -> int:
    published = status.look(stage.settings).published
    return 0 if published is None else published.version


def _until(condition: Callable[[], bool], timeout_s: float, stage: Stage) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end_s:
        stage.keep()
        time.sleep(LOOK_EVERY_S)
