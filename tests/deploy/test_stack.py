"""Waiting for the processes of a namespace: who is ready is told, who ends ends the wait."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy import processes, stack
from deploy.cli.entry import run
from deploy.supervisor import EARLY_STOP_S, Supervisor
from schemas.settings import CommonSettings

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:
        """Nothing: the test's output is for failures."""


@contextmanager
def _serving(port: int) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", port), _Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _stack() -> stack.Stack:
    ports = dict(zip(stack.PROCESSES, processes.free_ports(3), strict=True))
    return stack.Stack(CommonSettings(), Path("key"), ports, None)


def test_each_process_is_told_when_it_is_ready_and_what_is_missed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "REMIND_EVERY_S", 0.3)
    made, said = _stack(), list[str]()
    late = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("still starting"):
            late.set()

    def come_late() -> None:
        late.wait(30)
        with _serving(made.metrics_ports["decide"]):
            done.wait(30)

    done = threading.Event()
    thread = threading.Thread(target=come_late)
    thread.start()
    try:
        with (
            Supervisor(said.append) as supervisor,
            _serving(made.metrics_ports["join"]),
            _serving(made.metrics_ports["learn"]),
        ):
            supervisor.start_command("sleeper", SLEEP)
            assert made.wait_ready(supervisor, say)
    finally:
        done.set()
        thread.join()

    assert [line.partition(" is ready")[0] for line in said if "is ready after" in line] == [
        "ingest+join", "learn", "decide",
    ]  # fmt: skip
    assert any(line.startswith("still starting") and line.endswith(": decide") for line in said)


def test_nobody_waits_for_processes_of_which_one_has_ended() -> None:
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start_command("ended", [sys.executable, "-c", "raise SystemExit(3)"])

        assert not _stack().wait_ready(supervisor, lambda _: None)
        assert supervisor.wait() == 3


class _Interrupted(stack.Stack):
    """A stack of one process that never gets ready, because somebody interrupts."""

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start_command("stuck", SLEEP)

    def wait_ready(self, supervisor: Supervisor, say: object) -> bool:
        signal.raise_signal(signal.SIGINT)
        return super().wait_ready(supervisor, lambda _: None)


def test_an_interrupted_start_gives_nobody_the_time_that_work_in_hand_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text('[namespace]\nname = "shop"\n')
    settings = CommonSettings(namespace="shop", state_dir=tmp_path)
    ready = _Interrupted(settings, tmp_path / "private.pem", {"decide": processes.free_ports(1)[0]}, None)
    monkeypatch.setattr(stack, "prepare", lambda *_: ready)
    given: list[float | None] = []
    end = Supervisor.end
    monkeypatch.setattr(Supervisor, "end", lambda self, stop_s=None: (given.append(stop_s), end(self, stop_s)))

    code = run(["up", str(file), "--state-dir", str(tmp_path), "--bootstrap", "127.0.0.1:1"])

    assert code == 130
    assert given[0] == EARLY_STOP_S
