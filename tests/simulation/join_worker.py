"""Join workers: the real `OwnedPartition` with the real `JoinPartition`, on logs in lists.

What a worker does between two steps of the scheduler is what the shells do (streams.agents_join): take a batch of the
journal, read back, rebuild, look for what needs healing. Everything is a call that may be the last before a crash, a
pause or a rebalance, and every await of the partition's coroutines is a place where something else runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

from schemas.task import Task, TaskTable
from streams.agents_owned import OwnedPartition
from streams.agents_ports import Ports, State
from streams.read_back import Read, ReadState, judge
from streams.transport_batch import RecordBatch
from tests.simulation.virtual import Clock, Envelopes, Faults, Outbox, Pause, Record, Routine, Wire

NAMESPACE = "t"
HEAL_S = 5.0


@dataclass
class Logs:
    """One partition: its journal as far as it is written, and the transitions."""

    journal: list[Record]
    transitions: list[Record] = field(default_factory=list)
    visible: int = 0
    """First journal offset that nobody can read yet."""


@dataclass
class Setting:
    """What all workers of a run share."""

    rng: Random
    logs: list[Logs]
    codec: Envelopes | Wire
    clock: Clock
    tasks: list[Task]
    """What the tasks topic holds by now."""
    faults: Faults
    limits: tuple[int, int] = (10**6, 10**5)
    """Open decisions, waiting outcomes."""
    is_troubled: bool = True
    """Replicas may lag."""
    heal_s: float = HEAL_S
    registry: Any = None
    """Of the real codec; None with envelopes."""
    tick: bytes = b""
    """What owners write to their journals; b"" where the ticks stand there already."""
    append_ms: Callable[[str, int], int] = lambda topic, partition: 0
    """The clock of a partition's leader."""
    pause: float = 0.0
    """How often a write waits for room."""
    alarms: list[tuple[str, int]] = field(default_factory=list)
    """Holes and forks that a join saw in its own output."""


class _Metrics:
    """Counts nothing but alarms."""

    def __init__(self, alarms: list[tuple[str, int]]) -> None:
        self._alarms = alarms

    def add(self, name: str, amount: float = 1, **labels: Any) -> None:
        if name in ("headrace_join_holes", "headrace_join_forks"):
            self._alarms.append((name.rsplit("_", 1)[1], labels["partition"]))

    def set(self, name: str, value: float, **labels: Any) -> None:
        pass


@dataclass
class _Held:
    """A partition that a worker believes to own."""

    owned: OwnedPartition
    generation: int = -1
    read_offset: int = 0
    fetch_offset: int | None = None
    found: ReadState | None = None
    """What was read of the output; folding from it has not begun."""
    must_restart: bool = True
    folding: Routine | None = None
    """The agent takes one batch at a time."""
    checks: list[Routine] = field(default_factory=list)
    """Progress on its way to the producer."""


