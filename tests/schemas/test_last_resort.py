"""Whatever keeps a process that was told to stop, it ends in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from schemas.last_resort import GRACE_S

STOP_S = 1.0
SLACK_S = 4.0
"""For the start of an interpreter on a busy machine; what is waited for takes far longer."""
BEGIN = f"""
import ctypes, hashlib, logging, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from schemas.last_resort import LastResort, end
logging.basicConfig()
guard = LastResort({STOP_S})
"""
SENTENCE = b"stopping took longer than 1 s"


def start(script: str) -> subprocess.Popen[bytes]:
    """The script in a process of its own, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, float, bytes]:
    """(exit code, seconds from now, stderr)."""
    begun_s = time.monotonic()
    _, said = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - begun_s, said


def test_a_call_of_c_that_python_cannot_interrupt_is_ended_from_the_signal_on() -> None:
    process = start("""
signal.signal(signal.SIGTERM, lambda *_: None)
guard.hear()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2_000_000_000)
""")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, seconds, said = ended(process)
    assert code == 1
    assert 0.8 * STOP_S < seconds < STOP_S + SLACK_S
    assert SENTENCE in said


def test_a_call_of_c_that_keeps_the_interpreters_lock_is_ended_and_every_thread_is_told() -> None:
    process = start("""
guard.arm()
print("ready", flush=True)
ctypes.PyDLL(None).sleep(60)
""")
    code, seconds, said = ended(process)
    assert code == 1
    assert seconds < STOP_S + GRACE_S + SLACK_S
    assert b"most recent call first" in said


def test_the_interpreters_own_end_is_ended_too() -> None:
    process = start("""
class Client:
    def __del__(self):
        time.sleep(60)
client = Client()
guard.arm()
print("ready", flush=True)
""")
    code, seconds, _ = ended(process)
    assert code == 1
    assert seconds < STOP_S + GRACE_S + SLACK_S


def test_a_process_whose_work_is_done_waits_for_no_thread_and_loses_no_line() -> None:
    process = start("""
ThreadPoolExecutor().submit(time.sleep, 60)
print("ready", flush=True)
logging.warning("the last line")
print("and this", end="")
end(3)
""")
    code, seconds, said = ended(process)
    assert code == 3
    assert seconds < SLACK_S
    assert b"the last line" in said


def test_one_that_goes_on_with_something_else_is_left_alone() -> None:
    process = start(f"""
guard.arm()
guard.disarm()
print("ready", flush=True)
time.sleep({STOP_S + 2 * GRACE_S})
""")
    assert ended(process)[0] == 0
