"""Every rule of join.md switched off, one at a time: what the simulation must then find.

A control replaces one method or hands in one join that breaks one rule; nothing in the cores knows of it. `said` is
the invariant that must break: a control that fails for another reason shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit

from learner.merge import Merge
from schemas.blocks import OutcomeBlock, TransitionBlock
from schemas.chain import START, Accepted, ChainReader, Hole
from schemas.records import Resume
from streams import agents_owned, decide, join_folding
from streams import join as join_module
from streams import policy as policy_module
from streams.agents_owned import OwnedPartition
from streams.attribution import first_of
from streams.join import JoinPartition
from streams.join_history import Candidate, Candidates, History
from streams.join_index import CUT, NONE, TAIL, place
from streams.offsets import Offsets
from streams.snapshots import SnapshotFollower
from tests.simulation.chain_deciders import UNVERIFIED, LookBack
from tests.simulation.chain_judge import LOST_OUTCOME, OTHER_DRAW, SILENCE, TWICE
from tests.simulation.chain_run import ChainRun
from tests.simulation.chain_workers import IngestProcess
from tests.simulation.join_run import COUNTS, ROWS, JoinRun
from tests.simulation.join_worker import JoinWorker
from tests.simulation.learning import ORDER
from tests.simulation.planting import PLANTED
from tests.simulation.seams import CutAnywhere, replaced
from tests.simulation.truth import OwnTruth, Truth


@dataclass(frozen=True)
class Control:
    """One rule switched off, in runs of the join or, with `whole`, of the whole namespace."""

    said: str
    """How the complaint begins."""
    off: Callable[[], AbstractContextManager[None]] = nullcontext
    join: type[JoinPartition] = CutAnywhere
    truth: type[Truth] = Truth
    whole: bool = False

    def run(self, seed: int) -> None:
        """One seed without the rule."""
        OwnTruth.join = self.join
        if self.whole:
            run = ChainRun(seed, self.join)
            run.restless = 0.3  # kills where they matter: a control need not look at a thousand seeds
            run.run()
        else:
            JoinRun(seed, self.join, self.truth).run()


# rule 7: the chain


def _take_all(self: ChainReader, block: TransitionBlock) -> Accepted:
    """No chain: whatever stands in the log counts."""
    self.hwm[block.fingerprint, block.kind] = max(self.hwm.get((block.fingerprint, block.kind), START), block.last)
    return Accepted(0)


def _take_above(self: ChainReader, block: TransitionBlock) -> Accepted:
    """Plain dedupe: whatever lies above what came before counts, be there a hole or not."""
    hwm = self.hwm.get((block.fingerprint, block.kind), START)
    self.hwm[block.fingerprint, block.kind] = max(hwm, block.last)
    return Accepted(int(np.searchsorted(block.positions, hwm, side="right")))


def _take_what_fits(self: ChainReader, block: TransitionBlock) -> Accepted | Hole:
    """Holes are seen, a second history is not."""
    hwm = self.hwm.get((block.fingerprint, block.kind), START)
    if block.prev > hwm:
        return Hole(hwm, block.prev)
    return _take_above(self, block)


# rule 8: Progress


def _covered_by_any(self: Candidates, reader: ChainReader) -> Candidate | None:
    """A resume without `requires`: one chain that has got so far is enough."""
    for index in range(len(self._waiting) - 1, -1, -1):
        candidate = self._waiting[index]
        reached = [reader.hwm.get(chain, START) >= position for chain, position in candidate.closed.items()]
        if any(reached) or not reached:
            for _ in range(index + 1):
                self._waiting.popleft()
            return candidate
    return None


def _covered_blindly(self: Candidates, reader: ChainReader) -> Candidate | None:
    """What was written is as good as read back."""
    newest = self._waiting[-1] if self._waiting else None
    self._waiting.clear()
    return newest


# rule 9: the healer

_restart = JoinWorker._restart


def _only_for_write_errors(self: JoinWorker, partition: int, cause: str) -> None:
    if cause == "write error":
        _restart(self, partition, cause)


# rule 10: look-back


def _look_back(what: Callable[[Any], int]) -> Callable[[], AbstractContextManager[None]]:
    return lambda: replaced((JoinPartition, "look_back_ms", property(lambda self: what(self._definitions))))


_note = History.note


def _note_without_sources(
    self: History, offset: int, time_ms: int, sources: Any, in_force: Any, look_back_ms: int
) -> None:
    _note(self, offset, time_ms, {}, in_force, look_back_ms)


# rule 1: duplicates


@lru_cache(maxsize=1)
def _fold_decisions_while_open() -> Any:
    """The kernel with another idea of a duplicate: the id's first decision is still open."""
    latest_of_id = join_folding._latest_of_id

    @njit
    def latest_open_of_id(decisions: Any, rules: Any, name: int, keys: Any) -> tuple[int, int]:
        ring = decisions.known
        seq, before = latest_of_id(decisions, rules, name, keys)
        first = first_of(decisions, seq) if seq != NONE else NONE
        if first == NONE:
            return NONE, before
        record = ring.records[place(ring, first)]
        now_ms = ring.records[place(ring, ring.cursor[TAIL])].time
        is_open = now_ms <= record.time + rules.windows_ms[record.task] and not record.marks & CUT
        return (seq, before) if is_open else (NONE, before)

    names = {**vars(join_folding), "_latest_of_id": latest_open_of_id}
    return njit(FunctionType(join_folding.fold_decisions.py_func.__code__, names))


# rules 2 to 4 and 6, as joins


class ByArrival(CutAnywhere):
    """Windows by the clock of the process that folds."""

    def fold(self, offset: int, append_time_ms: int, block: Any) -> None:
        now_s = agents_owned.time.monotonic()  # type: ignore[attr-defined]  # the simulation's clock
        super().fold(offset, append_time_ms + int(now_s * 5_000), block)