class JoinWorker:
    """One process. `assignment` is what the group last told it; it acts on that when it gets to it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rng = setting.rng
        self.tasks = TaskTable(setting.tasks)
        """As far as it has read the topic."""
        self.assignment: frozenset[int] = frozenset()
        self.held: dict[int, _Held] = {}
        self.outboxes = {p: self._outbox("transitions", p, logs.transitions) for p, logs in enumerate(setting.logs)}
        self.ticks = {p: self._outbox("journal", p, logs.journal) for p, logs in enumerate(setting.logs)}
        limits: Any = SimpleNamespace(
            namespace=NAMESPACE, open_decisions_max=setting.limits[0], pending_outcomes_max=setting.limits[1],
            declare_gap=False, unread_bytes_max=1 << 30, heal_after_ms=int(setting.heal_s * 1000),
        )  # fmt: skip
        metrics: Any = _Metrics(setting.alarms)
        output: Any = SimpleNamespace(write=self._write)
        letters: Any = SimpleNamespace(write=self._letter)
        self._ports = Ports(
            limits, setting.registry, self.tasks, output, letters, metrics, self._restart, lambda: 0, 250
        )

    def _outbox(self, topic: str, partition: int, log: list[Record]) -> Outbox:
        return Outbox(log, lambda: self._setting.append_ms(topic, partition))

    async def _write(self, topic: str, partition: int, payload: bytes) -> Any:
        if self._setting.pause and self._rng.random() < self._setting.pause:
            await Pause()
        return self.outboxes[partition].put(payload)

    async def _letter(self, *letter: Any) -> None:
        pass

    def _restart(self, partition: int, cause: str) -> None:
        held = self.held.get(partition)
        if held is not None and not (held.must_restart or held.found):
            held.must_restart = True
            held.generation = held.owned.begin_rebuild()

    # the group

    def obey(self) -> None:
        """Act on the newest assignment: drop what is gone, begin what is new. Writes that had begun go on or not."""
        for partition in [each for each in self.held if each not in self.assignment]:
            held = self.held.pop(partition)
            for routine in (held.folding, *held.checks):
                while routine is not None and not (self._rng.random() < 0.2 or routine.step()):
                    pass
        for partition in self.assignment:
            if partition not in self.held:
                owned = OwnedPartition(partition, self._ports)
                self.held[partition] = _Held(owned, owned.begin_rebuild())

    def read_tasks(self) -> None:
        """The tasks topic to its end."""
        for task in self._setting.tasks[len(self.tasks) :]:
            self.tasks.add(task)

    # what it does, one call at a time

    def turn(self, partition: int) -> None:
        """One thing about a partition that it holds."""
        held = self.held[partition]
        logs = self._setting.logs[partition]
        if held.must_restart:
            held.must_restart = False
            held.found = self._read_state(logs)
        elif held.found is not None:
            held.fetch_offset = held.owned.begin_fold(held.found)
            held.read_offset, held.found = held.found.transitions_offset, None
        else:
            self._go_on(held, partition, logs)

    def _go_on(self, held: _Held, partition: int, logs: Logs) -> None:
        choice = self._rng.random()
        if choice < 0.1:
            self.look(partition)
        elif choice < 0.5 and held.folding is not None:
            held.folding = None if held.folding.step() else held.folding
        elif choice < 0.6 and held.checks:
            held.checks = held.checks if not held.checks[0].step() else held.checks[1:]
        elif choice < 0.6 and (held.fetch_offset or 0) < logs.visible and held.folding is None:
            self._fold(held, partition, logs)
        else:
            self._read_back(held, partition, logs)

    def look(self, partition: int) -> None:
        """What `JoinAgent.run` does once per tick."""
        owned, held = self.held[partition].owned, self.held[partition]
        if self._setting.tick and not len(self.ticks[partition]) and self._rng.random() < 0.6:
            self.ticks[partition].put(self._setting.tick)
        if owned.look_again():
            held.fetch_offset = owned.next_offset
        if owned.needs_healing():
            self._restart(partition, "not read back")

    def _read_state(self, logs: Logs) -> ReadState:
        """As `read_back.read_state`: from the newest Progress on, or what a lagging replica shows of it."""
        end = len(logs.transitions)
        if self._setting.is_troubled and self._rng.random() < 0.1:
            end = max(0, end - self._rng.randint(1, 3))
        records = [self._setting.codec.decode(value) for _, value in logs.transitions[:end]]
        newest = next((each for each in reversed(records) if not hasattr(each, "positions")), None)
        start = newest.transitions_offset if newest is not None else 0
        return judge(newest, records[start:], end, 0, logs.visible)

    def _fold(self, held: _Held, partition: int, logs: Logs) -> None:
        first = held.fetch_offset or 0
        if first and self._rng.random() < 0.1:
            first = self._rng.randrange(first)  # handed out twice
        stop = min(logs.visible, first + self._rng.choice((1, 2, 3, 6)))
        held.fetch_offset = stop
        routine = Routine(self._follow(held, batch_of("journal", partition, logs.journal, first, stop)))
        held.folding = None if routine.step() else routine

    async def _follow(self, held: _Held, batch: RecordBatch) -> None:
        if not await held.owned.fold(batch):
            held.fetch_offset = held.owned.next_offset

    def _read_back(self, held: _Held, partition: int, logs: Logs) -> None:
        stop = min(len(logs.transitions), held.read_offset + self._rng.choice((1, 2, 8)))
        if stop == held.read_offset:
            return
        generation = held.generation
        for offset in range(held.read_offset, stop):
            held.owned.read(Read(partition, generation, offset, logs.transitions[offset][1]))
        held.read_offset = stop
        routine = Routine(held.owned.checkpoint())
        if not routine.step():
            held.checks.append(routine)

    def deliver(self, partition: int, faults: Faults) -> None:
        """The oldest of its writes to a partition reaches the broker, or does not."""
        for outbox in (self.outboxes[partition], self.ticks[partition]):
            if outbox.waiting:
                outbox.deliver(faults.strike(self._rng))

    def die(self) -> None:
        """Killed; what was on the wire may still arrive."""
        for outbox in self.outboxes.values():
            outbox.die(self._rng.randint(0, len(outbox)))

    def is_idle(self, partition: int) -> bool:
        """Whether everything of a partition is folded, written and read back."""
        held, logs = self.held.get(partition), self._setting.logs[partition]
        return bool(
            held is not None
            and held.owned.state is State.FOLDING
            and held.owned.next_offset == logs.visible == len(logs.journal)
            and held.folding is None and not held.checks and not held.must_restart and held.found is None
            and held.read_offset == len(logs.transitions) and not len(self.outboxes[partition])
        )  # fmt: skip


def batch_of(topic: str, partition: int, log: list[Record], first: int, stop: int) -> RecordBatch:
    """Records [first, stop) as the transport hands them out."""
    times_ms, values = zip(*log[first:stop], strict=True)
    lengths = np.array([len(value) for value in values], np.int32)
    return RecordBatch(
        f"{NAMESPACE}.{topic}", partition, np.arange(first, stop), np.array(times_ms), np.cumsum(lengths) - lengths,
        lengths, np.frombuffer(b"".join(values), np.uint8), stop,
    )  # fmt: skip
