"""A stream worker: one process that plays the roles `ingest` and `join` as Faust apps.

Owns the checks before the start, the failure that ends the process, and the exit code: 0 after SIGTERM, 1 with one
clear line when something is missing, refused or broken for good (who supervises us starts us again).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress

from schemas import early_stop
from schemas.collector import uncollected
from schemas.errors import UserError
from schemas.last_resort import LastResort
from schemas.outage import Outage
from schemas.registry import Registry, open_for_service
from schemas.task import Source
from schemas.telemetry import MetricsServer
from schemas.topics import topic
from streams import quiet, spare_memory
from streams.cluster import missing_topics
from streams.health import Health
from streams.metrics import worker_metrics
from streams.settings import WorkerSettings
from streams.tasks import TaskFollower
from streams.topic_checks import require_append_time, require_same_partitions

log = logging.getLogger(__name__)

ROLES = ("ingest", "join")
TASKS_READ_S = 60.0
SOURCES_LOOK_S = 1.0
MISSING_LOOK_S = 5.0
"""How often a source topic that is missing is looked for."""


def run(roles: set[str], settings: WorkerSettings) -> int:
    """Play `roles` until SIGTERM or SIGINT; returns the exit code. Blocks; call it in the main thread.

    Raises UserError: unknown role, no broker, a topic that is missing or not as it must be, no schema registry, nothing
    applied, a port in use, a folder that cannot be written; later on, what only a person can put right (a gap in the
    journal).
    """
    unknown = roles - set(ROLES)
    if unknown or not roles:
        raise UserError(f"unknown role {', '.join(sorted(unknown)) or '(none)'}", f"name some of {', '.join(ROLES)}")
    outage = quiet.set_up(settings.log_level)
    spare_memory.give_back_from_now_on()
    registry = open_for_service(settings.schema_registry_url)
    while True:
        code = _Life(sorted(roles), settings, registry, outage).run()
        if code is not None:
            return code
        log.info("the source topics to be read have changed: starting again with the new ones")


class _Life:
    """One life of the process: from the checks to the exit code, or to None when it should begin anew."""

    def __init__(self, roles: list[str], settings: WorkerSettings, registry: Registry, outage: Outage) -> None:
        self._roles, self._settings, self._registry, self._outage = roles, settings, registry, outage
        self._failure: Exception | None = None
        self._begins_anew = False
        self._ended = threading.Event()
        self._last_resort = LastResort(settings.stop_s_max)

    def run(self) -> int | None:
        """Check, start, serve, stop."""
        # Faust's handlers are gone after a first life. What this process tells itself is no end in order: start again.
        early_stop.install(lambda: int(self._begins_anew or self._failure is not None))
        settings, registry = self._settings, self._registry
        with TaskFollower(settings, registry) as tasks:
            tasks.wait_ready(TASKS_READ_S)
            self._check_topics(tasks)
            started_with = tasks.sources
            sources = self._present(started_with) if "ingest" in self._roles else ()
            metrics, health = worker_metrics(), Health(settings.stall_s_max)
            server = MetricsServer(metrics, settings.metrics_host, settings.metrics_port, health.live, health.ready)
            try:
                # Here, not above: Faust takes half a second to import, and the checks should be told at once.
                with uncollected():
                    from streams import agents, faust_worker

                loop = faust_worker.new_loop()

                faust_worker.data_folder(settings.state_dir)
                context = agents.Context(settings, registry, tasks, sources, metrics, health, self._outage, self._fail)
                roles = [agents.make_role(name, context) for name in self._roles]
                server.start()
                log.info(
                    "%s serves %s; metrics at http://%s:%d/metrics",
                    "+".join(self._roles), settings.namespace, settings.metrics_host, server.port,
                )  # fmt: skip
                if "ingest" in self._roles:
                    threading.Thread(
                        target=self._watch_sources, args=(tasks, started_with, sources), daemon=True
                    ).start()
                code = faust_worker.execute([role.app for role in roles], loop, self._last_resort)
                for role in roles:
                    role.close()
            finally:
                self._ended.set()
                server.close()
        return self._verdict(code)

    def _verdict(self, code: int) -> int | None:
        if isinstance(self._failure, UserError):
            raise self._failure
        if self._failure is not None:
            return 1
        if code:
            log.error("ending with code %d: a Kafka client of ours failed for good, see the errors above; "
                      "whoever supervises this process starts it again", code)  # fmt: skip
        if not self._begins_anew or code:
            return code
        self._last_resort.disarm()
        return None

    def _check_topics(self, tasks: TaskFollower) -> None:
        """What Faust would not notice: it waits for ever for a topic that does not exist."""
        name, settings = self._settings.namespace, self._settings
        ours = [topic(name, each) for each in ("outcomes", "journal", "transitions", "dead-letters")]
        require_append_time(settings, ours[:3])
        require_same_partitions(settings, ours[1:3], tasks.namespace.partitions)
        require_same_partitions(settings, [ours[0], ours[3]], None)

    def _present(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Those whose topic exists. What else is read must not wait for one that is the shop's to create."""
        missing = missing_topics(self._settings, [source.topic for source in sources])
        for name in missing:
            log.warning(
                "the source topic %s is missing at %s; all else is read, and it too once it is there. Create it, or "
                "take it out of force: headrace apply headrace.toml --retire %s",
                name, self._settings.bootstrap, name,
            )  # fmt: skip
        return tuple(source for source in sources if source.topic not in missing)

    def _watch_sources(self, tasks: TaskFollower, started_with: tuple[Source, ...], read: tuple[Source, ...]) -> None:
        """Begin anew when other sources are applied, or one comes that was missing: a Faust app's topics are fixed."""
        awaited = [source.topic for source in started_with if source not in read]
        looked_s = time.monotonic()
        while not self._ended.wait(SOURCES_LOOK_S):
            has_come = False
            if awaited and time.monotonic() - looked_s >= MISSING_LOOK_S:
                looked_s = time.monotonic()
                with suppress(UserError):  # no broker answers: the roles know that themselves
                    has_come = len(missing_topics(self._settings, awaited)) < len(awaited)
            if has_come or tasks.sources != started_with:
                self._begins_anew = True
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _fail(self, error: Exception) -> None:
        """End the process with this error; the first one counts."""
        if self._failure is None:
            self._failure = error
            log.warning("ending: %s", error.message if isinstance(error, UserError) else error)
            os.kill(os.getpid(), signal.SIGTERM)
