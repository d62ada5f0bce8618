"""Everything that one namespace needs on one machine: broker, topics, keys, definitions, processes.

Used by `headrace up` and `headrace demo`. The broker is our own unless an existing one is named.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deploy import applying, broker, processes, topics
from deploy.broker import RunningBroker
from deploy.probes import is_ready
from deploy.supervisor import Supervisor
from schemas import signing_keys
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project

PROCESSES = ("join", "decide", "learn")
"""Names of the processes; `join` plays ingest too."""
ROLES = {"join": "ingest+join", "decide": "decide", "learn": "learn"}
"""What each of them does, in the words of `headrace worker`."""

ASK_EVERY_S = 0.2
REMIND_EVERY_S = 15.0

BROKER_STOP_S = 20.0

LEARNER_NICENESS = 5
"""On a machine with few cores people who wait for decisions go before learning."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A namespace that is ready to be served."""

    settings: CommonSettings
    private_key: Path
    metrics_ports: Mapping[str, int]
    """Port of /metrics per process."""
    own_broker: RunningBroker | None
    """None when it is somebody else's."""

    def environment(self, name: str) -> dict[str, str]:
        """Environment of one process."""
        return {
            "HEADRACE_BOOTSTRAP": self.settings.bootstrap,
            "HEADRACE_NAMESPACE": self.settings.namespace,
            "HEADRACE_KAFKA_OPTIONS": json.dumps(self.settings.kafka_options),
            "HEADRACE_STATE_DIR": str(self.settings.state_dir),
            "HEADRACE_PUBLIC_KEY": str(self.settings.public_key),
            "HEADRACE_SIGNING_KEY": str(self.private_key),
            "HEADRACE_METRICS_PORT": str(self.metrics_ports[name]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def start(self, supervisor: Supervisor) -> None:
        """Start the worker processes and the learner; they end when our own broker does."""
        if (own := self.own_broker) is not None:
            supervisor.need("broker", lambda: own.is_alive)
        supervisor.start("join", ["worker", "ingest", "join"], self.environment("join"))
        supervisor.start("decide", ["worker", "decide"], self.environment("decide"))
        supervisor.start("learn", ["learn"], self.environment("learn"), LEARNER_NICENESS)

    def wait_ready(self, supervisor: Supervisor, say: Callable[[str], None]) -> bool:
        """Until every process is ready; False when one or the broker has ended, or somebody interrupts.

        `say` hears how it goes.
        """
        begun_s = reminded_s = time.monotonic()
        waiting = dict(self.metrics_ports)
        while waiting:
            if supervisor.is_stopping or supervisor.is_failing:
                return False
            for name in [name for name, port in waiting.items() if is_ready(port)]:
                del waiting[name]
                say(f"{ROLES[name]} is ready after {time.monotonic() - begun_s:.0f} s")
            if waiting and time.monotonic() - reminded_s > REMIND_EVERY_S:
                reminded_s = time.monotonic()
                say(f"still starting after {reminded_s - begun_s:.0f} s: {', '.join(map(ROLES.__getitem__, waiting))}")
            time.sleep(ASK_EVERY_S)
        return True

    def close(self, timeout_s: float = BROKER_STOP_S) -> None:
        """End our own broker, by SIGKILL what is left of it after `timeout_s`; the processes are the supervisor's."""
        if self.own_broker is not None:
            broker.stop(Path(self.own_broker.folder), timeout_s)


def prepare(
    project: Project, state_dir: Path, bootstrap: str | None, port: int, options: Mapping[str, str] | None = None
) -> Stack:
    """Broker (at `bootstrap`, or our own on `port`, 0 for a free one), topics, keys, definitions.

    Raises `UserError` when one of them cannot be had; nothing is left running then.
    """
    running = None
    if bootstrap is None:
        running = broker.start(state_dir / "broker", port, tied=True)
        bootstrap, options = running.bootstrap, running.kafka_options
    else:
        broker.require(bootstrap, options)
    keys = state_dir / "keys"
    try:
        private_key, public_key = signing_keys.pair_of(keys)
        settings = load_settings(
            CommonSettings,
            bootstrap=bootstrap,
            namespace=project.namespace.name,
            state_dir=state_dir.resolve(),
            public_key=public_key.resolve(),
            kafka_options=dict(options or {}),
        )
        topics.apply(settings, project)
        applying.apply(settings, project)
    except BaseException:
        if running is not None:
            broker.stop(Path(running.folder))
        raise
    ports = dict(zip(PROCESSES, processes.free_ports(len(PROCESSES)), strict=True))
    return Stack(settings, private_key.resolve(), ports, running)


def named(project: Project, namespace: str | None) -> Project:
    """The project under another namespace, or as it is."""
    if namespace is None:
        return project
    return replace(project, namespace=replace(project.namespace, name=namespace))
