"""The processes of one namespace as their users start them, to be killed and brought back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy import broker, processes, stack
from deploy.probes import is_ready
from deploy.watch import Figures
from schemas.task import load

COMMANDS = {"join": ["worker", "ingest", "join"], "decide": ["worker", "decide"], "learn": ["learn"]}
"""Of the processes that `headrace up` starts."""
EXAMPLE = Path(__file__).parents[2] / "examples" / "support"


class Loop:
    """Broker, workers and learner of the example project. Whoever is killed comes back when it is started again."""

    def __init__(self, folder: Path, commands: Mapping[str, Sequence[str]] = COMMANDS) -> None:
        """`commands` by name of the process, what stands behind `headrace`."""
        self.folder, self.commands = folder, commands
        self.project = load(EXAMPLE / "headrace.toml")
        ports = dict(zip(commands, processes.free_ports(len(commands)), strict=True))
        self.ready = replace(stack.prepare(self.project, folder, None, port=0), metrics_ports=ports)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        for name in commands:
            self.start(name)

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = processes.spawn(
                [sys.executable, "-m", "deploy", *self.commands[name]], log, environment=self.ready.environment(name)
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.children[name].kill()
        assert self.children[name].wait(10) == -signal.SIGKILL

    def kill_broker(self) -> str:
        """SIGKILL to every node; the address at which it must come back."""
        running = broker.status(self.folder / "broker")
        assert running is not None
        for node in running.nodes:
            processes.end(node.pid, 0)  # no time to end by itself
        return running.bootstrap

    def silence_broker(self, signal_number: int) -> None:
        """SIGSTOP: its connections stay and nothing is answered; SIGCONT: it goes on."""
        running = broker.status(self.folder / "broker")
        assert running is not None
        for node in running.nodes:
            os.kill(node.pid, signal_number)

    def start_broker(self, bootstrap: str) -> None:
        """On the same log, at the same address."""
        broker.start(self.folder / "broker", int(bootstrap.rsplit(":", 1)[1]), tied=True)

    def is_ready(self, name: str) -> bool:
        return is_ready(self.ready.metrics_ports[name])

    def is_drained(self, figures: Figures) -> bool:
        """Every decision is settled and every outcome has found its place."""
        decisions, outcomes = figures.buckets()
        settled = decisions["open"] == 0 and outcomes["pending"] == 0
        is_whole = len(figures.progress) == self.project.namespace.partitions
        return is_whole and settled and figures.num_decisions == sum(decisions.values())

    def end(self) -> dict[str, int]:
        """SIGTERM to all that run; their exit codes."""
        for child in self.children.values():
            child.terminate()
        codes = {}
        for name, child in self.children.items():
            try:
                codes[name] = child.wait(12)
            except subprocess.TimeoutExpired:
                child.kill()
                codes[name] = child.wait(5)
        return codes

    def said(self) -> str:
        return "\n".join(f"--- {name}\n{(self.folder / f'{name}.log').read_text()[-3000:]}" for name in self.children)
