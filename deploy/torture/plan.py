"""Which fault comes when: fixed by the seed before anything runs. Pure.

A fault whose target is down when its time comes is passed over (and recorded so): the plan must not depend on how fast
a machine recovers, or the same seed would be another torture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from schemas.fault_points import POINTS


class Kind(StrEnum):
    """What is done to a target."""

    KILL = "kill"
    """SIGKILL; it is started again at once, as Kubernetes would."""
    AIMED_KILL = "kill at a point"
    """Ended in order, started again with a fault point armed: it kills itself in the middle of something."""
    ZOMBIE = "zombie"
    """SIGSTOP for longer than the group waits for it, then SIGCONT: it goes on as if nothing had happened."""
    CUT = "network cut"
    """Every connection ends, none can be made."""
    ONE_WAY = "one-way loss"
    """Bytes of one direction arrive, those of the other never."""
    DELAY = "network delay"
    """Every frame waits."""
    LOST_ACK = "lost answers"
    """The broker does its work and its answer to a write or a commit is lost."""
    HALF_FRAME = "half a frame"
    """A connection ends in the middle of a message."""
    FULL_DISK = "full disk"
    """Nothing more can be written: checkpoints of the learner, or the broker's log."""
    STORM = "join/leave storm"
    """A further worker joins the groups and leaves them, and again."""


BROKER: Final = "broker"
LEARNER: Final = "learn"
JOINERS: Final = ("join-1", "join-2")
DECIDERS: Final = ("decide-1", "decide-2")
WORKERS: Final = (*JOINERS, *DECIDERS)
PROCESSES: Final = (*WORKERS, LEARNER)
"""Processes of ours; `join` plays ingest too."""
EVERYBODY: Final = ""
"""Target of a network fault that all processes of ours feel."""
STORMER: Final = "join-3"

WEIGHTS: Final[Mapping[Kind, float]] = {
    Kind.KILL: 34,
    Kind.AIMED_KILL: 26,
    Kind.ZOMBIE: 7,
    Kind.CUT: 6,
    Kind.ONE_WAY: 5,
    Kind.DELAY: 5,
    Kind.LOST_ACK: 7,
    Kind.HALF_FRAME: 5,
    Kind.FULL_DISK: 3,
    Kind.STORM: 2,
}
"""How often each comes, relatively."""

COMPONENTS: Final = ("join", "decide", LEARNER, BROKER)
"""What can be killed."""
_AIMED_SHARE: Final = 0.3
"""Of the kills in `plan_kills`; a broker has no points of ours."""

