"""A process that is told to stop before it serves ends at once, with code 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.environment import MARK
from schemas import early_stop
from schemas.signing_keys import create_keys

ROOT = Path(__file__).parents[2]

SIGNALLED = """
import os

again = os.execve
signalled = ["sh", "-c", 'kill -TERM $$; exec "$0" "$@"']
os.execve = lambda path, words, environment: again("/bin/sh", [*signalled, *words], environment)
"""
"""In a program, before its own words: it is told to stop after its first start and before its second."""


def _waiting(tmp_path: Path) -> dict[str, str]:
    """Settings of a process that waits for a broker which does not come."""
    return {
        "HEADRACE_BOOTSTRAP": "127.0.0.1:1",
        "HEADRACE_BROKER_WAIT_S": "100",
        "HEADRACE_STATE_DIR": str(tmp_path),
        "HEADRACE_SIGNING_KEY": str(create_keys(tmp_path / "keys")[0]),
        "HEADRACE_METRICS_PORT": "0",
    }


def _hears_sigterm(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("words", [["worker", "decide"], ["worker", "ingest", "join"], ["learn"]], ids=" ".join)
def test_a_process_that_waits_for_its_broker_ends_in_order(words: list[str], tmp_path: Path) -> None:
    environment = os.environ | _waiting(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", *words], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and not _hears_sigterm(process.pid):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "program",
    ["from deploy.cli import main; main()", "import runpy; runpy.run_module('learner', run_name='__main__')"],
    ids=["headrace learn", "python -m learner"],
)
def test_a_signal_between_two_starts_of_a_learner_is_heard_by_the_second(program: str, tmp_path: Path) -> None:
    """It starts itself again under the pins (`learner.environment`); an exec puts the default of each signal back."""
    environment = {name: value for name, value in os.environ.items() if name != MARK} | _waiting(tmp_path)
    words = [sys.executable, "-c", f"{SIGNALLED}{program}", "learn"]
    assert subprocess.run(words, env=environment, cwd=ROOT, timeout=60).returncode == 0


def test_afterwards_signals_go_where_they_went_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with early_stop.ending_at_once():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_in_the_first_moments_of_a_command_is_silent() -> None:
    """While it imports: another program stands in for the slowest import."""
    program = (
        "import os, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'deploy.cli.entry':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from deploy.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "status"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_afterwards_ctrl_c_goes_where_it_went_before() -> None:
    program = (
        "import os, signal\n"
        "from deploy import cli\n"
        "from deploy.cli import entry\n"
        "entry.run = lambda: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"True\n"
