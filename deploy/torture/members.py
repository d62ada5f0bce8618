"""The processes of ours under torture: started, killed, paused, started again, watched."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from deploy import probes, processes
from deploy.torture.history import End, History, Hit
from schemas import fault_points

LOOK_EVERY_S = 0.25
START_S_MAX = 60.0
ABORT_S = 3.0
WORDS_BYTES = 4_000
ENDED_IN_ORDER = 0
USER_ERROR = 1
"""A process that says in one line why it cannot go on, and is started again: what Kubernetes does all day."""


class Member:
    """One process that is always brought back, except while a fault owns it."""

    def __init__(
        self, name: str, arguments: list[str], environment: Mapping[str, str], port: int, folder: Path, history: History
    ) -> None:
        """`port` is that of its metrics; its output goes to ``<name>.log`` in `folder`."""
        self.name, self.port = name, port
        self.log = folder / f"{name}.log"
        self.is_owned = False
        """A fault decides when it runs; nobody else starts it."""
        self.is_ready = False
        self.rss_bytes_max = 0
        self._armed: Hit | None = None
        """The fault whose point this process carries."""
        self._command = [sys.executable, "-m", "deploy", *arguments]
        self._environment = {**environment, "PYTHONFAULTHANDLER": "1"}
        self._history = history
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._prober = threading.Thread(target=self._probe, name=f"probe-{name}", daemon=True)

    def start(self, aimed: Hit | None = None) -> None:
        """Start it, with the point of a fault armed or none."""
        self._armed, point = aimed, aimed.planned.point if aimed is not None else ""
        armed = {fault_points.VARIABLE: f"{point}:kill"} if point else {}
        self.is_ready = False
        with self.log.open("ab") as out:
            self._process = processes.spawn(self._command, out, environment={**self._environment, **armed})
        self._history.note("start", name=self.name, pid=self._process.pid, armed=point)
        if not self._prober.is_alive() and not self._closing.is_set():
            self._prober.start()

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs (or is paused)."""
        return 0 if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when it has ended already."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
            self.is_ready = False
        self._history.note("signal", name=self.name, signal=number.name)
        return True

    def kill(self) -> bool:
        """SIGKILL and wait; True when it was that which ended it."""
        if not self.send(signal.SIGKILL):
            return False
        assert self._process is not None
        return self._process.wait(10) == -signal.SIGKILL

    def abort(self) -> bool:
        """End one that should have ended by itself; where each of its threads was stands in its log then.

        False when it has ended already.
        """
        if not self.send(signal.SIGABRT):
            return False
        assert self._process is not None
        self._armed = None
        try:
            self._process.wait(ABORT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        return True

    def keep(self) -> None:
        """Bring it back when it ended by itself."""
        code = self.code
        if code is None or self.is_owned or self._process is None:
            return
        if self._has_reached_its_point():  # later than its fault had waited for
            self.start()
            return
        end = End(self._history.now_s, self.name, code, self.last_words())
        self._history.ends.append(end)
        self._history.note("ended by itself", name=self.name, code=code, words=end.last_words)
        self.start()

    def _has_reached_its_point(self) -> bool:
        """Whether it ended at the point that it carried; counted where it does."""
        if self.code != -signal.SIGKILL or self._armed is None:
            return False
        self._armed.num_kills += 1
        self._history.note("reached its point", name=self.name, number=self._armed.planned.number)
        return True

    def last_words(self) -> str:
        """The last line of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - WORDS_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""

    def end(self, timeout_s: float) -> int:
        """SIGCONT, SIGTERM, wait; its exit code, -9 when it had to be killed.

        One that reaches its point only now (the last checkpoint is one more) is brought back and ended once more.
        """
        self._closing.set()
        if self._process is None:
            return ENDED_IN_ORDER
        code = self._end(timeout_s)
        if code is not None and self._has_reached_its_point():
            self.start()
            processes.wait_until(lambda: probes.is_ready(self.port) or self.code is not None, START_S_MAX)
            code = self._end(timeout_s)
        if code is None:
            self.abort()
            return -signal.SIGKILL
        return code

    def _end(self, timeout_s: float) -> int | None:
        """The exit code after SIGTERM, None when it still runs."""
        assert self._process is not None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _probe(self) -> None:
        """Ask for readiness while it runs, in a thread of its own: a paused process takes a second to not answer."""
        while not self._closing.wait(LOOK_EVERY_S):
            process = self._process
            if process is None or process.poll() is not None:
                continue
            is_ready = probes.is_ready(self.port)
            if process is self._process and process.poll() is None:
                self.is_ready = is_ready
                try:
                    self.rss_bytes_max = max(self.rss_bytes_max, psutil.Process(process.pid).memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def wait_ready(members: list[Member], timeout_s: float) -> list[str]:
    """Wait until all are ready; names of those that are not."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for member in members:
            member.keep()
        if all(member.is_ready for member in members):
            return []
        time.sleep(LOOK_EVERY_S)
    return [member.name for member in members if not member.is_ready]
