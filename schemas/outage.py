"""One outage of the broker is one line when it begins and one when it is over, whoever in a process notices it.

A process has ten clients of three libraries and a dozen places that wait for an answer. Each of them says here that it
misses the broker, or that it was answered. Over is an outage when the broker answered after the last complaint and
nobody has complained for a while since: in a cluster that lacks one of three brokers some are answered and some
complain, and that is one outage, not sixty a second; and when a broker is back, what one client asked of it in vain
fails a moment after another is answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("headrace.outage")

REPEAT_S = 300.0
"""What goes on for longer is said again: a broker that is gone for a minute is one line."""
CALM_S = 5.0
"""Answered, and without a complaint for so long: clients that are cut off try again at least once a second."""


class Outage:
    """Whether this process misses the broker. Thread-safe. `clock` gives seconds that never go back.

    >>> now_s = 0.0
    >>> outage = Outage(lambda: now_s)
    >>> outage.begins(), outage.begins()
    (True, False)
    >>> now_s = 60.0; outage.answered(); outage.ended() is None
    True
    >>> now_s = 66.0; outage.ended()
    60.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_on = False
        """From the first complaint until it is over."""
        self._clock = clock
        self._lock = threading.Lock()
        self._began_s = self._said_s = 0.0
        self._answered_s: float | None = None
        """First answer after the last complaint."""

    def begins(self) -> bool:
        """Somebody misses the broker; whether that is news, which the caller then says."""
        with self._lock:
            now_s = self._clock()
            if not self.is_on:
                self.is_on, self._began_s = True, now_s
                self._said_s = now_s - REPEAT_S
            self._answered_s = None
            is_news = now_s - self._said_s >= REPEAT_S
            if is_news:
                self._said_s = now_s
            return is_news

    def say(self, text: str, *arguments: object) -> None:
        """Somebody misses the broker: log it where that is news."""
        if self.begins():
            log.warning(f"waiting for the broker, nothing is lost: {text}", *arguments)

    def answered(self) -> None:
        """The broker answered somebody. Costs nothing while there is no outage."""
        if self.is_on and self._answered_s is None:
            self._answered_s = self._clock()

    def ended(self) -> float | None:
        """How many seconds an outage took that is over, once; None while none is."""
        if not self.is_on:
            return None
        with self._lock:
            if self._answered_s is None or self._clock() - self._answered_s < CALM_S:
                return None
            self.is_on = False
            return self._answered_s - self._began_s

    def look(self) -> None:
        """Log the end of an outage; to be called now and then."""
        seconds = self.ended()
        if seconds is not None:
            log.info("the broker answers again after %.0f s", seconds)
