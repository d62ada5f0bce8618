"""The requests topic as the decide loop reads it: batches, back-pressure, commits, and partitions that come and go.

A shell around one confluent-kafka consumer. Everything runs in the loop's thread; the client calls the rebalance
callbacks from within `read`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.broker_wait import Probe
from schemas.fault_points import reach
from schemas.outage import Outage
from schemas.telemetry import Metrics
from schemas.topics import topic
from streams.decider_settings import DeciderSettings
from streams.health import Health
from streams.membership import Membership
from streams.messages import AnyMessage, code_of, place_of
from streams.offsets import Offsets
from streams.redelivery import PATIENCE_S, Logged, Redelivery

log = logging.getLogger(__name__)

CALL_S = 2.0
"""No longer: a signal is heard only between two calls."""
REVOKE_S = 5.0
"""Answers on their way when a partition is taken away: longer would hold up the whole group."""
QUEUED_MIN = 1_000
"""Requests per partition fetched ahead: a few batches; a fetch takes a millisecond, they take a hundred."""
FETCH_BYTES_MAX = 128 << 10
"""Per partition and fetch; a larger request still comes, alone."""
STATISTICS_MS = 5_000
"""The client says so often how it stands with its coordinator."""
_LOOK_UP, _START = "look-up", "start"
_CONNECTION_EVENTS = (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)


class RequestLog:
    """One worker's share of the requests topic.

    `drain(timeout_s)` delivers what this process still has on its way and returns how many records are left.
    """

    def __init__(
        self,
        settings: DeciderSettings,
        offsets: Offsets,
        redelivery: Redelivery,
        drain: Callable[[float], int],
        metrics: Metrics,
        health: Health,
        outage: Outage,
    ) -> None:
        self._settings = settings
        self._offsets = offsets
        self._redelivery = redelivery
        self._drain = drain
        self._metrics = metrics
        self._health = health
        self._outage = outage
        self._topic = topic(settings.namespace, "requests")
        self._group = f"{settings.namespace}.decide"
        self._logged: dict[tuple[int, int], Logged] = {}
        self._stopping = threading.Event()
        self._held_back: set[int] = set()
        """Partitions that are paused. The client keeps a pause through a change of hands: one forgotten is for ever."""
        self.failure = ""
        """Why this client will never read again; "" while it may."""
        self._committed_s = time.monotonic()
        self._membership = Membership(Probe(settings))
        self._consumer = self._make_consumer()

    def _make_consumer(self) -> Consumer:
        return Consumer(
            self._settings.librdkafka(
                **{
                    "group.id": self._group,
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",  # a request sent before we started is still waited for
                    "partition.assignment.strategy": "cooperative-sticky",
                    **({"group.instance.id": self._settings.instance_id} if self._settings.instance_id else {}),
                    "session.timeout.ms": int(self._settings.session_timeout_s * 1000),
                    "heartbeat.interval.ms": int(self._settings.heartbeat_s * 1000),
                    "fetch.queue.backoff.ms": 5,  # its default of 1000 stalls a replay for a whole second
                    # What waits, waits in the log: with librdkafka's defaults (100,000 messages, 1 MiB a fetch) the
                    # flood after an outage is all in memory at once, and memory that was needed once stays ours.
                    "queued.min.messages": QUEUED_MIN,
                    "queued.max.messages.kbytes": 32 << 10,
                    "fetch.message.max.bytes": FETCH_BYTES_MAX,
                    "error_cb": self._broker_event,
                    "statistics.interval.ms": STATISTICS_MS,
                    "stats_cb": self._membership.note,
                    "on_commit": self._commit_ended,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )

    def subscribe(self) -> None:
        """Join the group."""
        self._health.wait_for(_START, "waiting for partitions")
        self._membership.lost()
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def stop(self) -> None:
        """Wait for nothing any more. Safe in a signal handler."""
        self._stopping.set()

    def read(self, timeout_s: float) -> list[AnyMessage]:
        """The next request and all that wait behind it, up to the batch's limit; [] after `timeout_s` without any."""
        self._hold_back()
        # The client cuts off what is less than a millisecond: it would be asked over and over, and answer at once.
        first = self._consumer.poll(math.ceil(timeout_s * 1e3) / 1e3)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(self._settings.decide_batch_max - 1, 0)]
        requests = [message for message in messages if self._is_request(message)]
        if requests:
            self._outage.answered()
        return requests

    def take_logged(self, partition: int, offset: int) -> Logged | None:
        """What the journal already holds for a request that is read again, once."""
        return self._logged.pop((partition, offset), None) if self._logged else None

    def is_overloaded(self, messages: list[AnyMessage]) -> bool:
        """Whether more requests wait behind these than the limit; only a full batch leaves any behind."""
        if len(messages) < self._settings.decide_batch_max:
            return False
        waiting = 0
        for partition, offset in dict(place_of(message) for message in messages).items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            waiting += max(0, high - offset - 1)
        return waiting > self._settings.decide_backlog_max

    def commit_now_and_then(self) -> None:
        """Commit what is finished, if the last time was long enough ago. Does not wait."""
        now_s = time.monotonic()
        if now_s - self._committed_s >= self._settings.decide_commit_s:
            self._committed_s = now_s
            self._commit(wait=False)

    def report(self) -> None:
        """Lag of each partition, and whether it moves, to the metrics and the health check.

        Called when all that was read has begun.
        """
        self._metrics.set("headrace_decide_in_flight", self._offsets.num_open)
        for place in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            if place.offset < 0 or high < 0:
                continue
            self._offsets.pass_over(place.partition, place.offset)
            self._metrics.set("headrace_decide_lag_records", max(0, high - place.offset), partition=place.partition)
            self._health.note(f"{self._topic}[{place.partition}]", place.offset, high)

    def renew(self) -> None:
        """Where the client will hardly ever read again, let a new one join the group. Called now and then.

        To the rest of this process that is a rebalance: what was read is decided, what is not committed is looked up.
        """
        why = self._membership.look()
        if not why or self._stopping.is_set():
            return
        log.info("%s: a new client joins the group instead of one that is %s", self._topic, why)
        self._let_go([each.partition for each in self._consumer.assignment()])
        self._membership.replaced()
        old, self._consumer = [self._consumer], self._make_consumer()
        threading.Thread(target=old.clear, name="old-client", daemon=True).start()  # its end may take a moment
        self.subscribe()

    def close(self, timeout_s: float) -> None:
        """Commit and leave the group; gives up after `timeout_s`, because without a broker both would block."""

        def leave() -> None:
            self._commit(wait=True)
            self._consumer.close()

        leaving = threading.Thread(target=leave, name="leave", daemon=True)
        leaving.start()
        leaving.join(timeout_s)

    def _is_request(self, message: AnyMessage) -> bool:
        code = code_of(message)
        if code == KafkaError._FATAL:
            self._fail(str(message.error()))
        elif code is not None and code not in _CONNECTION_EVENTS:
            log.warning("%s: %s", self._topic, message.error())
        return code is None

    def _fail(self, why: str) -> None:
        """Nothing comes any more, of whatever is sent: the process must end rather than look alive."""
        self.failure = f"the Kafka client failed for good: {why}"
        if "group.instance.id" in why:  # the client tells the cause of a fatal error in words only
            self.failure = (
                f"another worker has the name HEADRACE_INSTANCE_ID={self._settings.instance_id} and has taken our "
                "partitions: give each worker its own (once, after a broker died while this one joined: no mistake)"
            )

    def _broker_event(self, error: KafkaError) -> None:
        """The client itself tries again for ever."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._outage.say("none answers at %s", self._settings.bootstrap)

    def _hold_back(self) -> None:
        """Read no more while too much is on its way (the broker is gone). Polling goes on, or the group drops us."""
        num_open, limit = self._offsets.num_open, self._settings.decide_in_flight_max
        if num_open > limit:
            free = [each for each in self._consumer.assignment() if each.partition not in self._held_back]
            self._consumer.pause(free)
            self._held_back.update(each.partition for each in free)
        elif self._held_back and num_open < limit // 2:
            self._go_on_with(self._held_back)

    def _go_on_with(self, partitions: set[int]) -> None:
        self._consumer.resume([TopicPartition(self._topic, partition) for partition in partitions])
        self._held_back = self._held_back - partitions

    def _commit(self, *, wait: bool) -> None:
        ready = self._offsets.take()
        if not ready:
            return
        offsets = [TopicPartition(self._topic, partition, offset) for partition, offset in ready.items()]
        reach("decide.before-commit")
        try:
            if wait:
                self._commit_ended(None, self._consumer.commit(offsets=offsets, asynchronous=False))
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:  # what is never committed is read again after a restart, answered as logged
            self._commit_ended(error.args[0], offsets)

    def _commit_ended(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        """What was refused (a rebalance under way, a coordinator that moves) is committed with the next ones.

        Without that the last requests before a quiet hour would count as not done: as lag, and after a restart as work.
        """
        refused = [place for place in places if (error or place.error) is not None and place.offset >= 0]
        for place in refused:
            self._offsets.give_back(place.partition, place.offset)
        if refused and not self._outage.is_on:
            log.info("commit of %s refused: %s; tried again", self._topic, error or refused[0].error)
        elif not refused:
            self._outage.answered()

    def _assigned(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        """Look up what was answered before, then start."""
        partitions = [each.partition for each in given]
        started_s = time.monotonic()
        self._health.wait_for(_LOOK_UP, "looking up which requests were answered before")
        # A partition that we lost and have again: what we decided then must be in the journal before we look there.
        while self._drain(1.0) and not self._stopping.is_set():
            self._health.beat()
        found = self._redelivery.answered(self._committed(consumer, given), time.time_ns() // 1_000_000)
        if self._stopping.is_set():
            return  # before it is known what was answered: what comes yet is not ours to answer
        self._logged.update(found)
        self._offsets.own(partitions)
        if partitions:
            took_ms = 1e3 * (time.monotonic() - started_s)
            log.info("partitions %s: %d requests answered before, known in %.0f ms", partitions, len(found), took_ms)
        self._health.wait_for(_LOOK_UP, None)
        self._health.wait_for(_START, None)
        self._membership.joined()

    def _committed(self, consumer: Consumer, given: list[TopicPartition]) -> dict[int, int]:
        """Next offset of each partition, 0 where none was committed. Waits for a broker that is gone."""
        give_up_s = time.monotonic() + PATIENCE_S
        while not self._stopping.is_set():
            try:
                return {each.partition: max(0, each.offset) for each in consumer.committed(given, timeout=CALL_S)}
            except KafkaException as error:
                self._outage.say("committed offsets of %s: %s", self._topic, error.args[0].str())
                self._health.beat()
                self._stopping.wait(0.5)
                if time.monotonic() > give_up_s:  # this client may never be answered (decision 24)
                    consumer, give_up_s = self._asking(), time.monotonic() + PATIENCE_S
        return {}

    def _asking(self) -> Consumer:
        """A client that may ask what the group has committed, and is no member of it."""
        return Consumer(
            self._settings.librdkafka(**{"group.id": self._group, "enable.auto.commit": False}),
            logger=logging.getLogger("headrace.kafka"),
        )

    def _revoked(self, _consumer: Consumer, taken: list[TopicPartition]) -> None:
        """Finish and commit what is on its way, then let go."""
        partitions = [each.partition for each in taken]
        end_s = time.monotonic() + REVOKE_S
        self._drain(0.0)
        while not self._offsets.is_idle(partitions) and time.monotonic() < end_s and not self._stopping.is_set():
            time.sleep(0.001)
        self._commit(wait=False)  # the client gives the partitions up when it is answered; we would wait in C for that
        self._let_go(partitions)

    def _lost(self, _consumer: Consumer, taken: list[TopicPartition]) -> None:
        """Another worker may have them already: nothing of ours is committed."""
        self._let_go([each.partition for each in taken])
        self._health.wait_for(_START, "the group lost this worker, which joins it again")
        self._membership.lost()

    def _let_go(self, partitions: list[int]) -> None:
        gone = set(partitions)
        self._go_on_with(self._held_back & gone)
        self._offsets.disown(partitions)
        self._logged = {place: logged for place, logged in self._logged.items() if place[0] not in gone}
        for partition in partitions:
            self._metrics.drop("headrace_decide_lag_records", partition=partition)
            self._health.forget(f"{self._topic}[{partition}]")
