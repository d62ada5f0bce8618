"""The decide role: a confluent-kafka loop around `streams.decide`.

Not a Faust agent: people wait for these answers, and a Faust echo takes 3 to 8 ms where this client takes 0.7. The loop
polls one request, drains what else is there, decides all of it together, and hands the effects to `streams.replies`; it
never waits for an ack. Request offsets are committed once their answers are delivered, as a contiguous run; what a
crash leaves uncommitted is read again and answered as the journal has it (`streams.redelivery`).

Exit codes: 0 after SIGTERM or SIGINT, 1 when something can never be written (start again).
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.codec import BadRecord, decode_request, encode
from schemas.records import Reason
from schemas.registry import Registry, RegistryUnavailable, open_registry
from schemas.telemetry import Metrics, MetricsServer
from schemas.topics import topic
from streams import quiet
from streams.cluster import require_topics
from streams.dead_letters import DeadLetters
from streams.decide import Asked, Decide, Decided, Situation
from streams.decider_settings import DeciderSettings
from streams.decision_blocks import blocks_of
from streams.fallback import fallback
from streams.health import Health
from streams.messages import AnyMessage, place_of
from streams.metrics import worker_metrics
from streams.offsets import Offsets
from streams.policy import Policy
from streams.redelivery import Logged, Redelivery, answer_of
from streams.rehearsal import rehearse
from streams.replies import Place, Replies
from streams.salvage import salvage
from streams.snapshots import SnapshotFollower
from streams.tasks import TaskFollower
from streams.topic_checks import require_append_time

log = logging.getLogger(__name__)

TASKS_READ_S = 60.0
SNAPSHOT_READ_S = 5.0
"""At start, wait for the newest snapshot so long; then serve the baseline until it is there."""
POLL_S = 0.1
REVOKE_S = 5.0
"""Answers on their way when a partition is taken away: longer would hold up the whole group."""
SWITCH_S = 0.0005
"""Interpreter's thread switch: with its default of 5 ms an ack could wait that long behind a batch."""
REPORT_S = 1.0


def run(settings: DeciderSettings) -> int:
    """Decide until SIGTERM or SIGINT; returns the exit code.

    Raises UserError before anything is started: no broker, a missing topic, nothing applied, no public key, a state
    folder that cannot be written, a port in use.
    """
    quiet.set_up(settings.log_level)
    logging.getLogger("headrace.kafka").addFilter(_is_news)
    names = ("requests", "decisions", "journal", "dead-letters", "snapshots", "snapshot-chunks")
    require_topics(settings, [topic(settings.namespace, name) for name in names])
    require_append_time(settings, [topic(settings.namespace, name) for name in ("requests", "journal")])
    registry = open_registry(settings.schema_registry_url)
    metrics, health = worker_metrics(), Health(settings.stall_s_max)
    with TaskFollower(settings, registry) as tasks:
        tasks.wait_ready(TASKS_READ_S)
        snapshots = SnapshotFollower(
            settings,
            registry,
            tasks.table,
            insecure_dev=settings.insecure_dev,
            on_swap=lambda policy: _note_policy(metrics, policy),
            on_refused=lambda reason: metrics.add("headrace_decide_snapshots_refused", reason=reason),
        )
        server = MetricsServer(metrics, settings.metrics_host, settings.metrics_port, health.live, health.ready).start()
        try:
            with snapshots:
                snapshots.wait_ready(SNAPSHOT_READ_S)
                log.info("decide of %s; metrics at %s:%d", settings.namespace, settings.metrics_host, server.port)
                return Decider(settings, registry, tasks, snapshots, metrics, health).run()
        finally:
            server.close()


def _is_news(record: logging.LogRecord) -> bool:
    """False for what librdkafka says about each connection of each client: `Decider` says it once for all."""
    return not record.getMessage().startswith("FAIL")


def _place(message: AnyMessage, payload: bytes) -> Place:
    """Where a request stood, and in which format it came."""
    return Place(*place_of(message), message.timestamp()[1], payload[:1] == b"{")


def _note_policy(metrics: Metrics, policy: Policy) -> None:
    metrics.add("headrace_decide_snapshots_taken")
    metrics.set("headrace_decide_snapshot_version", policy.version)
    metrics.set("headrace_decide_snapshot_cut_ms", policy.cut_ms)


