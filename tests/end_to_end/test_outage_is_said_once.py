"""A minute without a broker: each process says so once, says once that it is over, and nothing is lost.

The same with a broker that is there and silent (its machine hangs): no connection breaks, and no answer comes.

Every line counts that a process writes between the broker's end and its return, whoever of its clients writes it and
at whatever level; and after that every warning.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import processes
from deploy.audit import audit
from deploy.watch import Figures, Watch
from tests.end_to_end.load import Load
from tests.end_to_end.loop import EXAMPLE, Loop

COMMANDS = {
    "ingest": ["worker", "ingest"],
    "join": ["worker", "join"],
    "decide": ["worker", "decide"],
    "learn": ["learn"],
}
OUTAGE_S = float(os.environ.get("HEADRACE_TEST_OUTAGE_S", "60"))
"""A minute; shorter only for a try at one's desk."""
RATE_PER_S = 50.0
WARM_S = 5.0
READY_S = 180.0
BACK_S = 90.0
BEGINS, ENDS = "waiting for the broker, nothing is lost", "the broker answers again after"
SERVES = re.compile(r" INFO streams\.snapshots: snapshot \d+ serves ")
"""What a decider says all the time while a learner learns."""
LEVEL = re.compile(r"^\d{4}-\S+ \S+ (DEBUG|INFO) ")
"""How a line begins that is no complaint; tracebacks, and what a library writes by itself, do not begin so."""


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Each role in a process of its own."""
    running = Loop(tmp_path, COMMANDS)
    try:
        yield running
    finally:
        running.end()
        running.ready.close()


@contextmanager
def without_broker(loop: Loop, how: str) -> Iterator[None]:
    """Killed and started again, or stopped and continued: then it keeps its connections and answers nothing."""
    if how == "killed":
        bootstrap = loop.kill_broker()
        yield
        loop.start_broker(bootstrap)
    else:
        loop.silence_broker(signal.SIGSTOP)
        try:
            yield
        finally:
            loop.silence_broker(signal.SIGCONT)


class Said:
    """What the processes write from now on, line by line."""

    def __init__(self, loop: Loop) -> None:
        self._logs = {name: loop.folder / f"{name}.log" for name in COMMANDS}
        self._sizes = {name: log.stat().st_size for name, log in self._logs.items()}

    def lines(self) -> dict[str, list[str]]:
        texts = {
            name: log.read_bytes()[self._sizes[name] :].decode(errors="replace") for name, log in self._logs.items()
        }
        return {name: [line for line in text.splitlines() if not SERVES.search(line)] for name, text in texts.items()}

    def is_over(self) -> bool:
        """Whether each that said that it misses the broker has said that it is back."""
        return all(
            any(BEGINS in line for line in lines) == any(ENDS in line for line in lines)
            for lines in self.lines().values()
        )


@pytest.mark.timeout(500)
@pytest.mark.parametrize(("how", "seconds"), [("killed", OUTAGE_S), ("silent", OUTAGE_S / 2)])
def test_without_a_broker_each_process_says_two_lines_and_nothing_is_lost(
    loop: Loop, how: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "headrace.reading")  # our own reader, which tries to connect all the time
    assert processes.wait_until(lambda: all(map(loop.is_ready, COMMANDS)), READY_S), loop.said()
    figures = Figures()
    watch = Watch(loop.ready.settings, figures).start()
    load = Load(loop.ready.settings, EXAMPLE / "train.csv")
    load.rate_per_s = RATE_PER_S
    load.start()
    try:
        assert processes.wait_until(lambda: figures.serving_version > 0, READY_S), loop.said()
        time.sleep(WARM_S)
        said = Said(loop)
        with without_broker(loop, how):
            time.sleep(seconds)
            during, version = said.lines(), figures.published_version
        back = processes.wait_until(lambda: load.num_unanswered < RATE_PER_S, BACK_S)
        assert back, f"{load.num_unanswered} wait\n{loop.said()}"
        time.sleep(WARM_S)
        load.rate_per_s = 0.0
        assert processes.wait_until(lambda: load.num_unanswered == 0, BACK_S), load.unanswered()
        assert processes.wait_until(lambda: loop.is_drained(figures), BACK_S, 0.25), loop.said()
        assert processes.wait_until(lambda: figures.published_version > version, BACK_S), loop.said()
        assert processes.wait_until(said.is_over, BACK_S), loop.said()
    finally:
        watch.close()
    load.close()
    for name, lines in said.lines().items():
        wrote = f"{name} wrote\n" + "\n".join(lines)
        complaints = [line for line in lines if not LEVEL.match(line)]
        assert len(complaints) <= 1, wrote
        assert all(BEGINS in line for line in complaints), wrote
        assert len([line for line in lines if ENDS in line]) == len(complaints), wrote
        assert during[name] == complaints[: len(during[name])], wrote
        if how == "killed":  # one that is silent is missed only by who waits for an answer
            assert len(during[name]) == 1, wrote
    assert loop.end() == dict.fromkeys(COMMANDS, 0), loop.said()
    assert not load.failures
    assert figures.num_decisions == len(load.asked), "each request is decided once"
    assert audit(loop.ready.settings).verdict == "clean"
