"""Child processes that cannot be left behind.

Owns how headrace starts, follows and ends other processes. Everything is by process id, never by name.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

_PR_SET_PDEATHSIG = 1
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_QUIET_PORTS_FROM = 15_000
_PORT_TRIES = 1_000
_draw = random.SystemRandom()
"""Not to be seeded: processes that begin alike would look for the same ports."""

_started: dict[int, subprocess.Popen[bytes]] = {}
"""Children of ours by pid, until `end` has reaped them."""


def _before_exec(tied: bool, niceness: int) -> Callable[[], None] | None:
    """Run in the child before exec: politeness, and Linux's SIGKILL when the thread that started it is gone."""
    tied = tied and sys.platform.startswith("linux")
    if not tied and not niceness:
        return None
    libc = ctypes.CDLL(None) if tied else None

    def ask() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if niceness:
            os.nice(niceness)

    return ask


def spawn(
    command: Sequence[str | Path],
    output: IO[bytes] | int,
    *,
    environment: Mapping[str, str] | None = None,
    tied: bool = True,
    niceness: int = 0,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in its own session, so that Ctrl-C reaches only us and we end it in order.

    `output` receives stdout and stderr. With `tied` the kernel kills the child should we die without cleaning up
    (Linux; call from a thread that lives as long as the program).
    """
    with _signals_held_back() as heard:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            cwd=folder,
            preexec_fn=_before_exec(tied, niceness),
        )
    try:
        for number in heard:
            signal.raise_signal(number)
    except BaseException:  # nobody knows the child yet
        child.kill()
        child.communicate()
        raise
    _started[child.pid] = child
    return child


@contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """The signals heard meanwhile, for whoever raises them again; none outside the main thread.

    A fork runs callbacks (logging's for one), and what a signal's handler raises in them is printed and lost.
    """
    heard: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # an ignored one is ignored by the child too
                before[number] = signal.signal(number, lambda each, _: heard.append(each))
    try:
        yield heard
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)


def end(pid: int, timeout_s: float = 15.0) -> bool:
    """SIGTERM, wait, then SIGKILL what is left. True when the process ended by itself in time (or was gone)."""
    child = _started.pop(pid, None)
    if child is None:
        return _end_anyones(pid, timeout_s)
    try:
        child.terminate()
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(5)
        return False
    return True


def _end_anyones(pid: int, timeout_s: float) -> bool:
    """`end` for a process that may be another's child: a zombie has ended, only its parent can let go of it."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        ended = wait_until(lambda: _has_ended(process), timeout_s)
        if not ended:
            process.kill()
            wait_until(lambda: _has_ended(process), 5)
        with suppress(psutil.TimeoutExpired):
            process.wait(0)  # a child of ours after all: let go of it
        return ended
    except psutil.NoSuchProcess:
        return True


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def reap(pid: int) -> None:
    """Let go of a child of ours that has ended by itself; whatever else has this pid is left alone."""
    child = _started.get(pid)
    if child is not None and child.poll() is not None:
        del _started[pid]


def is_alive(pid: int, started_s: float) -> bool:
    """Whether `pid` is still the process that was created at `started_s` (a pid may be given out again)."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started_s) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now; another program may still take one before we do.

    Not those that the system gives to outgoing connections: while a broker is down, one of its own clients that tries
    to connect could be given the broker's port, and the broker would not come back.
    """
    held: list[socket.socket] = []
    choices = _quiet_ports()
    try:
        for _ in range(count):
            held.append(_bound(choices))
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()


def _bound(ports: Sequence[int]) -> socket.socket:
    """A socket at one of `ports` that is free. Raises OSError when none is found."""
    for left in reversed(range(_PORT_TRIES)):
        found = socket.socket()
        try:
            found.bind(("127.0.0.1", _draw.choice(ports)))
            return found
        except OSError:
            found.close()
            if not left:
                raise
    raise AssertionError("a try returns or raises")


def _quiet_ports() -> Sequence[int]:
    """Ports below those of outgoing connections; (0,), any, where few are left there."""
    try:
        first_outgoing = int(_OUTGOING_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # not Linux: most systems begin at 49152
        first_outgoing = 32_768
    return range(_QUIET_PORTS_FROM, first_outgoing) if first_outgoing > _QUIET_PORTS_FROM + 1_000 else (0,)


def port_in_use(port: int) -> bool:
    """Whether somebody listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Poll `condition`; True as soon as it holds, False when the time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every_s)
    return condition()
