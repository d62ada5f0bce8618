"""SIGTERM while the broker is silent: every process ends within ten seconds, in mid-stream and at its start.

Silent is worse than gone: no connection breaks, and every call waits for its own timeout.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import processes
from tests.end_to_end.load import Load
from tests.end_to_end.loop import EXAMPLE, Loop

COMMANDS = {
    "both": ["worker", "ingest", "join"],
    "ingest": ["worker", "ingest"],
    "join": ["worker", "join"],
    "decide": ["worker", "decide"],
    "learn": ["learn"],
}
RATE_PER_S = 300.0
READY_S = 180.0
STOP_S_MAX = 10.0


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Each role in a process of its own, and ingest and join in one."""
    running = Loop(tmp_path, COMMANDS)
    try:
        yield running
    finally:
        running.end()
        running.ready.close()


def stop_all(loop: Loop) -> dict[str, tuple[int, float]]:
    """SIGTERM to all; exit code and seconds of each."""
    begun_s = time.monotonic()
    for child in loop.children.values():
        child.terminate()
    ended: dict[str, tuple[int, float]] = {}
    while len(ended) < len(COMMANDS) and time.monotonic() - begun_s < 3 * STOP_S_MAX:
        for name, child in loop.children.items():
            if name not in ended and child.poll() is not None:
                ended[name] = child.returncode, time.monotonic() - begun_s
        time.sleep(0.02)
    return ended


def check(loop: Loop, ended: dict[str, tuple[int, float]]) -> None:
    print({name: f"code {code} after {seconds:.1f} s" for name, (code, seconds) in ended.items()})
    assert ended.keys() == COMMANDS.keys(), loop.said()
    late = {name: seconds for name, (_, seconds) in ended.items() if seconds >= STOP_S_MAX}
    assert not late, f"{late}\n{loop.said()}"
    assert {code for code, _ in ended.values()} <= {0, 1}, f"{ended}\n{loop.said()}"


@pytest.mark.timeout(400)
def test_told_to_stop_while_the_broker_is_silent_every_process_ends_within_ten_seconds(loop: Loop) -> None:
    assert processes.wait_until(lambda: all(map(loop.is_ready, COMMANDS)), READY_S), loop.said()
    load = Load(loop.ready.settings, EXAMPLE / "train.csv")
    load.rate_per_s = RATE_PER_S
    load.start()
    assert processes.wait_until(lambda: load.num_answers > 5 * RATE_PER_S, READY_S), loop.said()
    loop.silence_broker(signal.SIGSTOP)
    try:
        time.sleep(1.0)
        check(loop, stop_all(loop))
        for name in COMMANDS:
            loop.start(name)
        time.sleep(3.0)
        check(loop, stop_all(loop))
    finally:
        loop.silence_broker(signal.SIGCONT)
    load.rate_per_s = 0.0
    for name in COMMANDS:
        loop.start(name)
    assert processes.wait_until(lambda: load.num_unanswered == 0, READY_S), load.unanswered()
    load.close()
    time.sleep(1.0)
    ended = stop_all(loop)
    check(loop, ended)
    assert {code for code, _ in ended.values()} == {0}, f"{ended}\n{loop.said()}"