class Decider:
    """One worker's loop. Everything here runs in the main thread."""

    def __init__(
        self,
        settings: DeciderSettings,
        registry: Registry,
        tasks: TaskFollower,
        snapshots: SnapshotFollower,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._tasks = tasks
        self._snapshots = snapshots
        self._metrics = metrics
        self._health = health
        self._requests = topic(settings.namespace, "requests")
        namespace = tasks.namespace
        self._draw_key = bytes.fromhex(namespace.draw_key)
        self._decide = Decide(namespace, tasks.table, lambda block: len(encode(block, registry)))
        self._offsets = Offsets()
        self._redelivery = Redelivery(settings, registry, tasks.table, namespace.partitions)
        self._logged: dict[tuple[int, int], Logged] = {}
        self._replies = Replies(
            settings,
            registry,
            namespace.partitions,
            self._offsets,
            lambda output: DeadLetters(settings.namespace, registry, output, metrics),
            lambda seconds: metrics.observe("headrace_decide_latency_seconds", seconds),
        )
        self._consumer = self._make_consumer()
        self._stopping = threading.Event()
        self._paused = False
        self._is_cut_off = False
        self._committed_s = self._reported_s = time.monotonic()
        self._counts: Counter[tuple[str, str]] = Counter()

    def run(self) -> int:
        """The loop, from the first assignment to the last commit."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        sys.setswitchinterval(SWITCH_S)
        rehearse(self._decide, self._tasks, self._registry)
        gc.collect()
        gc.freeze()
        self._health.wait_for("start", "waiting for partitions")
        self._consumer.subscribe(
            [self._requests], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        try:
            while not self._stopping.is_set() and self._replies.failure is None:
                self._step()
        finally:
            code = self._finish()
            for number, handler in before.items():
                signal.signal(number, handler)
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()

    def _make_consumer(self) -> Consumer:
        return Consumer(
            self._settings.librdkafka(
                **{
                    "group.id": f"{self._settings.namespace}.decide",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",  # a request sent before we started is still waited for
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": int(self._settings.session_timeout_s * 1000),
                    "heartbeat.interval.ms": int(self._settings.heartbeat_s * 1000),
                    "fetch.queue.backoff.ms": 5,  # its default of 1000 stalls a replay for a whole second
                    "queued.max.messages.kbytes": 32 << 10,
                    "reconnect.backoff.max.ms": 1000,
                    "error_cb": self._broker_event,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )

    def _broker_event(self, error: KafkaError) -> None:
        """Say once that the broker is gone; the client itself tries again for ever."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._is_cut_off:
            self._is_cut_off = True
            log.warning("no broker of %s answers: waiting, nothing is lost", self._settings.bootstrap)

    def _step(self) -> None:
        """One micro-batch, or a moment's wait; then what has to be done now and then."""
        self._hold_back()
        first = self._consumer.poll(POLL_S)
        if first is not None:
            if self._is_cut_off:
                self._is_cut_off = False
                log.info("the broker answers again")
            messages = [first, *self._consumer.consume(self._settings.decide_batch_max - 1, 0)]
            self._serve([message for message in messages if self._is_request(message)])
        self._health.beat()
        now_s = time.monotonic()
        if now_s - self._committed_s >= self._settings.decide_commit_s:
            self._committed_s = now_s
            self._commit(asynchronous=True)
        if now_s - self._reported_s >= REPORT_S:
            self._reported_s = now_s
            self._report()

    def _hold_back(self) -> None:
        """Read no more while too much is on its way (the broker is gone). Polling goes on, or the group drops us."""
        too_many = self._offsets.num_open > self._settings.decide_in_flight_max
        if too_many and not self._paused:
            self._consumer.pause(self._consumer.assignment())
            self._paused = True
        elif self._paused and self._offsets.num_open < self._settings.decide_in_flight_max // 2:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False

    def _is_request(self, message: AnyMessage) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.code() not in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            log.warning("%s: %s", self._requests, error.str())
        return False

    def _serve(self, messages: list[AnyMessage]) -> None:
        """Decide and answer a micro-batch."""
        started_s = time.perf_counter()
        batch: list[Asked] = []
        places: list[Place] = []
        for message in messages:
            payload = message.value() or b""
            place = _place(message, payload)
            self._offsets.begin(place.partition, place.offset)
            if self._logged and self._answered_before(place):
                continue
            asked = self._readable(place, payload)
            if asked is not None:
                batch.append(asked)
                places.append(place)
        if batch:
            situation = Situation(
                now_ms=time.time_ns() // 1_000_000,
                policy=self._snapshots.policy,
                snapshot_refused=self._snapshots.refused,
                overloaded=len(messages) == self._settings.decide_batch_max and self._is_overloaded(messages),
            )
            self._answer(batch, places, situation)
        self._metrics.observe("headrace_decide_batch_seconds", time.perf_counter() - started_s)

    def _readable(self, place: Place, payload: bytes) -> Asked | None:
        """The request, or None after a dead letter and as much of an answer as can be given."""
        try:
            return Asked(decode_request(payload, self._registry), place.partition, place.offset, place.append_time_ms)
        except RegistryUnavailable as error:
            self._refuse(place, payload, "unknown-schema", str(error))
        except BadRecord as error:
            self._refuse(place, payload, error.reason, error.detail)
        return None

    def _refuse(self, place: Place, payload: bytes, code: str, detail: str) -> None:
        request = salvage(payload, self._registry)
        decision = None
        if request is not None:
            task = self._tasks.table.named(request.task)
            reason = Reason.UNKNOWN_TASK if task is None else Reason.INVALID
            decision = fallback(request, task, reason, self._draw_key, time.time_ns() // 1_000_000)
            self._counts[(request.task if task else "", reason.label)] += 1
        self._replies.refused(place, decision, payload, code, detail)

    def _answer(self, batch: list[Asked], places: list[Place], situation: Situation) -> None:
        """Decide the batch. If our own code fails on it, each request is tried alone, so that one harms only itself."""
        try:
            decided = self._decide.batch(batch, situation)
        except Exception as error:
            if len(batch) > 1:
                for asked, place in zip(batch, places, strict=True):
                    self._answer([asked], [place], situation)
                return
            log.exception("%s[%d] offset %d: our own mistake", self._requests, places[0].partition, places[0].offset)
            self._metrics.add("headrace_decide_internal_errors")
            request, task = batch[0].request, self._tasks.table.named(batch[0].request.task)
            decision = fallback(request, task, Reason.INVALID, self._draw_key, situation.now_ms)
            self._counts[(request.task if task else "", decision.reason)] += 1
            self._replies.refused(places[0], decision, None, "internal-error", f"{type(error).__name__}: {error}"[:500])
            return
        self._reply(decided, places)

    def _reply(self, decided: Decided, places: list[Place]) -> None:
        for group in decided.groups:
            immediate = group.task.reply == "immediate"
            for partition, rows, block in blocks_of(
                group.task, group.version, group.rows, group.columns, self._requests
            ):
                asked = [places[group.rows[row].index] for row in rows]
                decisions = group.decisions[rows.start : rows.stop]
                self._replies.journaled(partition, block, decisions, asked, immediate)
            self._counts.update((group.task.name, decision.reason) for decision in group.decisions)
        for answer in decided.unjournaled:
            place, refusal = places[answer.index], answer.refusal
            known = refusal.reason is not Reason.UNKNOWN_TASK  # a shop's typing errors must not become label values
            self._counts[(answer.decision.task if known else "", answer.decision.reason)] += 1
            if refusal.code:
                self._replies.refused(place, answer.decision, None, refusal.code, refusal.detail)
            else:
                self._replies.unjournaled(place, answer.decision)

    def _answered_before(self, place: Place) -> bool:
        """Answer a redelivered request as the journal has it."""
        logged = self._logged.pop((place.partition, place.offset), None)
        decision = None if logged is None else answer_of(logged, self._tasks.table, time.time_ns() // 1_000_000)
        if decision is None:
            return False
        self._metrics.add("headrace_decide_redelivered")
        self._replies.unjournaled(place, decision)
        return True

    def _is_overloaded(self, messages: list[AnyMessage]) -> bool:
        """Whether more requests wait in our partitions than the limit. Asked only when a whole batch came at once."""
        newest = dict(place_of(message) for message in messages)
        waiting = 0
        for partition, offset in newest.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._requests, partition), cached=True)
            waiting += max(0, high - offset - 1)
        return waiting > self._settings.decide_backlog_max

    def _commit(self, *, asynchronous: bool) -> None:
        ready = self._offsets.take()
        if not ready:
            return
        offsets = [TopicPartition(self._requests, partition, offset) for partition, offset in ready.items()]
        try:
            if asynchronous:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # read again after a restart and answered as logged
            log.warning("commit of %s: %s", self._requests, error.args[0].str())

    def _assigned(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        """Look up what was answered before, then start."""
        partitions = [each.partition for each in given]
        started_s = time.monotonic()
        committed = self._committed(consumer, given)
        found = self._redelivery.answered(committed, time.time_ns() // 1_000_000)
        self._logged.update(found)
        self._offsets.own(partitions)
        self._paused = False
        if partitions:
            log.info(
                "partitions %s: %d requests were answered before, looked up in %.0f ms",
                partitions,
                len(found),
                1e3 * (time.monotonic() - started_s),
            )
        self._health.wait_for("start", None)

    def _committed(self, consumer: Consumer, given: list[TopicPartition]) -> dict[int, int]:
        """Next offset of each partition, 0 where none was committed. Waits for a broker that is gone."""
        while not self._stopping.is_set():
            try:
                return {each.partition: max(0, each.offset) for each in consumer.committed(given, timeout=5.0)}
            except KafkaException as error:
                log.warning("committed offsets: %s; waiting for the broker", error.args[0].str())
                time.sleep(0.5)
        return {}

    def _revoked(self, _consumer: Consumer, taken: list[TopicPartition]) -> None:
        """Finish and commit what is on its way, then let go."""
        partitions = [each.partition for each in taken]
        end_s = time.monotonic() + REVOKE_S
        while not self._offsets.is_idle(partitions) and time.monotonic() < end_s and self._replies.failure is None:
            time.sleep(0.001)
        self._commit(asynchronous=False)
        self._let_go(partitions)

    def _lost(self, _consumer: Consumer, taken: list[TopicPartition]) -> None:
        """Another worker has them already: nothing of ours may be committed."""
        self._let_go([each.partition for each in taken])

    def _let_go(self, partitions: list[int]) -> None:
        gone = set(partitions)
        self._offsets.disown(partitions)
        self._logged = {place: logged for place, logged in self._logged.items() if place[0] not in gone}
        for partition in partitions:
            self._metrics.drop("headrace_decide_lag_records", partition=partition)
            self._health.forget(f"{self._requests}[{partition}]")

    def _report(self) -> None:
        """Counters of the last second, lag of each partition."""
        for (task, reason), count in self._counts.items():
            self._metrics.add("headrace_decide_decisions", count, task=task, reason=reason)
        self._counts.clear()
        self._metrics.set("headrace_decide_in_flight", self._offsets.num_open)
        for place in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            if place.offset < 0 or high < 0:
                continue
            self._metrics.set("headrace_decide_lag_records", max(0, high - place.offset), partition=place.partition)
            self._health.note(f"{self._requests}[{place.partition}]", place.offset, high)

    def _finish(self) -> int:
        """Deliver, commit, leave. Returns the exit code."""
        end_s = time.monotonic() + self._settings.stop_s_max
        failure = self._replies.failure
        if failure is None:
            left_s = max(0.5, self._settings.stop_s_max - 2.0)
            left = self._replies.flush(left_s)
            if left:
                log.warning("%d records were not delivered within %.1f s; their requests are read again", left, left_s)
        self._commit_last()
        self._report_last()
        closing: Any = threading.Thread(target=self._consumer.close, name="close", daemon=True)
        closing.start()
        closing.join(max(0.2, end_s - time.monotonic()))
        self._replies.close(0.2)
        return 0 if failure is None else 1

    def _commit_last(self) -> None:
        """Commit in a thread of its own: without a broker it would block for longer than we may take."""
        last: Any = threading.Thread(target=self._commit, kwargs={"asynchronous": False}, name="commit", daemon=True)
        last.start()
        last.join(1.0)

    def _report_last(self) -> None:
        for (task, reason), count in self._counts.items():
            self._metrics.add("headrace_decide_decisions", count, task=task, reason=reason)
        self._counts.clear()
