"""The whole loop with its real processes: each is killed once in mid-run, nothing is lost, doubled, learnt twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from deploy import demo_report, processes, stack
from deploy.audit import audit
from deploy.watch import Figures, Watch
from schemas.topics import topic
from tests.end_to_end.loop import EXAMPLE, Loop

MESSAGES = 2_000
RATE_PER_S = 40
KILLS = ("join", "decide", "learn", "broker")
BETWEEN_KILLS_S = 4.0
OUTAGE_S = 60.0
"""How long the broker is gone: workers and learner wait, and come back by themselves."""
READY_S = 180.0
DRAIN_S = 90.0


def _kill(loop: Loop, name: str) -> None:
    """One of them; all others wait for the broker and live on."""
    if name != "broker":
        loop.kill(name)
        loop.start(name)
        return
    bootstrap = loop.kill_broker()
    time.sleep(OUTAGE_S)
    assert all(child.poll() is None for child in loop.children.values()), loop.said()
    loop.start_broker(bootstrap)


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


@pytest.mark.timeout(600)
def test_each_process_killed_once_in_mid_run_leaves_a_clean_audit(loop: Loop) -> None:
    assert processes.wait_until(lambda: all(map(loop.is_ready, stack.PROCESSES)), READY_S), loop.said()
    figures = Figures()
    watch = Watch(loop.ready.settings, figures).start()
    shop = _open_shop(loop)
    try:
        for name in KILLS:
            time.sleep(BETWEEN_KILLS_S)
            _kill(loop, name)
            back = processes.wait_until(lambda: all(map(loop.is_ready, stack.PROCESSES)), READY_S)
            assert back, f"not ready {READY_S:.0f} s after the kill of {name}\n{loop.said()}"
        assert processes.wait_until(lambda: shop.poll() is not None, 240), loop.said()
        assert shop.returncode == 0, (loop.folder / "shop.log").read_text()
        drained = processes.wait_until(lambda: loop.is_drained(figures), DRAIN_S, 0.25)
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
