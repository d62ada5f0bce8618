"""Faust's thread around an aiokafka consumer: how it asks the broker, and what it does not wait for.

Knows nothing of batches: what is delivered and committed is for `streams.transport`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from schemas.outage import Outage
from streams import group_errors

ANSWER_S = 2.0
"""A commit or a farewell that the broker has not answered by then is given up: a third of the shortest session."""
ISOLATION = "read_committed"
"""As every other Kafka client of ours: a shop may write its topics in transactions, and take some of it back."""
FETCH_BYTES_MIN, FETCH_WAIT_MS = 64 << 10, 50
"""A fetch is answered when so much is there, or after so long: a batch costs a tenth of a millisecond and more however
few records it has, and at 300 requests a second nearly each would be one. Faust waits for one byte, or 1.5 s; and a
partition that is new or sought waits as long for the fetch before."""
log = logging.getLogger("headrace.transport")


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread around an aiokafka consumer, which waits for no answer for longer than `ANSWER_S`."""

    _committing: asyncio.Future[Any] | None = None
    """The commit under way."""
    _is_unanswered = False
    """It got no answer in time."""
    positions: Mapping[TP, int] = MappingProxyType({})
    """Where the last fetch left the partitions that it was for: first offset behind its records and what holds none."""

    @property
    def _outage(self) -> Outage:
        app: Any = self.app
        outage: Outage = app.outage
        return outage

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Faust's, asking for so much at once that what comes one by one is handled by the dozen.

        Faust reads `ISOLATION` only where it writes in transactions itself.
        """
        consumer: Any = super()._create_consumer(loop)
        consumer._isolation_level = ISOLATION
        consumer._fetch_min_bytes, consumer._fetch_max_wait_ms = FETCH_BYTES_MIN, FETCH_WAIT_MS
        return consumer

    async def _fetch_records(self, consumer: Any, active_partitions: set[TP], *limits: Any, **named: Any) -> Any:
        fetched = await super()._fetch_records(consumer, active_partitions, *limits, **named)
        if fetched:
            self._outage.answered()
        # At once: later on the fetcher may have gone on behind records that retention took, which is no hole to hide.
        states = {tp: self.partition_state(tp) for tp in active_partitions or ()}
        self.positions = {tp: int(each.position) for tp, each in states.items() if each and each.has_valid_position}
        return fetched

    def partition_state(self, tp: TP) -> Any:
        """What aiokafka knows of a partition; None when it is not assigned."""
        consumer: Any = self._ensure_consumer()
        subscribed = consumer._subscription.subscription
        assigned = subscribed.assignment if subscribed is not None else None
        return assigned.state_value(tp) if assigned is not None else None

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, or give up waiting for the answer; never two at once.

        A commit without an answer stays under way and the next one waits for it first: aiokafka goes on with one that
        is cancelled, and each of those would fail by itself, loudly, when the broker is back.
        """
        if self._is_unanswered and self.app.should_stop:
            return False  # the end of the process waits for one such commit, not for one after the other
        give_up_s = time.monotonic() + ANSWER_S
        while True:
            is_ours = self._committing is None
            committing = self._committing = self._committing or asyncio.ensure_future(super()._commit(offsets))
            await asyncio.wait({committing}, timeout=max(0.0, give_up_s - time.monotonic()))
            if not committing.done():
                self._outage.say("commits of %s are not answered within %g s", self.app.conf.id, ANSWER_S)
                self._is_unanswered = True
                return False
            self._committing, self._is_unanswered = None, False
            did_commit = not committing.cancelled() and bool(committing.result())
            if did_commit:
                self._outage.answered()
            if is_ours or committing.cancelled():
                return did_commit

    @Service.task
    async def _look_after_the_group(self) -> None:
        while not self.should_stop:
            await self.sleep(group_errors.LOOK_S)
            coordinator = getattr(self._consumer, "_coordinator", None)
            if coordinator is not None:
                group_errors.take_error(coordinator)

    async def on_thread_stop(self) -> None:
        """Leave the group if it lets us; it notices by itself otherwise, when the session is over."""
        if self._committing is not None:
            self._committing.cancel()
        try:
            await asyncio.wait_for(super().on_thread_stop(), ANSWER_S)
        except TimeoutError:
            log.info("leaving %s was not answered within %g s", self.app.conf.id, ANSWER_S)