class ByKey(CutAnywhere):
    """Ingest's copies are told by the outcome's key alone."""

    def fold(self, offset: int, append_time_ms: int, block: Any) -> None:
        if isinstance(block, OutcomeBlock):
            self._sources.clear()
        super().fold(offset, append_time_ms, block)


class ChainPerName(CutAnywhere):
    """One chain per task name, whatever its definition."""

    def emit(self) -> list[TransitionBlock]:
        blocks = []
        for block in super().emit():
            chain = block.task.encode().ljust(16)
            last = getattr(self, "_last", {}).get(chain, self._accepted.get((chain, 0), START))
            self._last = {**getattr(self, "_last", {}), chain: max(last, block.last)}
            blocks.append(replace(block, fingerprint=chain, prev=min(last, int(block.positions[0]) - 1)))
        return blocks


class NameTruth(Truth):
    """Rows by task name."""

    def _find(self, world: Any, partition: int, limits: tuple[int, int]) -> None:
        super()._find(world, partition, limits)
        names = {task.fingerprint: task.name.encode().ljust(16) for task in world.tasks}
        rows = self.rows
        self.rows = {}
        for fingerprint in rows:
            self.rows.setdefault(names[fingerprint], []).extend(rows[fingerprint])


class RawTime(CutAnywhere):
    """Append time as it stands, steps back included."""

    def _advance(self, append_time_ms: int, counting: bool) -> None:
        super()._advance(append_time_ms, counting)
        self.time_ms = append_time_ms


# the learner


def _whatever_came(self: Merge) -> int:
    """Batches cut when the reader happens to look: what has come is complete."""
    return max(self.times_ms) // self.bucket_ms * self.bucket_ms


# the definitions in force (docs/decisions/0012)


class ByTable(CutAnywhere):
    """Every definition counts from the moment at which this process heard of it."""

    def __init__(self, partition: int, tasks: Any, resume: Resume | None = None, *rest: Any, **named: Any) -> None:
        start = None if resume is None else replace(resume, definitions=None)
        super().__init__(partition, tasks, start, *rest, **named)


class TableTruth(Truth):
    """All definitions count from the start."""

    by_log = False


# deciding, ingest, snapshots


def _trust_first(self: SnapshotFollower, manifest: Any, chunks: Any) -> None:
    """Persist, then look."""
    policy_module.check_manifest(manifest, self._verify, self._trusted.value)
    self._trusted.raise_to(manifest.version, manifest.sha256)
    _take(self, manifest, chunks)


_take = SnapshotFollower._take
_dice = Random(0)


def _draw_by_chance(*_: Any) -> int:
    return _dice.randrange(1 << 24)


def _end_of_the_newest(self: Offsets, partition: int, offset: int) -> None:
    """What is finished is committed, whatever lies before it."""
    if partition in self._open:
        self._ready[partition] = max(offset + 1, self._ready.get(partition, 0))


CONTROLS: dict[str, Control] = {
    "no chain": Control(ROWS, lambda: replaced((ChainReader, "offer", _take_all))),
    "plain offset dedupe": Control(ROWS, lambda: replaced((ChainReader, "offer", _take_above))),
    "duplicates by 'first still open'": Control(
        ROWS, lambda: replaced((join_module, "fold_decisions", _fold_decisions_while_open())), truth=OwnTruth
    ),
    "look-back of D alone": Control(ROWS, _look_back(lambda known: known.dedupe_ms)),
    "look-back of Wmax alone": Control(ROWS, _look_back(lambda known: known.window_ms)),
    "look-back without bwmax": Control(ROWS, _look_back(lambda known: known.dedupe_ms + known.window_ms)),
    "resume without its source marks": Control(COUNTS, lambda: replaced((History, "note", _note_without_sources))),
    "resume without requires": Control(ROWS, lambda: replaced((Candidates, "covered", _covered_by_any))),
    "Progress trusted blindly": Control(ROWS, lambda: replaced((Candidates, "covered", _covered_blindly))),
    "no healer": Control(
        ROWS,
        lambda: replaced(
            (OwnedPartition, "needs_healing", lambda self: False), (JoinWorker, "_restart", _only_for_write_errors)
        ),
    ),
    "chain per task name": Control(ROWS, join=ChainPerName, truth=NameTruth),
    "ingest's copies told by key": Control(ROWS, join=ByKey),
    "windows by arrival": Control(ROWS, join=ByArrival),
    "T steps back with the clock": Control(ROWS, join=RawTime),
    "batches cut by arrival": Control(ORDER, lambda: replaced((Merge, "done_ms", property(_whatever_came)))),
    "definitions by the task table": Control(ROWS, join=ByTable, truth=TableTruth),
    "forks are not looked for": Control(PLANTED, lambda: replaced((ChainReader, "offer", _take_what_fits))),
    "trusted before verified": Control(
        UNVERIFIED, lambda: replaced((SnapshotFollower, "_take", _trust_first)), whole=True
    ),
    "a global generator": Control(OTHER_DRAW, lambda: replaced((decide, "draw", _draw_by_chance)), whole=True),
    "no look-up after a take-over": Control(TWICE, lambda: replaced((LookBack, "answered", lambda *_: {})), whole=True),
    "commits of the newest": Control(SILENCE, lambda: replaced((Offsets, "end", _end_of_the_newest)), whole=True),
    "ingest goes on after an error": Control(
        LOST_OUTCOME,
        lambda: replaced((IngestProcess, "failed", property(lambda self: False, lambda *_: None))),
        whole=True,
    ),
}
"""By name, in the order of join.md's reasons."""