SESSION_S: Final = 6.0
"""Workers are declared dead after so long without a heartbeat; the least that workers accept."""
_LASTS_S: Final[Mapping[Kind, tuple[float, float]]] = {
    Kind.ZOMBIE: (SESSION_S + 1.5, SESSION_S + 6.0),
    Kind.CUT: (0.5, 8.0),
    Kind.ONE_WAY: (1.0, 8.0),
    Kind.DELAY: (2.0, 8.0),
    Kind.LOST_ACK: (3.0, 3.0),
    Kind.HALF_FRAME: (3.0, 3.0),
    Kind.FULL_DISK: (2.0, 6.0),
    Kind.STORM: (4.0, 8.0),
}
_BROKER_DOWN_S: Final = (0.0, 5.0)
_AIM_S: Final = 8.0
"""A point that is not reached within so long is left armed; other faults may come meanwhile."""
_COUNT_MAX: Final = 8
_PARTS: Final = {
    LEARNER: ("learner", "checkpoint", "publish"),
    "join": ("ingest", "join"),
    "decide": ("decide", "follow"),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come."""

    number: int
    at_s: float
    """Seconds after the shop opens."""
    kind: Kind
    target: str
    """A process, a broker (``broker-1``), or everybody."""
    lasts_s: float = 0.0
    """Until it is healed; a killed process is started again after it."""
    point: str = ""
    """Name in `schemas.fault_points.POINTS` with its count: ``join.before-write=3``."""
    seed: int = 0
    """For what the fault draws by itself."""

    @property
    def component(self) -> str:
        """What kind of process is hit: join, decide, learn, broker; network for everybody."""
        return self.target.partition("-")[0] or "network"


def points_of(component: str) -> list[str]:
    """Names of the fault points that a process of `component` passes."""
    return [name for name in POINTS if name.partition(".")[0] in _PARTS[component]]


def plan(
    seed: int, seconds: float, every_s: tuple[float, float], num_brokers: int, disks: Sequence[str] = ()
) -> list[Planned]:
    """Faults for so many seconds, the next one `every_s` (shortest, longest) after the last.

    `disks` are the targets whose disk can be filled: ``learn`` and brokers; without any no disk fills.
    """
    draw = Random(seed)
    brokers = _brokers(num_brokers)
    kinds = [kind for kind in WEIGHTS if disks or kind is not Kind.FULL_DISK]
    found: list[Planned] = []
    for number, at_s in _times(draw, seconds, every_s):
        kind = draw.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        found.append(_fault(draw, number, at_s, kind, brokers, disks))
    return found


def plan_kills(
    seed: int, seconds: float, every_s: tuple[float, float], num_brokers: int, components: Sequence[str]
) -> list[Planned]:
    """The same with nothing but kills of `components`, each as often."""
    draw = Random(seed)
    brokers = _brokers(num_brokers)
    found: list[Planned] = []
    for number, at_s in _times(draw, seconds, every_s):
        component = draw.choice(components)
        is_aimed = component != BROKER and draw.random() < _AIMED_SHARE
        found.append((_aimed_kill if is_aimed else _kill)(draw, number, at_s, (component,), brokers))
    return found


def _times(draw: Random, seconds: float, every_s: tuple[float, float]) -> Iterator[tuple[int, float]]:
    """(number, time) of each fault; what one draws for itself comes before the time of the next."""
    number, at_s = 1, draw.uniform(*every_s)
    while at_s < seconds:
        yield number, at_s
        number, at_s = number + 1, at_s + draw.uniform(*every_s)


def _brokers(num_brokers: int) -> list[str]:
    return [f"{BROKER}-{number + 1}" for number in range(num_brokers)]


def _kill(draw: Random, number: int, at_s: float, components: Sequence[str], brokers: Sequence[str]) -> Planned:
    target = _component(draw, components, brokers)
    return Planned(number, at_s, Kind.KILL, target, draw.uniform(*_BROKER_DOWN_S) if target in brokers else 0.0)


def _aimed_kill(draw: Random, number: int, at_s: float, components: Sequence[str], brokers: Sequence[str]) -> Planned:
    target = _component(draw, components, brokers)
    point = draw.choice(points_of(target.partition("-")[0]))
    return Planned(number, at_s, Kind.AIMED_KILL, target, _AIM_S, f"{point}={draw.randint(1, _COUNT_MAX)}")


def _fault(draw: Random, number: int, at_s: float, kind: Kind, brokers: Sequence[str], disks: Sequence[str]) -> Planned:
    lasts_s = draw.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
    seed = draw.randrange(1 << 31)
    if kind is Kind.KILL:
        # Without its broker everybody waits and nothing else can be shown: it dies less often than they do.
        return _kill(draw, number, at_s, ("join", "join", "decide", "decide", LEARNER, LEARNER, BROKER), brokers)
    if kind is Kind.AIMED_KILL:
        return _aimed_kill(draw, number, at_s, ("join", "decide", LEARNER), brokers)
    if kind is Kind.ZOMBIE:
        return Planned(number, at_s, kind, _component(draw, ("join", "decide", LEARNER, BROKER), brokers), lasts_s)
    if kind is Kind.FULL_DISK:
        return Planned(number, at_s, kind, draw.choice(list(disks)), lasts_s)
    if kind is Kind.STORM:
        return Planned(number, at_s, kind, STORMER, lasts_s)
    return Planned(number, at_s, kind, draw.choice((EVERYBODY, *PROCESSES, *PROCESSES)), lasts_s, seed=seed)


def _component(draw: Random, components: Sequence[str], brokers: Sequence[str]) -> str:
    """A target: first the component, so that each is hit as often however many processes it has."""
    component = draw.choice(components)
    if component == LEARNER:
        return LEARNER
    return draw.choice({"join": JOINERS, "decide": DECIDERS, BROKER: brokers}[component])
