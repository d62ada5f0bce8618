"""Waiting for the processes of a namespace: who is ready is told, who ends ends the wait."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy import processes, stack
from deploy.supervisor import Supervisor
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
