"""The broker itself: restart, security, three of them, and `headrace up` leaving nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy import broker as local_broker
from deploy import processes, topics
from schemas.errors import UserError
from schemas.settings import CommonSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]


def test_data_and_port_outlive_a_stop_and_a_second_start_of_a_running_broker_is_refused(tmp_path: Path) -> None:
    first = local_broker.start(tmp_path, port=0, tied=True)
    try:
        settings = load_settings(CommonSettings, bootstrap=first.bootstrap, namespace="kept")
        topics.create(settings, partitions=1)
        with pytest.raises(UserError, match="a broker runs in"):
            local_broker.start(tmp_path, port=0)
        assert local_broker.stop(tmp_path)
        assert not any(psutil.pid_exists(node.pid) for node in first.nodes)

        again = local_broker.start(tmp_path, port=0, tied=True)

        assert again.bootstrap == first.bootstrap
        assert topics.check(settings, topics.empty_project("kept", 1)) == []
    finally:
        local_broker.stop(tmp_path)


def test_a_broker_starts_from_the_folder_that_one_is_in(tmp_path: Path) -> None:
    """As a newcomer types it: no folder named, so it is a relative one."""

    def headrace(*words: str) -> str:
        command = [sys.executable, "-m", "deploy", "broker", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = tmp_path / ".headrace" / "broker"
    try:
        started = json.loads(headrace("start", "--port", "0", "--json"))
        assert started["folder"] == str(folder)
        assert local_broker.answers(started["bootstrap"], {}, 5) == 1
        assert started["bootstrap"] in headrace("status")
    finally:
        assert local_broker.stop(folder)


def test_a_secure_broker_takes_only_who_knows_the_password(tmp_path: Path) -> None:
    running = local_broker.start(tmp_path, port=0, secure=True, tied=True)
    try:
        assert local_broker.answers(running.bootstrap, running.kafka_options, 5) == 1
        assert local_broker.answers(running.bootstrap, {}, 1) == 0
        wrong = {**running.kafka_options, "sasl.password": "guess"}
        assert local_broker.answers(running.bootstrap, wrong, 1) == 0
        assert (tmp_path / "security" / "security.json").stat().st_mode & 0o077 == 0
        assert (tmp_path / "broker.json").stat().st_mode & 0o077 == 0
    finally:
        local_broker.stop(tmp_path)


def test_three_brokers_hold_three_replicas(tmp_path: Path) -> None:
    running = local_broker.start(tmp_path, port=0, num_brokers=3, tied=True)
    try:
        settings = load_settings(CommonSettings, bootstrap=running.bootstrap, namespace="three")
        topics.create(settings, partitions=1)
        found = topics.admin(settings).list_topics(timeout=10).topics["three.journal"]
        assert len(found.partitions[0].replicas) == 3
    finally:
        local_broker.stop(tmp_path)


def test_ctrl_c_while_everything_runs_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text((ROOT / "examples" / "support" / "headrace.toml").read_text())
    up = subprocess.Popen(
        [sys.executable, "-m", "deploy", "up", str(tmp_path / "headrace.toml"), "--port", "0"],
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        cwd=tmp_path,
        start_new_session=True,
        text=True,
    )
    assert up.stderr is not None
    try:
        seen: list[str] = []
        for line in up.stderr:
            seen.append(line)
            if line.startswith("headrace | ready: "):
                break
        children = psutil.Process(up.pid).children(recursive=True)
        assert len(children) >= 4, seen

        os.kill(up.pid, signal.SIGINT)
        up.stderr.read()

        assert up.wait(60) == 0
        assert processes.wait_until(lambda: not any(child.is_running() for child in children), 5)
    finally:
        up.kill()
        up.stderr.close()


@pytest.mark.parametrize("heard_after", ["", "headrace | starting "], ids=["before", "while"])
def test_ctrl_c_before_everything_runs_ends_the_start_at_once(heard_after: str, tmp_path: Path) -> None:
    project = ROOT / "examples" / "support" / "headrace.toml"
    up = subprocess.Popen(
        [sys.executable, "-m", "deploy", "up", str(project), "--port", "0", "--state-dir", str(tmp_path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        text=True,
    )
    assert up.stderr is not None
    try:
        if heard_after:
            assert any(line.startswith(heard_after) for line in iter(up.stderr.readline, ""))
        else:  # the tool that formats its data, or the broker, is Java
            assert processes.wait_until(lambda: psutil.Process(up.pid).children() != [], 60)
        children = psutil.Process(up.pid).children(recursive=True)

        os.killpg(up.pid, signal.SIGINT)  # as a terminal does

        said = up.stderr.read()
        assert up.wait(30) == 130
        assert "Traceback" not in said
        assert "the broker did not start" not in said
        assert processes.wait_until(lambda: not any(child.is_running() for child in children), 5)
    finally:
        up.kill()
        up.stderr.close()
