"""The learner as a command: what a person sees when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas import signing_keys

ROOT = Path(__file__).resolve().parents[2]


def learn(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "learner"], env=environment | variables, cwd=ROOT, capture_output=True, text=True
    )


def test_no_broker_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    signing_keys.create_keys(tmp_path)
    done = learn(
        HEADRACE_BOOTSTRAP="127.0.0.1:1",
        HEADRACE_STATE_DIR=str(tmp_path),
        HEADRACE_SIGNING_KEY=str(tmp_path / signing_keys.PRIVATE_KEY_FILE),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("headrace learn: no Kafka broker answers at 127.0.0.1:1")
    assert "headrace broker start" in done.stderr


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "no key to sign snapshots with"),
        ({"HEADRACE_SIGNING_KEY": "nowhere.pem"}, "key nowhere.pem cannot be read"),
        ({"HEADRACE_CHECKPOINT_DIR": "/dev/null/checkpoints"}, "checkpoints cannot be written to /dev/null"),
        ({"HEADRACE_THREADS": "none"}, "setting HEADRACE_THREADS"),
    ],
)
def test_bad_setting_is_one_line_and_exit_code_1(tmp_path: Path, variables: dict[str, str], sentence: str) -> None:
    done = learn(HEADRACE_STATE_DIR=str(tmp_path), **variables)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr
