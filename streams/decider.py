"""The decide role: a confluent-kafka loop around `streams.decide`.

Not a Faust agent: people wait for these answers, and a Faust echo takes 3 to 8 ms where this client takes 0.7. The loop
polls one request, drains what else is there, decides all of it together, and hands the effects to `streams.replies`; it
never waits for an ack. Request offsets are committed once their answers are delivered, as a contiguous run; what a
crash leaves uncommitted is read again and answered as the journal has it (`streams.redelivery`).

Exit codes: 0 after SIGTERM or SIGINT, 1 when something can never be written or read (start again).
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

from schemas import early_stop
from schemas.codec import BadRecord, decode_request, encode
from schemas.frozen import frozen
from schemas.last_resort import LastResort
from schemas.outage import Outage
from schemas.records import Decision, Reason
from schemas.registry import Registry, RegistryUnavailable, open_for_service
from schemas.telemetry import Metrics, MetricsServer
from schemas.topics import topic
from streams import quiet, spare_memory
from streams.cluster import require_topics
from streams.dead_letters import DeadLetters
from streams.decide import Asked, Decide, Decided, Situation
from streams.decider_settings import DeciderSettings
from streams.decision_blocks import parts_of
from streams.fallback import fallback
from streams.health import Health
from streams.messages import AnyMessage, place_of
from streams.metrics import worker_metrics
from streams.offsets import Offsets
from streams.policy import Policy
from streams.redelivery import Redelivery, answer_of
from streams.rehearsal import rehearse
from streams.replies import Place, Replies
from streams.request_log import RequestLog
from streams.salvage import salvage
from streams.snapshots import SnapshotFollower
from streams.tasks import TaskFollower
from streams.topic_checks import require_append_time, require_same_partitions

log = logging.getLogger(__name__)

TASKS_READ_S = 15.0
SNAPSHOT_READ_S = 5.0
"""At start, wait for the newest snapshot so long; then serve the baseline until it is there."""
SWITCH_S = 0.0005
"""Interpreter's thread switch: with its default of 5 ms an ack could wait that long behind a batch."""
YOUNG_OBJECTS_MAX = 50_000
"""Allocations between two runs of the garbage collector: our objects have no cycles, its runs only cost latency."""
POLL_S = 0.1
"""Longest wait for a request: a signal is heard in between, and offsets are committed."""
REPORT_S = 1.0
LEAVE_S = 2.0
"""Of the time to stop, kept for the last commit and for leaving the group."""


def run(settings: DeciderSettings) -> int:
    """Decide until SIGTERM or SIGINT; returns the exit code.

    Raises UserError before anything is started: no broker, a topic that is missing or not as it must be, no schema
    registry, nothing applied, no public key, a state folder that cannot be written, a port in use.
    """
    outage = quiet.set_up(settings.log_level)
    spare_memory.give_back_from_now_on()
    logging.getLogger("headrace.kafka").addFilter(_is_news)
    names = ("requests", "decisions", "journal", "dead-letters", "snapshots", "snapshot-chunks")
    require_topics(settings, [topic(settings.namespace, name) for name in names])
    require_append_time(settings, [topic(settings.namespace, name) for name in ("requests", "journal")])
    registry = open_for_service(settings.schema_registry_url)
    metrics, health = worker_metrics(), Health(settings.stall_s_max)
    with TaskFollower(settings, registry) as tasks:
        tasks.wait_ready(TASKS_READ_S)
        require_same_partitions(settings, [topic(settings.namespace, "decisions")], tasks.namespace.partitions)
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
                return Decider(settings, registry, tasks, snapshots, metrics, health, outage).run()
        finally:
            server.close()


def _is_news(record: logging.LogRecord) -> bool:
    """False for what librdkafka says about each connection of each client: `RequestLog` says it once for all."""
    return not record.getMessage().startswith("FAIL")


