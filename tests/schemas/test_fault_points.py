"""The debug hook: off unless armed, counts, signals, and names no point that is not in the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas import fault_points
from schemas.fault_points import POINTS, VARIABLE, Armed, parse

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from schemas.fault_points import reach
for k in range(1, 6):
    print(k, flush=True)
    reach("publish.before-manifest")
"""


def start(faults: str) -> subprocess.Popen[str]:
    env = {**os.environ, VARIABLE: faults, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_without_the_variable_nothing_is_armed() -> None:
    assert os.environ.get(VARIABLE) is None
    assert fault_points.reach is fault_points._off
    process = start("")
    assert process.communicate()[0].split() == ["1", "2", "3", "4", "5"]
    assert process.returncode == 0


def test_the_point_kills_when_it_is_reached_for_the_nth_time() -> None:
    process = start("publish.before-manifest=3")
    out, said = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert out.split() == ["1", "2", "3"]
    assert "fault point publish.before-manifest: SIGKILL" in said


def test_a_stopped_process_goes_on_when_it_is_told_to() -> None:
    process = start("publish.before-manifest=2:stop")
    assert process.stderr is not None
    assert "SIGSTOP" in process.stderr.readline()
    give_up = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1][0] != "T":
        assert time.monotonic() < give_up
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0].split() == ["1", "2", "3", "4", "5"]
    assert process.returncode == 0


def test_any_point_counts_for_the_star() -> None:
    sent: list[int] = []
    armed = Armed(parse("*=3:kill,checkpoint.after-write=1:stop"), sent.append)
    armed("checkpoint.before-write")
    armed("checkpoint.after-write")
    assert sent == [signal.SIGSTOP]
    armed("checkpoint.before-write")
    armed("checkpoint.before-write")
    assert sent == [signal.SIGSTOP, signal.SIGKILL]


@pytest.mark.parametrize("text", ["nowhere=1", "publish.before-manifest", "publish.before-manifest=0", "*=1:explode"])
def test_what_cannot_be_armed_ends_the_process_at_its_start(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        parse(text)
    process = start(text)
    out, said = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert said.startswith("headrace: ")
    assert "Traceback" not in said


def test_every_point_of_the_table_stands_in_the_code_and_the_other_way_round() -> None:
    texts = [
        path.read_text()
        for package in ("schemas", "streams", "learner", "deploy")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "fault_points.py"
    ]
    for text in texts:
        assert set(re.findall(r'\breach\(\s*"([^"]+)"', text)) <= set(POINTS)
    assert [name for name in POINTS if not any(f'"{name}"' in text for text in texts)] == []
