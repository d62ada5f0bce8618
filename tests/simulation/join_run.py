"""One seed of the join: workers come, go, pause and die over given journals, and what they leave must be the truth."""

from __future__ import annotations

from random import Random
from typing import Any

from schemas.records import Progress
from schemas.registry import FileRegistry
from streams.join import JoinPartition
from tests.simulation.join_worker import HEAL_S, JoinWorker, Logs, Setting
from tests.simulation.learning import ALARMS, ORDER, Learning, expected_digests
from tests.simulation.planting import check_planted
from tests.simulation.seams import CutAnywhere, owned_partitions, silence
from tests.simulation.truth import Truth, read_through, require
from tests.simulation.virtual import Clock, Envelopes, Faults, Wire
from tests.simulation.worlds import TICK, World, make_world

MODES = (
    Faults(), Faults(lose=0.05), Faults(refuse=0.05, doubt=0.05), Faults(double=0.1),
    Faults(lose=0.05, refuse=0.03, doubt=0.03, double=0.05), Faults(lose=0.3),
)  # fmt: skip
ROWS = "the transitions are not those of the whole log"
COUNTS = "Progress counts wrongly"
END = "the join did not get to the end"
NUM_RECORDS = 18
BYTES_EVERY = 16
"""One seed in so many in its real bytes: what is decoded together, or not at all, is decoded there."""
REGISTRY = FileRegistry()
APPLY = 0.03
PLANTED_SHARE = 0.2
LEARNT_SHARE = 0.3
STILL_ROUNDS = 10
SETTLE_ROUNDS = 400


