"""The campaign itself: what a seed leaves behind, and what is left of its processes however they end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.simulation.campaign import Campaign, CampaignDied, run_seed
from tests.simulation.campaign_process import NICE
from tests.simulation.join_worker import JoinWorker


def num_workers() -> int:
    gc.collect()
    return sum(type(each) is JoinWorker for each in gc.get_objects())


def test_a_seed_that_is_over_leaves_no_worker_behind() -> None:
    """One bad record, raised again and again, once kept every process that had read it: 2 GB in 25,000 seeds."""
    before = num_workers()
    for seed in range(40):
        run_seed(seed)
    assert num_workers() == before


def processes_of(pid: int) -> set[psutil.Process]:
    """Those that run seeds."""
    found = set()
    for each in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # one that has just ended, of another test's perhaps, has no command line
            if any("spawn_main" in word for word in each.cmdline()):
                found.add(each)
    return found


@pytest.fixture
def begun() -> Iterator[tuple[Campaign, set[psutil.Process]]]:
    """A campaign that is not over soon, and its processes."""
    before = processes_of(os.getpid())
    campaign = Campaign(0, 100_000)
    yield campaign, processes_of(os.getpid()) - before
    campaign.stop()


def test_a_stopped_campaign_leaves_no_process(begun: tuple[Campaign, set[psutil.Process]]) -> None:
    campaign, processes = begun
    assert len(processes) >= 2
    campaign.stop()
    assert not [each for each in processes if each.is_running()]


def test_a_process_that_dies_ends_the_campaign(begun: tuple[Campaign, set[psutil.Process]]) -> None:
    campaign, processes = begun
    processes.pop().kill()
    with pytest.raises(CampaignDied, match="terminated abruptly"):
        campaign.wait(lambda _: None)
    assert not [each for each in processes if each.is_running()]


def test_the_output_of_a_process_that_dies_is_told(begun: tuple[Campaign, set[psutil.Process]]) -> None:
    campaign, processes = begun
    crashed = processes.pop()
    wait_until(lambda: crashed.nice() == NICE and crashed.num_threads() > 1)
    crashed.send_signal(signal.SIGSEGV)
    with pytest.raises(CampaignDied, match="Segmentation fault"):
        campaign.wait(lambda _: None)


def test_the_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.simulation", "0", "100000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}) as started:
        wait_until(lambda: len(processes_of(started.pid)) >= 2)
        processes = processes_of(started.pid)
        started.kill()
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # as long as a test may take
        time.sleep(0.05)
