"""The learner's side: the real merge and the real namespace learner over what the joins left, with restarts.

A task's learner is replaced by a hash over every row in its order: whatever is swapped, lost, repeated or differs in
one bit shows for ever. What it must come to is worked out from the brute-force join alone. `test_full_size.py` has the
real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from random import Random
from typing import Any

import numpy as np

from learner.cuts import CutRules, CutState
from learner.merge import LEARNT_BUCKETS, Merge
from learner.namespace import Definition, NamespaceLearner, RowLearner, Snapshot
from learner.policy import probes
from schemas.blocks import TransitionBlock
from schemas.records import DecisionBucket
from schemas.task import Task
from tests.oracle.brute_force_join import Row
from tests.simulation.seams import replaced
from tests.simulation.truth import Truth, require

RULES = CutRules(bucket_ms=10_000, publish_ms=200_000, publish_bytes_per_s=1_000_000)
ORDER = "the learner did not learn the rows in the order of the log"
SAME = "a version has two contents"
ALARMS = "the merge's alarms are not those that the log calls for"
FALSE_START = "a learner goes back"
LEARNT = {DecisionBucket(bucket).label for bucket in LEARNT_BUCKETS}


class HashOfRows:
    """A learner whose state is a hash of all that it learnt, in order."""

    def __init__(self, task: Task) -> None:
        self._digest, self.num_rows = b"", 0

    def learn(self, rows: TransitionBlock) -> None:
        for position, rewards in zip(rows.positions.tolist(), rows.rewards, strict=True):
            self._digest = link(self._digest, position, rewards.tobytes())
            self.num_rows += 1

    def weights(self) -> Mapping[str, np.ndarray[Any, Any]]:
        return {"digest": np.frombuffer(self._digest, np.uint8)}

    def state(self) -> Mapping[str, np.ndarray[Any, Any]]:
        return {"digest": np.frombuffer(self._digest, np.uint8), "rows": np.array([self.num_rows])}

    def load_state(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._digest, self.num_rows = state["digest"].tobytes(), int(state["rows"][0])


def link(before: bytes, position: int, rewards: bytes) -> bytes:
    """The hash after one more row."""
    return sha256(before + position.to_bytes(8, "little") + rewards).digest()


def expected_digests(truths: Sequence[Truth]) -> dict[bytes, bytes]:
    """By fingerprint: all rows that are learnt, in order of (closed_at, partition, position)."""
    ordered: dict[bytes, list[tuple[int, int, int, Row]]] = {}
    for partition, truth in enumerate(truths):
        for fingerprint, rows in truth.rows.items():
            places = [(row.closed_at, partition, row.position, row) for row in rows if row.bucket in LEARNT]
            ordered.setdefault(fingerprint, []).extend(places)
    digests = {}
    for fingerprint, places in ordered.items():
        digest = b""
        for _, _, position, row in sorted(places, key=lambda place: place[:3]):
            digest = link(digest, position, np.array(row.rewards, np.float32).tobytes())
        if digest:
            digests[fingerprint] = digest
    return digests


class Learning:
    """One learner process after another over finished transitions, whose records it gets in any interleaving."""

    def __init__(
        self,
        rng: Random,
        tasks: Iterable[Task],
        logs: Sequence[Sequence[Any]],
        make: Callable[[Task], RowLearner] | None = None,
    ) -> None:
        """`make` builds a task's real learner; without it a hash stands in, and probes, which it cannot answer, are
        left out."""
        self._rng, self._logs = rng, logs
        self._make: Callable[[Task], RowLearner] = make or HashOfRows
        self._no_probes = [(probes, "pack", lambda *_: b"")] if make is None else []
        self._known = {task.fingerprint: Definition(task) for task in tasks}
        self.snapshots: dict[int, Snapshot] = {}
        """By version; made again after a restart, they must be the same."""
        self.alarms: set[tuple[str, int, int]] = set()
        self.merge = Merge(len(logs), RULES.bucket_ms)
        self.learner = self._new_learner()
        self._kept = [(self.learner.state(), self.merge.positions())]

    def _new_learner(self) -> NamespaceLearner:
        start = CutState.start(Merge(len(self._logs), RULES.bucket_ms).positions(), 0)
        return NamespaceLearner(self._make, self._known.get, RULES, start, {})

    def run(self, restarts: int) -> None:
        """To the end of the logs; `restarts` times from an earlier checkpoint."""
        with replaced(*self._no_probes):
            while self._offer():
                for snapshot in self.learner.advance(self.merge):
                    self._publish(snapshot)
                if self._rng.random() < 0.1:
                    self._kept.append((self.learner.state(), self.merge.positions()))
                if restarts and self._rng.random() < 0.05:
                    restarts -= 1
                    self._restart()

    def _offer(self) -> bool:
        """Some records of one partition; False when all is read."""
        left = [p for p, offset in enumerate(self.merge.next_offsets) if offset < len(self._logs[p])]
        if not left:
            return False
        partition = self._rng.choice(left)
        first = self.merge.next_offsets[partition]
        for offset in range(first, min(len(self._logs[partition]), first + self._rng.choice((1, 3, 9)))):
            alarm = self.merge.offer(partition, offset, self._logs[partition][offset], 100)
            if alarm is not None:
                self.alarms.add((alarm.kind, partition, offset))
        return True

    def _publish(self, snapshot: Snapshot) -> None:
        known = self.snapshots.setdefault(snapshot.draft.version, snapshot)
        require(known.payload == snapshot.payload and known.draft == snapshot.draft, SAME, snapshot.draft.version)

    def _restart(self) -> None:
        (arrays, values), positions = self._rng.choice(self._kept)
        self.learner = self._new_learner()
        self.learner.load_state(arrays, values)
        self.merge = Merge(len(self._logs), RULES.bucket_ms, positions)

    @property
    def digests(self) -> dict[bytes, bytes]:
        """What each task's learner came to."""
        arrays, _ = self.learner.state()
        found = {name.split("/")[1]: array for name, array in arrays.items() if name.endswith("/digest")}
        return {bytes.fromhex(prefix): array.tobytes() for prefix, array in found.items()}