class JoinRun:
    """See the module's docstring. Everything follows from the seed."""

    def __init__(self, seed: int, join: type[JoinPartition] = CutAnywhere, truth: type[Truth] = Truth) -> None:
        self.rng = Random(seed)
        self.join, self.truth = join, truth
        self.world: World = make_world(self.rng, NUM_RECORDS)
        self.in_bytes = seed % BYTES_EVERY == 0
        self.codec: Envelopes | Wire = Wire(REGISTRY) if self.in_bytes else Envelopes()
        self.clock = Clock()
        limits = (5, 3) if self.rng.random() < 0.1 else (10**6, 10**5)
        logs = [
            Logs([(time_ms, self.codec.encode(record)) for time_ms, record in journal])
            for journal in self.world.journals
        ]  # fmt: skip
        known = list(self.world.tasks[: self.world.num_known])
        self.setting = Setting(
            self.rng, logs, self.codec, self.clock, known, self.rng.choice(MODES), limits,
            registry=REGISTRY if self.in_bytes else None, pause=self.rng.choice((0.0, 0.0, 0.3)),
        )  # fmt: skip
        self.workers: list[JoinWorker] = []
        self.asleep: set[int] = set()
        self.restless = self.rng.choice((0.0, 0.02, 0.05, 0.1))
        self.slow = self.rng.choice((1.0, 1.0, 0.3))
        """Pace of partition 0."""
        self.stops = [list(stops) for stops in self.world.stops]
        self.still = [0] * len(logs)

    def run(self) -> None:
        """Raises Wrong."""
        codec = self.codec if isinstance(self.codec, Envelopes) else None
        with silence(), owned_partitions(self.rng, codec, self.clock, self.join):
            self._trouble()
            self._settle()
        self._check()

    # the scheduler

    def _trouble(self) -> None:
        rng, logs = self.rng, self.setting.logs
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._start()
        self._rebalance()
        for _ in range(4 * NUM_RECORDS + 2 * STILL_ROUNDS * max(len(stops) for stops in self.stops)):
            self.clock.now_s += rng.choice((0.05, 0.3, 1.0))
            for partition, each in enumerate(logs):
                if rng.random() < (0.5 * self.slow if partition == 0 else 0.5):
                    self._append(partition, each)
            if len(self.setting.tasks) < len(self.world.tasks) and rng.random() < APPLY:
                self.setting.tasks += self.world.tasks[len(self.setting.tasks) :]
            if rng.random() < self.restless:
                self._disturb()
            index = rng.randrange(len(self.workers))
            if index not in self.asleep:
                self._step(self.workers[index])

    def _append(self, partition: int, logs: Logs) -> None:
        """The journal goes on; at a stop it rests, and then, mostly, everyone starts again."""
        until = self.stops[partition][0] if self.stops[partition] else len(logs.journal)
        logs.visible = min(until, logs.visible + self.rng.choice((0, 1, 1, 2, 3)))
        if logs.visible < until or not self.stops[partition]:
            return
        self.still[partition] += 1
        if self.still[partition] > STILL_ROUNDS:
            self.still[partition] = 0
            self.stops[partition].pop(0)
            if self.rng.random() < 0.8:
                for worker in self.workers:
                    worker.die()
                self.workers = [JoinWorker(self.setting)]
                self.asleep.clear()
                self._rebalance()

    def _step(self, worker: JoinWorker) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            worker.deliver(rng.randrange(len(self.setting.logs)), self.setting.faults)
        if len(worker.tasks) < len(self.setting.tasks) and rng.random() < 0.2:
            worker.read_tasks()
        if worker.held.keys() != worker.assignment and rng.random() < 0.5:
            worker.obey()
        for partition in list(worker.held):
            worker.turn(partition)
            if rng.random() < 0.7:
                worker.deliver(partition, self.setting.faults)

    def _disturb(self) -> None:
        rng = self.rng
        choice = rng.randrange(6)
        index = rng.randrange(len(self.workers))
        if choice == 0:  # killed, and started again
            self.workers[index].die()
            self.workers[index] = JoinWorker(self.setting)
            self.asleep.discard(index)
            self._rebalance()
        elif choice == 1 and len(self.workers) < 4:
            self._start()
            self._rebalance()
        elif choice == 2 and len(self.workers) > 1:  # paused: the group goes on without it
            self.asleep.add(index)
            self._rebalance()
        elif choice == 3:  # a paused one goes on, and does not know
            self.asleep.clear()
        elif choice == 4:  # killed without anyone noticing yet
            self.workers[index].die()
            fresh = JoinWorker(self.setting)
            fresh.assignment = self.workers[index].assignment
            self.workers[index] = fresh
        else:
            self._rebalance()

    def _start(self) -> None:
        self.workers.append(JoinWorker(self.setting))

    def _rebalance(self) -> None:
        awake = [worker for index, worker in enumerate(self.workers) if index not in self.asleep]
        if not awake:
            self.asleep.clear()
            awake = self.workers
        shares: dict[int, set[int]] = {id(worker): set() for worker in awake}
        for partition in range(len(self.setting.logs)):
            shares[id(self.rng.choice(awake))].add(partition)
        for worker in awake:
            worker.assignment = frozenset(shares[id(worker)])

    def _settle(self) -> None:
        """No more trouble: whoever owns what must come to the end by itself, whatever went wrong before."""
        calm = Faults()
        self.setting.faults, self.setting.pause, self.setting.is_troubled = calm, 0.0, False
        self._rebalance()
        for each in self.setting.logs:
            each.visible = len(each.journal)
        self.setting.tasks = list(self.world.tasks)
        for worker in self.workers:
            worker.read_tasks()
            worker.obey()
        for turn in range(SETTLE_ROUNDS):
            for worker in self.workers:
                if worker.held.keys() != worker.assignment:
                    worker.obey()
                for partition in range(len(self.setting.logs)):
                    worker.deliver(partition, calm)
                for partition in list(worker.held):
                    worker.turn(partition)
                    if turn % 8 == 0:
                        self.clock.now_s += HEAL_S
                        worker.look(partition)
            if turn % 4 == 3 and self._is_settled():
                return

    def _is_settled(self) -> bool:
        """Whether every partition's newest Progress is about its journal's end; one more tick where it is not yet."""
        settled = True
        for partition, logs in enumerate(self.setting.logs):
            if not any(worker.is_idle(partition) for worker in self.workers):
                settled = False
            elif self._newest(logs) != len(logs.journal):
                settled = False
                self.world.journals[partition].append((self.world.journals[partition][-1][0] + 1, TICK))
                logs.journal.append((logs.journal[-1][0] + 1, self.codec.encode(TICK)))
                logs.visible += 1
        return settled

    def _newest(self, logs: Logs) -> int:
        """Journal offset of the last Progress in the transitions."""
        for _, value in reversed(logs.transitions):
            record = self.codec.decode(value)
            if isinstance(record, Progress):
                return record.journal_offset
        return -1

    def _check(self) -> None:
        truths, logs, alarms = [], [], set()
        for partition, each in enumerate(self.setting.logs):
            truth = self.truth(self.world, partition, self.setting.limits)
            records = [self.codec.decode(value) for _, value in each.transitions]
            found = read_through(records, truth)
            require(found.rows == truth.rows, ROWS, partition)
            for wrong in found.wrong:
                raise wrong
            reached = found.newest.journal_offset if found.newest is not None else 0
            require(reached == len(each.journal), END, (partition, reached, len(each.journal)))
            truths.append(truth)
            logs.append(records)
            alarms |= {(kind, partition, offset) for kind, offset in found.alarms}
        if self.rng.random() < PLANTED_SHARE:
            check_planted(self.rng, logs[0], truths[0])
        if self.rng.random() < LEARNT_SHARE:
            self._check_learning(truths, logs, alarms)

    def _check_learning(self, truths: list[Truth], logs: list[list[Any]], alarms: set[tuple[str, int, int]]) -> None:
        learning = Learning(self.rng, self.world.tasks, logs)
        learning.run(self.rng.choice((0, 1, 2)))
        require(learning.alarms == alarms, ALARMS, (learning.alarms, alarms))
        require(learning.digests == expected_digests(truths), ORDER)
