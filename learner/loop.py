"""Loop: the learner's process, from start to SIGTERM. Reads, learns, cuts, hands over, checkpoints; decides nothing.

Start: the folder is locked, the topics are checked, the newest good checkpoint is restored (or a new history begins),
and what has been published already is looked up. Then the loop: read what is there, offer it to the merge, let the
namespace's learner advance, submit snapshots, now and then a checkpoint. Log time alone decides results; the wall
clock decides only how often a checkpoint is written and which snapshots of a catch-up are uploaded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner import environment, metrics
from learner.alarms import Alarms
from learner.checkpoint import CheckpointWriter, open_folder
from learner.consume import Received, TransitionsReader, require_topics
from learner.definitions import Definitions
from learner.measure import TaskGauges
from learner.merge import Alarm
from learner.namespace import RowLearner, UnknownTask
from learner.publish import Publisher
from learner.restore import Restored, restore, to_checkpoint
from learner.settings import LearnerSettings
from learner.uploads import Uploads
from learner.watch import ManifestWatch
from schemas import early_stop
from schemas.blocks import TransitionBlock
from schemas.codec import BadRecord, decode
from schemas.collector import uncollected
from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.outage import Outage
from schemas.records import Progress
from schemas.registry import open_for_service
from schemas.signing_keys import load_private_key
from schemas.task import Namespace, Task
from schemas.telemetry import MetricsServer
from schemas.topics import topic
from schemas.undecoded import Undecoded

log = logging.getLogger(__name__)

TOPICS = ("tasks", "transitions", "snapshots", "snapshot-chunks")
READ_S = 0.05
"""Longest wait for a record; SIGTERM is seen after it."""
HOUSEKEEPING_S = 0.25
START_S_MAX = 15.0
BEHIND_RECORDS = 64
"""The slowest partition has more than these unread: catch-up, and only the newest snapshot is worth an upload."""
FLUSH_S = 1.5
"""SIGTERM: what is not uploaded by then is in the checkpoint and goes up after the restart."""
STUCK_S = 120.0


class Loop:
    """One learner process. `run` returns when `stop` is set."""

    def __init__(self, settings: LearnerSettings, stop: threading.Event) -> None:
        self._settings, self._stop = settings, stop
        self.metrics = metrics.make()
        self._beat = time.monotonic()
        self._outage = Outage()
        self._blocked: bytes | None = None
        transitions = topic(settings.namespace, "transitions")
        self._alarms = Alarms(transitions, self.metrics)
        self._records = Undecoded(transitions, self._offer)
        self._dirty = False
        self._writer = CheckpointWriter(
            settings.checkpoints,
            settings.checkpoints_kept,
            settings.anchors_kept,
            settings.checkpoint_s,
            settings.checkpoint_cuts,
            lambda seconds: self.metrics.observe("headrace_learner_checkpoint_seconds", seconds),
        )

    def run(self, make: Callable[[Task], RowLearner] | None = None) -> int:
        """Learn until stopped; returns the exit code. `make` builds a task's learner (the tests have their own).

        Raises UserError for what only the user can put right.
        """
        settings = self._settings
        lock = open_folder(settings.checkpoints)
        try:
            key = signing_key(settings)
            self._registry = open_for_service(settings.schema_registry_url)
            topics = require_topics(settings, [topic(settings.namespace, name) for name in TOPICS], self._stop)
            if not topics or self._stop.is_set():
                return 0
            identity = topics[topic(settings.namespace, "transitions")]
            with uncollected(), early_stop.ending_at_once():
                device = environment.configure(settings.threads, settings.device)  # loads torch: after what fails fast
                if make is None:
                    self._warm_up(device)
            self._definitions = Definitions(settings, self._registry)
            self._definitions.read_to_end(START_S_MAX)
            namespace = self._wait_for_namespace()
            if namespace is None:
                return 0
            self._check_partitions(namespace, identity.num_partitions)
            self._topic_id = identity.topic_id
            described = environment.describe(settings.threads, device)
            restored = restore(
                settings,
                self._registry,
                self._definitions,
                namespace,
                identity,
                described,
                key.public_key(),
                make or _make(device),
            )
            self._begin(restored, key)
            return self._serve()
        finally:
            self._writer.close()
            os.close(lock)

    def _warm_up(self, device: str) -> None:
        from learner.warm_up import warm_up  # loads the experts, hence torch

        warm_up(self._registry, device)

    def _wait_for_namespace(self) -> Namespace | None:
        """The applied namespace; waits for the first apply. None when stopped meanwhile."""
        told = False
        while self._definitions.namespace is None:
            if self._stop.is_set():
                return None
            if not told:
                log.warning("nothing is applied yet; waiting for `headrace apply headrace.toml`")
                told = True
            self._definitions.poll(0.2)
        return self._definitions.namespace

    def _check_partitions(self, namespace: Namespace, found: int) -> None:
        if found != namespace.partitions:
            raise UserError(
                f"topic {topic(self._settings.namespace, 'transitions')} has {found} partitions, the first apply wrote "
                f"{namespace.partitions}",
                "use a new namespace for another number of partitions, and drain this one",
            )

    def _begin(self, restored: Restored, key: Ed25519PrivateKey) -> None:
        settings = self._settings
        self._merge, self._learner = restored.merge, restored.learner
        self._task_gauges = TaskGauges(self.metrics, self._definitions.find)
        self._reader = TransitionsReader(settings, self._merge.positions(), self._outage)
        self._watch = ManifestWatch(
            settings, self._registry, settings.channel, key.public_key(), restored.published.next_offset
        )
        self._publisher = Publisher(
            settings, self._registry, key, self.metrics, settings.reupload_s, self._outage
        ).start()
        self._uploads = Uploads(self._publisher, restored.published, self.metrics)
        self._writer.started_at(self._learner.cut.number)
        if restored.has_broken:  # until this is on disk no replay could begin in the new lineage
            self._dirty = True
            self._checkpoint(wait=True)
        if self._learner.last is not None:
            self._uploads.offer(self._learner.last, is_behind=False)
        log.info(
            "learning from %s at cut %d, version %d published",
            topic(self._settings.namespace, "transitions"),
            self._learner.cut.number,
            restored.published.version,
        )

    def _serve(self) -> int:
        server = MetricsServer(
            self.metrics, self._settings.metrics_host, self._settings.metrics_port, self._live, self._ready
        ).start()
        log.info("metrics on http://%s:%d/metrics", self._settings.metrics_host, server.port)
        try:
            while not self._stop.is_set():
                self._turn()
            self._publisher.flush(FLUSH_S)
            self._checkpoint(wait=True)
            return 0
        finally:
            self._publisher.close()
            self._reader.close()
            self._watch.close()
            self._definitions.close()
            server.close()

    def _turn(self) -> None:
        """One round of the loop."""
        if self._records:  # they wait for the schema registry; meanwhile nothing more is read
            self._stop.wait(READ_S)
        messages = [] if self._records else self._reader.read(READ_S)
        started = time.monotonic()
        num_taken = self._records.offer(messages)
        self._hold_back()
        if num_taken or self._blocked is not None:
            reach("learner.before-step")
            self._advance()
            self.metrics.observe("headrace_learner_step_seconds", time.monotonic() - started)
        if not self._is_behind():
            self._uploads.settle()
        self._look_at_manifests()
        if started - self._beat > HOUSEKEEPING_S:
            self._beat = started
            self._keep_house()

    def _offer(self, received: Received) -> None:
        """Hand one record to the merge. Raises RegistryUnavailable while its schema cannot be fetched."""
        payload, partition, offset = received.payload, received.partition, received.offset
        record: TransitionBlock | Progress | None = None
        alarm: Alarm | None = None
        try:
            record = decode(payload, self._registry, expect=(TransitionBlock, Progress))
        except BadRecord as error:
            alarm = Alarm("malformed", partition, offset, f"{error.reason}: {error.detail}")
        alarm = self._merge.offer(partition, offset, record, len(payload)) or alarm
        if alarm is not None:
            self._alarms.report(alarm)

    def _advance(self) -> None:
        """Learn what is complete; snapshots on the way are submitted, or deferred while there is more to read."""
        rows_before = sum(self._learner.num_accepted.values())
        started = time.monotonic()
        try:
            for snapshot in self._learner.advance(self._merge):
                self.metrics.observe("headrace_learner_cut_seconds", time.monotonic() - started)
                reach("learner.after-cut")
                self._uploads.offer(snapshot, self._is_behind())
                self._look_at_manifests()
                self._dirty = True
                self._checkpoint()
                started = time.monotonic()
                if self._stop.is_set():
                    break
            self._blocked = None
        except UnknownTask as error:
            if self._blocked != error.fingerprint:
                log.error("%s; learning waits for it: apply the definition that the decisions were made under", error)
            self._blocked = error.fingerprint
            self._definitions.poll(0.05)
        self._dirty = self._dirty or sum(self._learner.num_accepted.values()) != rows_before

    def _look_at_manifests(self) -> None:
        for manifest, time_ms in self._watch.look():
            self._uploads.saw(manifest, time_ms)

    def _is_behind(self) -> bool:
        if self._merge.is_held:  # what lies behind a fork is never taken: an upload would wait for nothing
            return False
        times_ms, offsets = self._merge.times_ms, self._merge.next_offsets
        slowest = times_ms.index(min(times_ms))
        return self._reader.lag(slowest, offsets[slowest]) > BEHIND_RECORDS

    def _keep_house(self) -> None:
        self._definitions.poll(0)
        self._outage.look()
        self._learner.anchor = self._writer.anchor()
        self._measure()
        self._checkpoint()

    def _hold_back(self) -> None:
        """Pause partitions that are ahead while too many bytes wait; never the slowest, all others wait for it.

        One that a fork stopped is paused for good: nothing of it will be taken.
        """
        everyone = range(len(self._merge.times_ms))
        may_wait = set(everyone if self._blocked is not None else self._merge.ahead())
        stopped, limit = set(self._merge.stopped), self._settings.waiting_bytes_max
        if self._merge.num_bytes > limit:
            self._reader.pause_only(may_wait | stopped)
        elif self._merge.num_bytes < limit // 2:
            self._reader.pause_only(stopped)
        else:
            self._reader.pause_only(self._reader.paused & may_wait | stopped)

    def _measure(self) -> None:
        gauge = self.metrics.set
        for partition, (time_ms, offset) in enumerate(zip(self._merge.times_ms, self._merge.next_offsets, strict=True)):
            gauge("headrace_learner_log_time_ms", max(0, time_ms), partition=partition)
            gauge("headrace_learner_lag_records", self._reader.lag(partition, offset), partition=partition)
        for bucket, count in self._learner.num_accepted.items():
            gauge("headrace_learner_rows_accepted", count, bucket=bucket)
        self._task_gauges.show(self._learner)
        gauge("headrace_learner_rows_unfit", self._learner.num_unfit)
        gauge("headrace_learner_waiting_bytes", self._merge.num_bytes)
        gauge("headrace_learner_unknown_task", float(self._blocked is not None))
        gauge("headrace_learner_cuts", self._learner.cut.number)

    def _checkpoint(self, wait: bool = False) -> None:
        """Write the state when it is due, or with `wait` in any case. Raises UserError when the disk refuses."""
        cut = self._learner.cut
        if (wait or self._writer.is_due(cut.number)) and self._dirty:
            self._dirty = False
            state = to_checkpoint(self._learner, self._merge, self._topic_id, self._registry)
            self._writer.write(state, cut.number, max(0, cut.end_ms), wait)

    def _live(self) -> str | None:
        idle_s = time.monotonic() - self._beat
        return f"the loop stands still since {idle_s:.0f} s" if idle_s > STUCK_S else None

    def _ready(self) -> str | None:
        if self._records:
            return "waits for the schema registry"
        stopped = self._merge.stopped
        return f"a fork stopped partitions {stopped}" if stopped else None


def signing_key(settings: LearnerSettings) -> Ed25519PrivateKey:
    """The private key that snapshots are signed with. Raises UserError when there is none."""
    if settings.signing_key is None:
        raise UserError(
            "no key to sign snapshots with", "make one with `headrace keys create` and set HEADRACE_SIGNING_KEY to it"
        )
    return load_private_key(settings.signing_key)


def _make(device: str) -> Callable[[Task], RowLearner]:
    from learner.update import TaskLearner

    return lambda task: TaskLearner(task, device)
