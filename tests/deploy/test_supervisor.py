"""Children: none is left behind, the first to end ends all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import processes
from deploy import supervisor as supervisor_module
from deploy.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


def test_when_one_child_ends_its_code_is_the_groups_and_the_others_are_ended() -> None:
    lines: list[str] = []
    with Supervisor(lines.append) as supervisor:
        sleeper = supervisor.start_command("sleeper", SLEEP)
        supervisor.start_command("failing", [sys.executable, "-c", "print('headrace: it broke'); raise SystemExit(3)"])
        assert supervisor.wait() == 3

    assert sleeper.code is not None
    assert any("it broke" in line and line.strip().startswith("failing") for line in lines)


def test_when_what_the_children_need_is_gone_they_end_and_it_is_said() -> None:
    lines: list[str] = []
    needed = processes.spawn(SLEEP, subprocess.DEVNULL)
    started_s = psutil.Process(needed.pid).create_time()
    with Supervisor(lines.append) as supervisor:
        sleeper = supervisor.start_command("sleeper", SLEEP)
        supervisor.need("broker", lambda: processes.is_alive(needed.pid, started_s))
        assert not supervisor.is_failing
        needed.kill()  # and nobody reaps it
        assert supervisor.wait() == 1
        assert supervisor.is_failing
    processes.end(needed.pid)

    assert sleeper.code is not None
    assert any("the broker has ended" in line for line in lines)


def test_a_zombie_of_another_parent_has_ended() -> None:
    """`headrace broker stop` ends the broker of a running `up`, whose child it is."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())

        assert processes.end(child, 5)

        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_last_words_are_the_error_and_not_what_follows_it() -> None:
    with Supervisor(lambda _: None) as supervisor:
        child = supervisor.start_command(
            "child", [sys.executable, "-c", "print('starting'); print('headrace: no broker.'); print('  Start one.')"]
        )
        supervisor.wait()

    assert child.last_words == "headrace: no broker."


def test_a_child_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STOP_S_MAX", "0.3")
    monkeypatch.setattr("deploy.supervisor.LATER_S", 0.2)
    lines: list[str] = []
    supervisor = Supervisor(lines.append)
    child = supervisor.start_command("stubborn", STUBBORN)
    assert processes.wait_until(lambda: "deaf" in " ".join(child.tail), 10)

    begun_s = time.monotonic()
    supervisor.end()

    assert child.code == -signal.SIGKILL
    assert time.monotonic() - begun_s < 5
    assert lines[-1] == "headrace | stubborn did not end within 0.5 s; killing it"


@pytest.mark.parametrize(("setting", "seconds"), [(None, 9.0), ("30", 30.0), ("soon", 9.0)])
def test_children_have_the_time_that_their_setting_gives_them(
    setting: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_STOP_S_MAX", raising=False)
    if setting is not None:
        monkeypatch.setenv("HEADRACE_STOP_S_MAX", setting)

    assert supervisor_module._stop_s() == seconds


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(1)", 1),
        ("raise SystemExit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)", 0),
    ],
)
def test_after_a_signal_the_groups_code_is_that_of_the_child_that_ended_worst(ending: str, code: int) -> None:
    program = f"""
import os, signal, time
def end(*_):
    {ending}
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start_command("sleeper", SLEEP)
        child = supervisor.start_command("child", [sys.executable, "-c", program])
        assert processes.wait_until(lambda: "up" in child.tail, 20)
        os.kill(os.getpid(), signal.SIGTERM)
        assert supervisor.wait() == code


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from deploy.supervisor import Supervisor
        supervisor = Supervisor()
        child = supervisor.start_command("child", [sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.process.pid, flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert processes.wait_until(lambda: not psutil.pid_exists(child), 10)


def test_an_interrupt_leaves_nothing_behind() -> None:
    program = textwrap.dedent(
        """
        import sys
        from deploy.supervisor import Supervisor
        with Supervisor() as supervisor:
            child = supervisor.start_command("child", [sys.executable, "-c", "import time; time.sleep(60)"])
            print(child.process.pid, flush=True)
            sys.exit(supervisor.wait())
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)

    os.kill(parent.pid, signal.SIGINT)

    assert parent.wait(20) == 0
    parent.stdout.close()
    assert not psutil.pid_exists(child)


def test_a_signal_while_no_child_runs_breaks_in() -> None:
    with Supervisor(lambda _: None) as supervisor:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert supervisor.is_stopping


def test_a_signal_in_the_middle_of_a_start_is_heard_after_it_and_no_child_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGINT)  # what a handler raised in a callback of the fork would be lost
        made.append(popen(*words, **options))
        return made[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with Supervisor(lambda _: None) as supervisor, pytest.raises(KeyboardInterrupt):
        supervisor.start_command("sleeper", SLEEP)

    assert made[0].returncode == -signal.SIGKILL


def test_a_pid_that_was_given_out_again_is_not_taken_for_ours() -> None:
    me = psutil.Process()

    assert processes.is_alive(me.pid, me.create_time())
    assert not processes.is_alive(me.pid, me.create_time() - 100)
