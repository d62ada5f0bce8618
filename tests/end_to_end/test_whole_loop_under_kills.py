"""The whole loop with its real processes: each is killed once in mid-run, nothing is lost, doubled, learnt twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import broker, demo_report, processes, stack
from deploy.audit import audit
from deploy.watch import Figures, Watch
from schemas.task import load
from schemas.topics import topic

EXAMPLE = Path(__file__).parents[2] / "examples" / "support"
MESSAGES = 2_000
RATE_PER_S = 40
KILLS = ("join", "decide", "learn", "broker")
BETWEEN_KILLS_S = 4.0
OUTAGE_S = 60.0
"""How long the broker is gone: workers and learner wait, and come back by themselves."""
READY_S = 180.0
DRAIN_S = 90.0


class Loop:
    """The processes of one namespace, each of which may be killed and comes back as Kubernetes would bring it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = load(EXAMPLE / "headrace.toml")
        self.ready = stack.prepare(self.project, folder, None, port=0)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        for name in stack.PROCESSES:
            self.start(name)

    def start(self, name: str) -> None:
        arguments = {"join": ["worker", "ingest", "join"], "decide": ["worker", "decide"], "learn": ["learn"]}[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = processes.spawn(
                [sys.executable, "-m", "deploy", *arguments], log, environment=self.ready.environment(name)
            )

    def kill(self, name: str) -> None:
        if name == "broker":
            self._kill_broker()
            return
        self.children[name].kill()
        assert self.children[name].wait(10) == -signal.SIGKILL
        self.start(name)

    def _kill_broker(self) -> None:
        folder = self.folder / "broker"
        running = broker.status(folder)
        assert running is not None
        for node in running.nodes:
            processes.end(node.pid, 0)  # no time to end by itself: SIGKILL
        time.sleep(OUTAGE_S)
        assert all(child.poll() is None for child in self.children.values()), self.said()
        broker.start(folder, int(running.bootstrap.rsplit(":", 1)[1]), tied=True)

    def is_ready(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.ready.metrics_ports[name]}/ready", timeout=1
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self) -> dict[str, int]:
        """SIGTERM to all; their exit codes."""
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


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    running = Loop(tmp_path)
    try:
        yield running
    finally:
        running.end()
        running.ready.close()


def _open_shop(loop: Loop) -> subprocess.Popen[bytes]:
    settings = loop.ready.settings
    command = [
        *(sys.executable, EXAMPLE / "shop.py", "--bootstrap", settings.bootstrap, "--namespace", settings.namespace),
        *(
            "--seed",
            "3",
            "--rate",
            str(RATE_PER_S),
            "--limit",
            str(MESSAGES),
            "--patience",
            "120",
            "--report",
            loop.folder / "shop.json",
        ),
    ]
    with (loop.folder / "shop.log").open("wb") as log:
        return processes.spawn(command, log)


def _is_drained(figures: Figures, partitions: int) -> bool:
    decisions, outcomes = figures.buckets()
    settled = decisions["open"] == 0 and outcomes["pending"] == 0
    return len(figures.progress) == partitions and settled and figures.num_decisions == sum(decisions.values())


@pytest.mark.timeout(600)
def test_each_process_killed_once_in_mid_run_leaves_a_clean_audit(loop: Loop) -> None:
    assert processes.wait_until(lambda: all(map(loop.is_ready, stack.PROCESSES)), READY_S), loop.said()
    figures = Figures()
    watch = Watch(loop.ready.settings, figures).start()
    shop = _open_shop(loop)
    try:
        for name in KILLS:
            time.sleep(BETWEEN_KILLS_S)
            loop.kill(name)
            back = processes.wait_until(lambda: all(map(loop.is_ready, stack.PROCESSES)), READY_S)
            assert back, f"not ready {READY_S:.0f} s after the kill of {name}\n{loop.said()}"
        assert processes.wait_until(lambda: shop.poll() is not None, 240), loop.said()
        assert shop.returncode == 0, (loop.folder / "shop.log").read_text()
        drained = processes.wait_until(lambda: _is_drained(figures, loop.project.namespace.partitions), DRAIN_S, 0.25)
        assert drained, f"{figures.buckets()} {figures.num_decisions}\n{loop.said()}"
    finally:
        shop.kill()
        watch.close()
    assert loop.end() == dict.fromkeys(stack.PROCESSES, 0), loop.said()

    audited = audit(loop.ready.settings)
    assert audited.verdict == "clean"
    report = demo_report.build(
        demo_report.read(loop.ready.settings),
        audited,
        json.loads((loop.folder / "shop.json").read_text()),
        len(loop.project.tasks[0].actions),
        topic(loop.ready.settings.namespace, "outcomes"),
        0,
    )
    assert report["duplicates_accepted"] == 0
    assert report["holes"] == 0
    assert report["transitions"] == report["decisions"] == sum(report["buckets"]["decisions"].values())
    assert report["decisions"] >= MESSAGES
    assert report["snapshots"]["served"] > 1
    answered = json.loads((loop.folder / "shop.json").read_text())
    assert answered["counts"].get("unanswered", 0) == 0, answered["counts"]
