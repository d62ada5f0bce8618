"""A process that is told to stop before it serves ends at once, with code 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas import early_stop
from schemas.signing_keys import create_keys

ROOT = Path(__file__).parents[2]


def _hears_sigterm(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("words", [["worker", "decide"], ["worker", "ingest", "join"], ["learn"]], ids=" ".join)
def test_a_process_that_waits_for_its_broker_ends_in_order(words: list[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HEADRACE_BOOTSTRAP": "127.0.0.1:1",
        "HEADRACE_BROKER_WAIT_S": "100",
        "HEADRACE_STATE_DIR": str(tmp_path),
        "HEADRACE_SIGNING_KEY": str(create_keys(tmp_path / "keys")[0]),
        "HEADRACE_METRICS_PORT": "0",
    }
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


def test_afterwards_signals_go_where_they_went_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with early_stop.ending_at_once():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
