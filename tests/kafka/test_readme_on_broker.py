"""What the README shows, done: `headrace up`, the shop's program twice in a row, what it names to look at it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.cli.entry import run
from deploy.supervisor import Supervisor
from schemas.blocks import TransitionBlock
from schemas.records import DecisionBucket
from schemas.settings import CommonSettings, load_settings
from tests.kafka.workers import read_all, until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
READY_S = 300.0
"""As in the demo: a machine that has never run it compiles first."""


def _block(language: str) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in found if "coupon" in text)


class Up:
    """`headrace up` on the README's task."""

    def __init__(self, bootstrap: str, lines: list[str]) -> None:
        self.bootstrap = bootstrap
        self.lines = lines
        """What it has said so far."""

    def place(self, text: str) -> int:
        """Number of the first line that holds `text`."""
        return next(number for number, line in enumerate(self.lines) if text in line)

    @property
    def exported(self) -> dict[str, str]:
        """What it tells to export."""
        return dict(found.groups() for line in self.lines if (found := re.search(r"\bexport (\w+)=(\S+)$", line)))


@pytest.fixture(scope="module")
def up(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    (folder / "headrace.toml").write_text(_block("toml"))
    lines: list[str] = []
    with Supervisor(lines.append) as supervisor:
        arguments = ["up", str(folder / "headrace.toml"), "--bootstrap", broker, "--state-dir", str(folder / "state")]
        child = supervisor.start("up", arguments)
        until(
            lambda: "export HEADRACE_NAMESPACE" in "".join(lines) or child.code is not None,
            READY_S,
            lambda: "\n".join(lines),
        )
        yield Up(broker, lines)


def _shop(up: Up) -> str:
    """What the README's program prints."""
    program = _block("python").replace("127.0.0.1:9092", up.bootstrap)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_up_says_what_it_starts_then_what_is_ready_then_what_to_export(up: Up) -> None:
    assert up.place("starting ingest+join, decide, learn") < min(
        up.place(f"headrace | {role} is ready after") for role in ("ingest+join", "decide", "learn")
    )
    assert up.place("headrace | ready: shop.requests are answered") < up.place("export HEADRACE_BOOTSTRAP")
    assert up.exported == {"HEADRACE_BOOTSTRAP": up.bootstrap, "HEADRACE_NAMESPACE": "shop"}


def test_the_readmes_program_prints_its_decision_each_time_and_its_outcome_is_joined(up: Up) -> None:
    printed = [_shop(up), _shop(up)]

    assert all("'task': 'coupon'" in each and "'propensities'" in each for each in printed), printed
    settings = load_settings(CommonSettings, bootstrap=up.bootstrap, namespace="shop")
    until(lambda: _num_joined(settings) == len(printed), 60, lambda: "\n".join(up.lines))


def _num_joined(settings: CommonSettings) -> int:
    blocks = [found for *_, found in read_all(settings, "transitions") if isinstance(found, TransitionBlock)]
    return sum(int((block.buckets == DecisionBucket.JOINED).sum()) for block in blocks)


def test_the_first_start_of_the_operations_page_ends_in_an_answer(broker: str, namespace: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    lines = re.findall(r"## First start\n+```sh\n(.*?)```", page, re.DOTALL)[0]
    lines = lines.replace("127.0.0.1:9092", broker).replace("=shop ", f"={namespace} ")
    (tmp_path / "headrace.toml").write_text(_block("toml").replace('"shop"', f'"{namespace}"'))
    command = tmp_path / "headrace"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m deploy "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "first-start.log"
    with log.open("wb") as said:
        shell = subprocess.Popen(
            ["sh", "-ec", lines], cwd=tmp_path, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    flags = ["--bootstrap", broker, "--namespace", namespace, "--timeout", "5"]
    try:
        until(lambda: shell.poll() is not None or run(["ask", "{}", *flags]) == 0, READY_S, log.read_text)
        assert shell.poll() is None, log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait(10)


def test_status_shows_the_namespace_with_what_up_tells_to_export(up: Up) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "status", "--once"],
        env={**os.environ, **up.exported},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "shop.journal" in done.stdout
