"""Whether a client that is not in its consumer group will ever get in.

A group loses a client whose broker is silent for longer than its session, and the client joins again by itself once
the broker answers, however long that takes. But one can wait for ever beside a broker that is there, while the
process around it looks alive, says nothing and serves nobody. Known of librdkafka: a client that is told, in the
moment in which a broker is back and not yet let in, that its cluster has no broker, forgets the one it knew and has
nobody left to ask (its issue 5301); others hang on their way into the group (2944, 3437). Such a client is to be
replaced by a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson

ASK_S = 10.0
"""Between two questions whether a broker is there, asked only while the client is out of the group."""
FOUND_S_MAX = 10.0
"""A client finds its coordinator within so long: it tries to connect once a second."""
FOUND_S_LONGEST = 320.0
"""For one that has been replaced again and again: then it is the coordinator that is not there."""
ADMITTED_S_MAX = 600.0
"""A group that waits for a slow member to finish what it has lets nobody in for up to 300 s (max.poll.interval.ms)."""


class Membership:
    """Of one client and its successors, out of the group at first. `clock` gives seconds that never go back.

    >>> now_s = 0.0
    >>> member = Membership(broker_answers=lambda: True, clock=lambda: now_s)
    >>> now_s = 10.0; member.look()
    ''
    >>> now_s = 20.0; member.look()
    'out of its group for 20 s, though a broker answers others'
    >>> member.joined(); member.look()
    ''
    """

    def __init__(self, broker_answers: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`broker_answers`: whether a client that is made for this question finds a broker."""
        self._broker_answers = broker_answers
        self._clock = clock
        self._found_s_max = FOUND_S_MAX
        self.has_coordinator = False
        """Whether the client said last that it is connected to its group's coordinator."""
        self.lost()

    def lost(self) -> None:
        """The client was told that the group no longer has it, or begins to join it."""
        self._out_s: float | None = self._clock()
        self._asked_s: float = self._out_s
        self._answered_s: float | None = None
        """Since when others are answered and this client has, or has not, its coordinator."""

    def joined(self) -> None:
        """The client was given its share, which may be none."""
        self._out_s = None
        self._found_s_max = FOUND_S_MAX

    def replaced(self) -> None:
        """Another client joins instead. It has twice the time: what the first one missed may be missing."""
        self._found_s_max = min(2 * self._found_s_max, FOUND_S_LONGEST)
        self.has_coordinator = False
        self.lost()

    def note(self, statistics: str) -> None:
        """What the client says of itself, every few seconds: librdkafka's JSON.

        It tells nobody that it is out of the group when it had no partitions, or when a rebalance is under way.
        """
        group = orjson.loads(statistics)["cgrp"]
        has_coordinator = group["state"] == "up"
        if has_coordinator != self.has_coordinator:
            self.has_coordinator, self._answered_s = has_coordinator, None
        if has_coordinator and group["join_state"] == "steady":
            self._out_s = None
        elif self._out_s is None:
            self.lost()

    def look(self) -> str:
        """Why this client will hardly get in, "" while it may. To be called about once a second."""
        now_s = self._clock()
        if self._out_s is None or now_s - self._asked_s < ASK_S:
            return ""
        self._asked_s = now_s
        if not self._broker_answers():
            self._answered_s = None
            return ""
        if self._answered_s is None:
            self._answered_s = now_s
        if now_s - self._answered_s < (ADMITTED_S_MAX if self.has_coordinator else self._found_s_max):
            return ""
        return f"out of its group for {now_s - self._out_s:.0f} s, though a broker answers others"
