"""Carrying a planned fault out: what is done, what is waited for, what counts as healed.

Each fault is a generator over conditions: it does something, yields what it waits for, and goes on when that holds.
`Torturer` drives all of them in one thread; a target is only ever in the hands of one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from deploy import broker
from deploy.torture.history import Hit
from deploy.torture.kafka_faults import Action, Direction, Fault
from deploy.torture.kafka_frames import Api
from deploy.torture.plan import BROKER, EVERYBODY, JOINERS, PROCESSES, Kind, Planned
from deploy.torture.stage import Stage
from schemas.errors import UserError

Condition = Callable[[], bool]
Steps = Iterator[Condition]

RECOVERY_S_MAX = 120.0
"""Later than this it has not recovered; the run goes on and the verdict says so."""
STORM_READY_S = 20.0
BROKER_STARTS_MAX = 10
LOST_ACKS = frozenset({Api.PRODUCE, Api.OFFSET_COMMIT})
DELAY_MS = (20.0, 400.0)


@dataclass(slots=True)
class _Running:
    """One fault under way."""

    hit: Hit
    steps: Steps
    waits_for: Condition
    since_s: float


class Torturer:
    """Starts faults when they are due and drives them to their end."""

    def __init__(self, stage: Stage, planned: Iterable[Planned], kills: int = 0) -> None:
        """A component that was killed `kills` times is left alone; 0: never."""
        self.stage, self.history = stage, stage.history
        self._kills = kills
        self._coming = sorted(planned, key=lambda each: each.at_s, reverse=True)
        self._running: list[_Running] = []

    @property
    def is_done(self) -> bool:
        """No fault is under way and none is coming."""
        return not self._coming and not self._running

    def step(self) -> None:
        """Start what is due, go on with what need not wait any more."""
        while self._coming and self._coming[-1].at_s <= self.history.now_s:
            self._begin(self._coming.pop())
        for running in list(self._running):
            self._go_on(running)
        self.stage.keep()

    def _begin(self, planned: Planned) -> None:
        hit = Hit(planned, self.history.now_s)
        self.history.hits.append(hit)
        hit.passed_over = self._why_not(planned)
        if hit.passed_over:
            self.history.note("passed over", number=planned.number, kind=planned.kind, why=hit.passed_over)
            return
        self.history.note(
            "fault", number=planned.number, kind=planned.kind, target=planned.target or "everybody", point=planned.point
        )
        self.history.say(f"{planned.kind} of {planned.target or 'everybody'} {planned.point}")
        steps = _SCRIPTS[planned.kind](self.stage, hit)
        self._running.append(_Running(hit, steps, lambda: True, time.monotonic()))

    def _why_not(self, planned: Planned) -> str:
        if any(running.hit.planned.target == planned.target for running in self._running):
            return "the last fault of this target is not over"
        member = self.stage.members.get(planned.target)
        if member is not None and planned.kind in (Kind.KILL, Kind.AIMED_KILL, Kind.ZOMBIE) and not member.is_ready:
            return "it is not up"
        if self._kills and self._killed(planned.component) >= self._kills:
            return "it was killed often enough"
        return ""

    def _killed(self, component: str) -> int:
        return sum(hit.num_kills for hit in self.history.hits if hit.planned.component == component)

    def _go_on(self, running: _Running) -> None:
        hit = running.hit
        late = hit.healed_s is not None and self.history.now_s - hit.healed_s > RECOVERY_S_MAX
        try:
            while late or running.waits_for():
                if late:
                    raise StopIteration
                running.waits_for = next(running.steps)
            return
        except StopIteration:
            if not late:
                hit.recovered_s = self.history.now_s
                hit.whole_s = self._whole_since(hit)
        self._running.remove(running)
        hit.is_over = True
        recovery_s = None if hit.recovery_s is None else round(hit.recovery_s, 3)
        self.history.note(
            "over", number=hit.planned.number, recovery_s=recovery_s, kills=hit.num_kills, bites=hit.bites
        )

    def _whole_since(self, hit: Hit) -> float:
        """End of the last other fault that kept the target down: of a broker, of the network, of its own."""
        return max(
            (
                other.recovered_s
                for other in self.history.hits
                if other is not hit
                and other.recovered_s is not None
                and (other.planned.component in (BROKER, "network") or other.planned.target == hit.planned.target)
            ),
            default=0.0,
        )


def _after(seconds: float) -> Condition:
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() >= end_s


def _any(*conditions: Condition) -> Condition:
    return lambda: any(condition() for condition in conditions)


def _healed(stage: Stage, hit: Hit) -> None:
    hit.healed_s = stage.history.now_s


def _is_serving(stage: Stage, target: str) -> Condition:
    """Whether what a fault hit serves again: the process, or everything."""
    if target.startswith(BROKER):
        return stage.broker_is_well
    return _all_serve(stage, PROCESSES if target == EVERYBODY else (target,))


def _all_serve(stage: Stage, names: Collection[str]) -> Condition:
    """Whether each of `names` serves.

    One that has served since and is now under a fault of its own has recovered from this one: while others are killed
    every few seconds, five processes are hardly ever up at once.
    """
    served: set[str] = set()

    def is_over() -> bool:
        served.update(name for name in names if stage.members[name].is_ready)
        down = {name for name in names if not stage.members[name].is_ready}
        return down <= served & stage.history.under_fault()

    return is_over


def _kill(stage: Stage, hit: Hit) -> Steps:
    target = hit.planned.target
    if target.startswith(BROKER):
        yield from _kill_broker(stage, hit)
        return
    member = stage.members[target]
    hit.num_kills += member.kill()
    _healed(stage, hit)
    member.start()
    yield _is_serving(stage, target)


def _kill_broker(stage: Stage, hit: Hit) -> Steps:
    broker.stop_node(stage.broker_folder, stage.node_of(hit.planned.target), kill=True)
    hit.num_kills += 1
    yield _after(hit.planned.lasts_s)
    _healed(stage, hit)
    yield _start_broker(stage, hit.planned.target)
    yield stage.broker_is_well


def _start_broker(stage: Stage, target: str) -> Condition:
    """As whoever supervises a broker would: again, until it comes up."""

    def start() -> None:
        for _ in range(BROKER_STARTS_MAX):
            try:
                broker.start_node(stage.broker_folder, stage.node_of(target), tied=True)
                return
            except UserError as error:
                stage.history.note("broker did not start", target=target, why=error.message)

    return stage.starter.submit(start).done


def _meanwhile(work: Callable[[], object]) -> Condition:
    """Do something that takes its time in a thread of its own: others are tortured meanwhile."""
    working = threading.Thread(target=work, daemon=True)
    working.start()
    return lambda: not working.is_alive()


def _aimed_kill(stage: Stage, hit: Hit) -> Steps:
    member = stage.members[hit.planned.target]
    member.is_owned = True
    member.send(signal.SIGTERM)
    yield _any(lambda: member.code is not None, _after(12.0))
    if member.abort():
        stage.history.note("did not end within 12 s of SIGTERM", name=member.name)
    member.start(hit)
    yield _any(lambda: member.code is not None, _after(hit.planned.lasts_s))
    hit.num_kills += member.code == -signal.SIGKILL
    _healed(stage, hit)
    member.is_owned = False
    if member.code == -signal.SIGKILL:
        member.start()
    yield _is_serving(stage, hit.planned.target)


def _zombie(stage: Stage, hit: Hit) -> Steps:
    target = hit.planned.target
    if target.startswith(BROKER):
        pid = stage.pid_of(target)
        os.kill(pid, signal.SIGSTOP)
        yield _after(hit.planned.lasts_s)
        os.kill(pid, signal.SIGCONT)
    else:
        stage.members[target].send(signal.SIGSTOP)
        yield _after(hit.planned.lasts_s)
        stage.members[target].send(signal.SIGCONT)
    _healed(stage, hit)
    yield _is_serving(stage, target)


def _network(stage: Stage, hit: Hit) -> Steps:
    planned = hit.planned
    prefixes = (planned.target,) if planned.target else PROCESSES
    one_way = (Direction.REQUESTS, Direction.RESPONSES)[planned.seed % 2]
    fault = {
        Kind.CUT: Fault(Action.CUT, prefixes),
        Kind.ONE_WAY: Fault(Action.HANG, prefixes, direction=one_way),
        Kind.DELAY: Fault(Action.DELAY, prefixes, delay_ms=DELAY_MS, seed=planned.seed),
        Kind.LOST_ACK: Fault(Action.DROP_RESPONSE, prefixes, apis=LOST_ACKS, num_bites_max=1 + planned.seed % 4),
        Kind.HALF_FRAME: Fault(Action.CUT_IN_FRAME, prefixes, direction=one_way, num_bites_max=1 + planned.seed % 4),
    }[planned.kind]
    injected = stage.proxy.inject(fault)
    yield _after(planned.lasts_s)
    stage.proxy.heal(injected)
    hit.bites = injected.num_bites
    _healed(stage, hit)
    yield _is_serving(stage, planned.target)


def _full_disk(stage: Stage, hit: Hit) -> Steps:
    target = hit.planned.target
    disk = stage.disks[target]
    yield _meanwhile(disk.fill)
    yield _after(hit.planned.lasts_s)
    disk.free()
    _healed(stage, hit)
    if target.startswith(BROKER):  # a broker that cannot write its log ends by itself
        running = broker.status(stage.broker_folder)
        if running is None or not running.is_alive:
            yield _start_broker(stage, target)
    yield _is_serving(stage, target)


def _storm(stage: Stage, hit: Hit) -> Steps:
    """Twice: a worker joins, serves for a while, leaves."""
    for _ in range(2):
        joiner = stage.new_joiner()
        joiner.start()
        yield _any(lambda: joiner.is_ready, lambda: joiner.code is not None, _after(STORM_READY_S))  # noqa: B023 - not kept
        yield _after(hit.planned.lasts_s)
        joiner.send(signal.SIGTERM)
        yield _any(lambda: joiner.code is not None, _after(12.0))  # noqa: B023 - not kept
        joiner.kill()
        joiner.end(1.0)
    _healed(stage, hit)
    yield _all_serve(stage, JOINERS)


_SCRIPTS: dict[Kind, Callable[[Stage, Hit], Steps]] = {
    Kind.KILL: _kill,
    Kind.AIMED_KILL: _aimed_kill,
    Kind.ZOMBIE: _zombie,
    Kind.CUT: _network,
    Kind.ONE_WAY: _network,
    Kind.DELAY: _network,
    Kind.LOST_ACK: _network,
    Kind.HALF_FRAME: _network,
    Kind.FULL_DISK: _full_disk,
    Kind.STORM: _storm,
}
