"""Two minutes without a broker, no learner, then ten times the load: every request is answered, memory stays flat.

The shop never stops asking: what it cannot send waits in its client's queue. RSS of a worker is compared at two moments
of the same kind: under steady load, after as many requests at once as two minutes without a broker leave behind and
some seconds of ten times the load were answered. So at both every array and queue has once had the size that such a
load needs. Between them lies the outage, with the flood that waited for its end, without a learner: what waits must not
be what a worker's memory grows with.
"""

from __future__ import annotations

import logging
import os
import statistics
import time

import psutil
import pytest

from deploy import processes, stack
from deploy.audit import audit
from deploy.watch import Figures, Watch
from tests.end_to_end.load import Load
from tests.end_to_end.loop import EXAMPLE, Loop

RATE_PER_S = 100.0
OVERLOAD = 10
OUTAGE_S = float(os.environ.get("HEADRACE_TEST_OUTAGE_S", "120"))
"""Two minutes; shorter only for a try at one's desk."""
OUTAGE_RATE_PER_S = 200.0
"""People who get no answer ask again."""
AT_ONCE = int(OUTAGE_RATE_PER_S * OUTAGE_S)
WARM_S = 15.0
BURST_S = 8.0
STEADY_S = 5.0
READY_S = 180.0
ANSWERED_S = 60.0
RSS_GROWTH_MAX = 0.10
WORKERS = ("decide", "join")
"""`join` plays ingest too."""


def _rss(loop: Loop) -> dict[str, float]:
    """Median of each worker's RSS in MiB over two seconds."""
    samples: dict[str, list[int]] = {name: [] for name in WORKERS}
    for _ in range(10):
        for name in WORKERS:
            samples[name].append(psutil.Process(loop.children[name].pid).memory_info().rss)
        time.sleep(0.2)
    return {name: statistics.median(found) / (1 << 20) for name, found in samples.items()}


def _run_phase(load: Load, phase: str, rate_per_s: float, seconds: float) -> None:
    load.phase, load.rate_per_s = phase, rate_per_s
    time.sleep(seconds)
    assert load.failure is None, load.failure


def _burst(loop: Loop, load: Load, phase: str) -> dict[str, float]:
    """Many at once and ten times the load until all of it is answered, then steady load; RSS during the latter."""
    load.phase, load.num_at_once = phase, AT_ONCE
    _run_phase(load, phase, OVERLOAD * RATE_PER_S, BURST_S)
    _run_phase(load, f"after {phase}", RATE_PER_S, 0.0)
    answered = processes.wait_until(lambda: load.num_unanswered < RATE_PER_S, ANSWERED_S)
    assert answered, f"{load.num_unanswered} requests wait\n{loop.said()}"
    _run_phase(load, f"after {phase}", RATE_PER_S, STEADY_S)
    return _rss(loop)


def _break(loop: Loop, load: Load) -> None:
    """The learner dies for good, then the broker for two minutes, with the shop asking all the time."""
    loop.kill("learn")
    del loop.children["learn"]
    _run_phase(load, "no learner", RATE_PER_S, 2.0)
    bootstrap = loop.kill_broker()
    _run_phase(load, "outage", OUTAGE_RATE_PER_S, OUTAGE_S)
    load.rate_per_s = RATE_PER_S
    assert all(child.poll() is None for child in loop.children.values()), loop.said()
    loop.start_broker(bootstrap)
    answered = processes.wait_until(lambda: load.num_unanswered < RATE_PER_S, ANSWERED_S)
    assert answered, f"{load.num_unanswered} requests wait\n{loop.said()}"


@pytest.mark.timeout(600)
def test_without_broker_and_learner_and_under_ten_times_the_load_every_request_is_answered(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "headrace.reading")  # our own reader, which tries to connect all the time
    assert processes.wait_until(lambda: all(map(loop.is_ready, stack.PROCESSES)), READY_S), loop.said()
    figures = Figures()
    watch = Watch(loop.ready.settings, figures).start()
    load = Load(loop.ready.settings, EXAMPLE / "train.csv")
    load.start()
    try:
        _run_phase(load, "warm", RATE_PER_S, WARM_S)
        # A fresh checkout compiles the learner's kernels first, beside everything else.
        assert processes.wait_until(lambda: figures.serving_version > 0, READY_S), loop.said()
        steady = _rss(loop)
        before = _burst(loop, load, "warm burst")
        version = figures.serving_version
        _break(loop, load)
        mended = _rss(loop)
        after = _burst(loop, load, "overload")
        load.rate_per_s = 0.0
        assert processes.wait_until(lambda: load.num_unanswered == 0, ANSWERED_S), load.unanswered()
        drained = processes.wait_until(lambda: loop.is_drained(figures), 60, 0.25)
        assert drained, f"{figures.buckets()} {figures.num_decisions}\n{loop.said()}"
    finally:
        watch.close()
    load.close()
    assert loop.end() == dict.fromkeys(WORKERS, 0), loop.said()

    for phase, reasons in load.reasons.items():
        told = f"{reasons.total():6d} answered, baseline share {load.share(phase):6.1%}, {dict(reasons)}"
        print(f"{phase:>18}: {told}")
    for name in WORKERS:
        growth = after[name] / before[name] - 1
        shown = (
            f"{steady[name]:.1f} warm, {before[name]:.1f} warm burst, {mended[name]:.1f} outage, {after[name]:.1f} end"
        )
        print(f"{name:>18}: RSS in MiB: {shown}: {growth:+.1%}")
    assert not load.failures
    assert sum(reasons.total() for reasons in load.reasons.values()) == len(load.asked)
    assert load.reasons["outage"].total() > 0.9 * OUTAGE_RATE_PER_S * OUTAGE_S
    assert figures.num_decisions == len(load.asked), "each request is decided once"
    assert load.reasons["after overload"]["policy"] > 0, "the last policy goes on serving"
    assert set(load.versions["after overload"]) <= {0, figures.serving_version}
    assert figures.serving_version >= version > 0
    for name in WORKERS:
        assert after[name] < (1 + RSS_GROWTH_MAX) * before[name], f"{name} grew from {before[name]:.1f} MiB"
    assert audit(loop.ready.settings).verdict == "clean"
