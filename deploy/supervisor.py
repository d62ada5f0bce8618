"""Several processes as one: prefixed logs, one way out, nothing left behind.

Owns starting, reading the output of, and ending a group of children. When one ends by itself, all end: a development
stack that limps is worse than one that stops and says which part did.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from deploy import processes
from schemas.errors import UserError
from schemas.settings import load_settings
from streams.settings import WorkerSettings

LATER_S = 2.0
"""A worker ends within HEADRACE_STOP_S_MAX of SIGTERM; so much later it is killed."""
_ASKED = (-signal.SIGTERM, -signal.SIGINT)
"""Codes of children that were told to stop before they listened: that is no failure."""
EARLY_STOP_S = 1.0
"""For those that may still be starting when Ctrl-C comes: what they compile or import cannot be asked to stop, and
killing them loses nothing that is not in the log."""
TAIL_LINES = 40


class Child:
    """One process and the thread that reads what it says."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        niceness: int,
    ) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """Its last lines, for an error message."""
        self._say = say
        self.process = processes.spawn(command, subprocess.PIPE, environment=environment, niceness=niceness)
        self._thread = threading.Thread(target=self._read, name=f"read-{name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.tail.append(text)
            self._say(f"{self.name:>8} | {text}")

    def close(self) -> None:
        """After its end: read what is left, give the pipe back."""
        self._thread.join(2)
        if self.process.stdout is not None and not self._thread.is_alive():
            self.process.stdout.close()

    @property
    def last_words(self) -> str:
        """The line that tells why it ended: its error message where there is one."""
        self._thread.join(1)
        lines = [line for line in self.tail if line.strip()] or ["nothing"]
        return next((line for line in reversed(lines) if line.startswith("headrace: ")), lines[-1])

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()


class Supervisor:
    """Runs children until one ends, somebody interrupts, or `end` is called. Use as a context manager.

    While none runs, before the first and after the last, a signal is a KeyboardInterrupt: nobody would look at
    `is_stopping`, and there is nothing to end in order.
    `say` receives every line that a child prints, prefixed with its name.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.children: list[Child] = []
        self._say = say or _to_stderr
        self._needed: list[tuple[str, Callable[[], bool]]] = []
        self._stopping = threading.Event()
        self._before: dict[int, Any] = {}

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None, niceness: int = 0
    ) -> Child:
        """Start ``headrace <arguments>`` as a child."""
        return self.start_command(name, [sys.executable, "-m", "deploy", *arguments], environment, niceness)

    def start_command(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, niceness: int = 0
    ) -> Child:
        """Start any program as a child; a positive `niceness` lets the others go first when cores are few."""
        child = Child(name, command, {"PYTHONUNBUFFERED": "1", **(environment or {})}, self._say, niceness)
        self.children.append(child)
        return child

    def first_ended(self) -> Child | None:
        """A child that is no longer running."""
        return next((child for child in self.children if child.code is not None), None)

    def need(self, name: str, is_alive: Callable[[], bool]) -> None:
        """What the children need though it is none of them: when it is gone, they end."""
        self._needed.append((name, is_alive))

    def first_gone(self) -> str | None:
        """Name of something that is needed and is gone."""
        return next((name for name, is_alive in self._needed if not is_alive()), None)

    @property
    def is_failing(self) -> bool:
        """Whether a child has ended, or something that they need is gone."""
        return self.first_ended() is not None or self.first_gone() is not None

    def wait(self) -> int:
        """Until a child ends, something that they need is gone or a signal comes, then end all.

        The worst exit code of any, 0 where all ended in order; a child that a signal killed counts as 128 and its
        number, as a shell has it. At least 1 when something was gone.
        """
        worst = 0
        while not self._stopping.is_set():
            ended, gone = self.first_ended(), self.first_gone()
            if ended is not None:
                self._say(f"headrace | {ended.name} ended with code {ended.code}; ending the others")
                break
            if gone is not None:
                self._say(f"headrace | the {gone} has ended, and it was not us who ended it; ending the others")
                worst = 1
                break
            self._stopping.wait(0.2)
        told = [child for child in self.children if child.code is None]
        self.end()
        codes = [child.code or 0 for child in self.children if not (child in told and child.code in _ASKED)]
        return max([worst, *(code if code >= 0 else 128 - code for code in codes)])

    def end(self, stop_s: float | None = None) -> None:
        """SIGTERM to all at once, then SIGKILL to those that do not end within `stop_s`; without it, in their time."""
        patience_s = _stop_s() + LATER_S if stop_s is None else stop_s
        running = [child for child in self.children if child.code is None]
        for child in running:
            child.process.terminate()
        deadline = time.monotonic() + patience_s
        for child in running:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"headrace | {child.name} did not end within {patience_s:g} s; killing it")
                child.process.kill()
                child.process.wait()
        for child in self.children:
            child.close()

    def __enter__(self) -> Supervisor:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Asks for the way out while children run; breaks in where none does, and the second time in any case."""
        was_asked = self._stopping.is_set()
        self._stopping.set()
        if was_asked or all(child.code is not None for child in self.children):
            raise KeyboardInterrupt

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has come."""
        return self._stopping.is_set()


def _stop_s() -> float:
    """HEADRACE_STOP_S_MAX as the children have it; a value that is none they have refused themselves."""
    with suppress(UserError):
        return load_settings(WorkerSettings).stop_s_max
    return float(WorkerSettings.model_fields["stop_s_max"].default)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