def _note_policy(metrics: Metrics, policy: Policy) -> None:
    metrics.add("headrace_decide_snapshots_taken")
    metrics.set("headrace_decide_snapshot_version", policy.version)
    metrics.set("headrace_decide_snapshot_cut_ms", policy.cut_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@frozen
class Arrival:
    """A request as it came; gone when its batch is decided, because payloads may be large."""

    place: Place
    payload: bytes


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
        outage: Outage,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._tasks = tasks
        self._snapshots = snapshots
        self._metrics = metrics
        self._health = health
        self._outage = outage
        self._topic = topic(settings.namespace, "requests")
        self._stopping = threading.Event()
        self._last_resort = LastResort(settings.stop_s_max)
        namespace = tasks.namespace
        self._draw_key = bytes.fromhex(namespace.draw_key)
        self._decide = Decide(namespace, tasks.table, lambda block: len(encode(block, registry)))
        self._offsets = Offsets()
        self._replies = Replies(
            settings,
            registry,
            namespace.partitions,
            self._offsets,
            lambda output: DeadLetters(settings.namespace, registry, output, metrics),
            lambda seconds: metrics.observe("headrace_decide_latency_seconds", seconds),
        )
        redelivery = Redelivery(
            settings, registry, tasks.table, namespace.partitions, self._stopping, health.beat, outage
        )
        self._requests = RequestLog(settings, self._offsets, redelivery, self._replies.flush, metrics, health, outage)
        self._reported_s = time.monotonic()
        self._counts: Counter[tuple[str, str]] = Counter()

    def run(self) -> int:
        """The loop, from the first assignment to the last commit."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        self._last_resort.hear()
        sys.setswitchinterval(SWITCH_S)
        with early_stop.ending_at_once():
            rehearse(self._decide, self._tasks, self._registry, self._snapshots.policy)
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS_MAX)
        self._requests.subscribe()
        try:
            self._answer_requests()
        finally:
            code = self._finish()
            for number, handler in before.items():
                signal.signal(number, handler)
        return code

    def _answer_requests(self) -> None:
        """Until told to stop, or until nothing can be written or read any more."""
        while not (self._stopping.is_set() or self._replies.failure or self._requests.failure):
            messages = self._requests.read(self._replies.wait_s(POLL_S))
            if self._stopping.is_set():
                return  # what was read has not begun: `report` would pass over it, and the last commit lose it
            if messages:
                self._serve(messages)
            self._replies.write_due()
            self._health.beat()
            self._requests.commit_now_and_then()
            self._report_now_and_then()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._last_resort.arm()
        self._stopping.set()
        self._requests.stop()

    def _serve(self, messages: list[AnyMessage]) -> None:
        """Decide and answer a micro-batch."""
        started_s = time.perf_counter()
        batch: list[Asked] = []
        arrivals: list[Arrival] = []
        for message in messages:
            payload = message.value() or b""
            partition, offset = place_of(message)
            place = Place(partition, offset, message.timestamp()[1], payload[:1] == b"{")
            self._offsets.begin(partition, offset)
            if self._answered_before(place):
                continue
            arrival = Arrival(place, payload)
            asked = self._readable(arrival)
            if asked is not None:
                batch.append(asked)
                arrivals.append(arrival)
        if batch:
            situation = Situation(
                now_ms=_now_ms(),
                policy=self._snapshots.policy,
                snapshot_refused=self._snapshots.refused,
                overloaded=self._requests.is_overloaded(messages),
            )
            self._answer(batch, arrivals, situation)
        self._metrics.observe("headrace_decide_batch_seconds", time.perf_counter() - started_s)

    def _readable(self, arrival: Arrival) -> Asked | None:
        """The request, or None after a dead letter and as much of an answer as can be given."""
        try:
            request = decode_request(arrival.payload, self._registry)
        except RegistryUnavailable as error:  # waiting would let anybody stop a partition with an id that nobody has
            self._refuse(arrival, "unknown-schema", str(error))
        except BadRecord as error:
            self._refuse(arrival, error.reason, error.detail)
        else:
            place = arrival.place
            return Asked(request, place.partition, place.offset, place.append_time_ms)
        return None

    def _refuse(self, arrival: Arrival, code: str, detail: str) -> None:
        request = salvage(arrival.payload, self._registry)
        decision = None
        if request is not None:
            task = self._tasks.table.named(request.task)
            reason = Reason.UNKNOWN_TASK if task is None else Reason.INVALID
            decision = fallback(request, task, reason, self._draw_key, _now_ms())
            self._count(decision)
        self._replies.refused(arrival.place, decision, arrival.payload, code, detail)

    def _answer(self, batch: list[Asked], arrivals: list[Arrival], situation: Situation) -> None:
        """Decide the batch. If our own code fails on it, each request is tried alone, so that one harms only itself."""
        try:
            decided = self._decide.batch(batch, situation)
        except Exception as error:
            if len(batch) > 1:
                for asked, arrival in zip(batch, arrivals, strict=True):
                    self._answer([asked], [arrival], situation)
            else:
                self._failed_on(batch[0], arrivals[0], error)
            return
        self._reply(decided, arrivals)

    def _failed_on(self, asked: Asked, arrival: Arrival, error: Exception) -> None:
        """Our own mistake: the shop is answered all the same, and the next request is served."""
        place = arrival.place
        log.exception("%s[%d] offset %d cannot be decided: our own mistake", self._topic, place.partition, place.offset)
        self._metrics.add("headrace_decide_internal_errors")
        task = self._tasks.table.named(asked.request.task)
        decision = fallback(asked.request, task, Reason.INVALID, self._draw_key, _now_ms())
        self._count(decision)
        detail = f"{type(error).__name__}: {error}"[:500]
        self._replies.refused(place, decision, arrival.payload, "internal-error", detail)

    def _reply(self, decided: Decided, arrivals: list[Arrival]) -> None:
        for group in decided.groups:
            send = self._replies.immediate if group.task.reply == "immediate" else self._replies.journaled
            for rows, part in parts_of(group.task, group.version, group.rows, group.columns, self._topic):
                places = [arrivals[row.index].place for row in part.rows]
                send(part, group.decisions[rows.start : rows.stop], places)
            for decision in group.decisions:
                self._count(decision)
        for answer in decided.unjournaled:
            arrival, refusal = arrivals[answer.index], answer.refusal
            self._count(answer.decision)
            if refusal.code:
                self._replies.refused(arrival.place, answer.decision, arrival.payload, refusal.code, refusal.detail)
            else:
                self._replies.unjournaled(arrival.place, answer.decision)

    def _answered_before(self, place: Place) -> bool:
        """Answer a redelivered request as the journal has it."""
        logged = self._requests.take_logged(place.partition, place.offset)
        decision = None if logged is None else answer_of(logged, self._tasks.table, _now_ms())
        if decision is None:
            return False
        self._metrics.add("headrace_decide_redelivered")
        self._replies.unjournaled(place, decision)
        return True

    def _count(self, decision: Decision) -> None:
        """By task and reason; a shop's typing errors must not become label values."""
        known = decision.reason != Reason.UNKNOWN_TASK.label
        self._counts[(decision.task if known else "", decision.reason)] += 1

    def _report_now_and_then(self) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_S:
            self._reported_s = now_s
            self._report_counts()
            self._tell_of_snapshots()
            self._requests.report()
            self._requests.renew()
            self._outage.look()
            policy = self._snapshots.policy
            if policy is not None:
                self._metrics.set("headrace_decide_snapshot_age_seconds", time.time() - policy.cut_ms / 1e3)

    def _tell_of_snapshots(self) -> None:
        """Every decider refuses the same messages of the model topic; the owner of the first partition tells."""
        untold = self._snapshots.untold
        while untold and self._offsets.owns(0):
            self._replies.tell(untold.popleft())

    def _report_counts(self) -> None:
        for (task, reason), count in self._counts.items():
            self._metrics.add("headrace_decide_decisions", count, task=task, reason=reason)
        self._counts.clear()

    def _finish(self) -> int:
        """Deliver, commit, leave. Returns the exit code."""
        end_s = time.monotonic() + self._settings.stop_s_max
        self._requests.stop()
        left = self._replies.flush(max(0.5, self._settings.stop_s_max - LEAVE_S))
        if left:
            log.warning("%d records were not delivered in time; their requests are read again", left)
        self._report_counts()
        self._requests.close(max(0.2, end_s - time.monotonic() - 0.5))
        self._replies.close(0.2)
        if self._requests.failure:
            log.error("ending with code 1: %s", self._requests.failure)
        return 1 if self._replies.failure or self._requests.failure else 0
