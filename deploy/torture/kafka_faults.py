"""What the proxy does to which frames: faults as values, and the set of those in force. Pure: randomness is seeded.

Owns selection ("does this fault mean this frame?") and how often a fault has bitten. Does not know sockets:
`deploy.torture.kafka_proxy` carries the verdicts out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random


class Action(StrEnum):
    """What happens to frames or connections that a fault selects."""

    CUT = "cut"
    """Connections end by RST at once, new ones as soon as they show that they are meant. Until healed."""
    HANG = "hang"
    """From the first selected frame on, the direction's bytes are taken and not passed; the connection stays open.
    Until healed, which ends connections that lost bytes: TCP loses none in mid-stream."""
    DELAY = "delay"
    """Each frame waits `delay_ms`; order in a connection and direction is kept."""
    DROP_RESPONSE = "drop response"
    """A response is swallowed and the connection ends: the work was done, the answer was lost."""
    CUT_IN_FRAME = "cut in frame"
    """Half of a frame is passed, then the connection ends."""


class Direction(StrEnum):
    """Which frames of a connection."""

    REQUESTS = "requests"
    RESPONSES = "responses"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame (or one connection, for faults without `apis`) that passes the proxy."""

    broker: int
    """Index in the proxy's targets."""
    client_id: str | None
    """None before the connection's first request: then only faults for all clients select it."""
    direction: Direction
    api_key: int | None = None
    """None for a connection as a whole, -1 for a response that answers nothing known."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule: an action and what it selects; by default everything, until healed."""

    action: Action
    client_prefixes: tuple[str, ...] = ()
    """A client is selected when its client.id starts with one of them; all are without any."""
    apis: frozenset[int] = frozenset()
    """Api keys (`kafka_frames.Api`); all without any."""
    brokers: frozenset[int] = frozenset()
    """Indices in the proxy's targets; all without any."""
    direction: Direction = Direction.BOTH
    """A drop of responses is about responses whatever stands here."""
    num_bites_max: int | None = None
    """The fault is over after so many bites; None: until healed. For drops and cuts in frames None means 1."""
    delay_ms: tuple[float, float] = (0.0, 0.0)
    """Shortest and longest wait of a delay."""
    seed: int = 0
    """Of the delays drawn."""

    def __post_init__(self) -> None:
        low, high = self.delay_ms
        if not 0 <= low <= high:
            raise ValueError(f"delay_ms must be 0 <= shortest <= longest, got {self.delay_ms}")
        if (high > 0) != (self.action is Action.DELAY):
            raise ValueError(f"delay_ms belongs to a delay and to nothing else, got {self.delay_ms} for {self.action}")
        if self.num_bites_max is not None and self.num_bites_max < 1:
            raise ValueError(f"num_bites_max must be at least 1, got {self.num_bites_max}")

    def selects(self, seen: Seen) -> bool:
        """Whether the fault means this frame; for a connection as a whole only a fault without `apis` can."""
        direction = self.direction
        if self.action is Action.DROP_RESPONSE:
            direction = Direction.RESPONSES
        elif self.action is Action.CUT and not self.apis:  # a connection has both directions
            direction = Direction.BOTH
        return (
            (not self.brokers or seen.broker in self.brokers)
            and (not self.apis or seen.api_key in self.apis)
            and direction in (Direction.BOTH, seen.direction)
            and (not self.client_prefixes or (seen.client_id or "").startswith(self.client_prefixes))
        )


@dataclass(slots=True, eq=False)
class Injected:
    """A fault in force, as `Proxy.inject` hands it out."""

    fault: Fault
    num_bites: int = 0
    """Connections cut, directions hung, frames delayed, responses dropped, frames halved. Any thread may read it."""
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.fault.seed)

    @property
    def is_spent(self) -> bool:
        """Whether it has bitten as often as it may."""
        once = self.fault.action in (Action.DROP_RESPONSE, Action.CUT_IN_FRAME)
        allowed = 1 if self.fault.num_bites_max is None and once else self.fault.num_bites_max
        return allowed is not None and self.num_bites >= allowed


class Rules:
    """Faults in force, in the order of their injection."""

    def __init__(self) -> None:
        self._active: list[Injected] = []

    def __iter__(self) -> Iterator[Injected]:
        return iter(tuple(self._active))

    def add(self, fault: Fault) -> Injected:
        """Put a fault into force."""
        injected = Injected(fault)
        self._active.append(injected)
        return injected

    def remove(self, injected: Injected) -> None:
        """Take it back; nothing happens when it is not in force."""
        if injected in self._active:
            self._active.remove(injected)

    def breaking(self, seen: Seen) -> Injected | None:
        """The first fault that takes this frame or its connection away; None: it passes (perhaps delayed)."""
        for each in self._active:
            if each.fault.action is not Action.DELAY and not each.is_spent and each.fault.selects(seen):
                return each
        return None

    def delaying(self, seen: Seen) -> list[tuple[Injected, float]]:
        """Every delay for this frame with its drawn wait in milliseconds; they add up."""
        return [
            (each, each.random.uniform(*each.fault.delay_ms))
            for each in self._active
            if each.fault.action is Action.DELAY and not each.is_spent and each.fault.selects(seen)
        ]
