"""The roles of a stream worker: their Faust apps, agents and outputs, put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import mode
from faust.types import TP

from schemas.outage import Outage
from schemas.registry import Registry
from schemas.task import Source
from schemas.telemetry import Metrics
from schemas.topics import topic
from streams.agents_ingest import IngestAgent
from streams.dead_letters import DeadLetters
from streams.faust_worker import check_assignor, make_app
from streams.health import BEAT_S, Health
from streams.journal import Output
from streams.settings import WorkerSettings
from streams.tasks import TaskFollower
from streams.transport import ColumnarApp, ColumnarSchema
from streams.warm_up import warm_up_ingest, warm_up_join

CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Context:
    """What every role is built from."""

    settings: WorkerSettings
    registry: Registry
    tasks: TaskFollower
    sources: tuple[Source, ...]
    """Foreign topics that are there to be read."""
    metrics: Metrics
    health: Health
    outage: Outage
    fail: Callable[[Exception], None]
    """End the process with this error."""


class Role(Protocol):
    """One role: its Faust app, and what to close after the app has stopped."""

    app: ColumnarApp

    def close(self) -> None:
        """Deliver what can be delivered soon, and let go of threads."""


def make_role(name: str, context: Context) -> Role:
    """The role called `name`, ready to run."""
    role: Role = JoinRole(context) if name == "join" else IngestRole(context)
    _add_heart(role.app, context)
    return role


def _add_agent(app: ColumnarApp, source: str, body: Callable[[Any], Any]) -> None:
    """`body` as the agent of topic `source`: acks by itself, and an exception in it ends the process with code 1."""
    schema = ColumnarSchema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    channel = app.topic(source, schema=schema)
    app.agent(channel, name=f"{app.conf.id}:{source}", supervisor_strategy=mode.CrashingSupervisor)(body)


def _on_assigned(app: ColumnarApp, heard: Callable[[set[TP]], None]) -> None:
    """Tell `heard` every partition that is ours, after each rebalance."""

    async def told(sender: Any, assigned: set[TP], **options: Any) -> None:
        heard(assigned)

    signal: Any = app.on_partitions_assigned  # Faust's signal types do not fit its own handlers
    signal.connect(told, weak=False)


def _add_heart(app: ColumnarApp, context: Context) -> None:
    async def beat() -> None:
        check_assignor(app)
        while not app.should_stop:
            due = time.monotonic() + BEAT_S
            await app.sleep(BEAT_S)
            context.health.beat()
            context.outage.look()
            context.metrics.set("headrace_event_loop_lag_seconds", max(0.0, time.monotonic() - due))

    app.task(beat)


class JoinRole:
    """journal → transitions."""

    def __init__(self, context: Context) -> None:
        from streams.agents_join import JoinAgent  # an ingest worker has no use for the join's compiled kernels
        from streams.agents_ports import Ports

        warm_up_join(context.registry)
        settings, journal = context.settings, topic(context.settings.namespace, "journal")
        self.app = make_app("join", [journal], settings, context.outage)
        self._output = Output(settings, linger_ms=settings.linger_ms, compression=settings.compression)
        dead_letters = DeadLetters(settings.namespace, context.registry, self._output, context.metrics)

        def ports(restart: Callable[[int, str], None]) -> Ports:
            return Ports(
                settings, context.registry, context.tasks.table, self._output, dead_letters, context.metrics, restart,
                lambda: time.time_ns() // 1_000_000, context.tasks.namespace.tick_ms,
            )  # fmt: skip

        self._agent = JoinAgent(self.app, ports, context.health, context.fail)
        self.app.starting_offsets = self._agent.starting_offsets
        _add_agent(self.app, journal, self._agent.follow)
        self.app.task(self._agent.run)
        self.app.task(lambda: self._tell_of_definitions(context, dead_letters))
        _on_assigned(self.app, self._agent.assigned)

    async def _tell_of_definitions(self, context: Context, dead_letters: DeadLetters) -> None:
        """What was applied and is no definition: every worker reads it, the owner of the first partition tells."""
        untold = context.tasks.untold
        while not self.app.should_stop:
            while untold and 0 in self._agent.owned:
                await dead_letters.write(untold.popleft())
            await self.app.sleep(BEAT_S)

    def close(self) -> None:
        """Deliver what is on its way."""
        self._agent.close()
        self._output.close(CLOSE_S)


class IngestRole:
    """Users' topics → journal."""

    def __init__(self, context: Context) -> None:
        warm_up_ingest(context.registry)
        settings = context.settings
        self._output = Output(settings, linger_ms=settings.linger_ms, compression=settings.compression, gapless=True)
        dead_letters = DeadLetters(settings.namespace, context.registry, self._output, context.metrics)
        self._agent = IngestAgent(context.settings, context.registry, context.tasks.namespace.partitions,
                                  context.sources, self._output, dead_letters, context.metrics, context.health,
                                  context.fail)  # fmt: skip
        self.app = make_app("ingest", self._agent.topics, settings, context.outage)
        self.app.settle = self._agent.settle
        self._agent.give_up = self._give_up
        _on_assigned(self.app, self._agent.assigned)
        self.app.task(lambda: self._agent.run(self.app))
        for source in self._agent.topics:
            _add_agent(self.app, source, self._agent.reader(source))

    def close(self) -> None:
        """Deliver what is on its way."""
        self._output.close(CLOSE_S)

    def _give_up(self) -> None:
        consumer: Any = self.app.consumer
        consumer.give_up()
