"""Real worker processes for the tests: start, wait until ready, kill, stop, read metrics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from deploy import processes, reading
from deploy.applying import apply
from schemas.bounds import BadRecord
from schemas.codec import decode, encode
from schemas.records import DeadLetter
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project, parse
from schemas.topics import topic

REGISTRY = FileRegistry()
START = """
import sys
from schemas.errors import UserError
from schemas.last_resort import end
from schemas.settings import load_settings
from streams.app import run
from streams.settings import WorkerSettings
try:
    end(run(set(sys.argv[1].split("+")), load_settings(WorkerSettings)))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""

SUPPORT = """
[namespace]
name = "{namespace}"
partitions = {partitions}
tick = "100ms"

[[tasks]]
name = "support"
kind = "choice"
actions = ["a", "b", "c"]
[tasks.context]
price = {{ kind = "number" }}
[tasks.reward]
window = "{window}"
default = 0.0
[tasks.reward.outcomes.resolved]
aggregate = "max"
weight = 1.0
binary = true
"""


def project(namespace: str, partitions: int = 4, window: str = "1s", more: str = "") -> Project:
    """A small project of one task."""
    return parse(SUPPORT.format(namespace=namespace, partitions=partitions, window=window) + more)


def set_up(broker: str, wanted: Project) -> CommonSettings:
    """Topics and definitions of a project, as `headrace topics apply` and `headrace apply` make them."""
    from deploy import topics

    settings = load_settings(CommonSettings, bootstrap=broker, namespace=wanted.namespace.name)
    topics.apply(settings, wanted)
    apply(settings, wanted)
    return settings


def free_port() -> int:
    (port,) = processes.free_ports(1)
    return port


class WorkerProcess:
    """`headrace worker <roles>` without the command line."""

    script = START

    def __init__(self, roles: str, settings: CommonSettings, folder: Path, **environment: Any) -> None:
        self.port = free_port()
        self.log = folder / f"{roles}-{self.port}.log"
        values = {
            "bootstrap": settings.bootstrap,
            "namespace": settings.namespace,
            "state_dir": folder / f"state-{self.port}",
            "metrics_port": self.port,
            "session_timeout_s": 6,
            "heartbeat_s": 1,
            **environment,
        }
        env = {**os.environ, **{f"HEADRACE_{name.upper()}": str(value) for name, value in values.items()}}
        env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.script, roles], env=env, stdout=out, stderr=subprocess.STDOUT
            )

    def wait_ready(self, timeout_s: float = 60.0) -> WorkerProcess:
        """Until /ready says so."""
        until(lambda: self.get("/ready")[0] == 200 or self.process.poll() is not None, timeout_s, self.said)
        assert self.process.poll() is None, self.said()
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of the metrics port; (0, "") while it is closed."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(map(float, lines))

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s: float = 15.0) -> tuple[int, float]:
        """SIGTERM; (exit code, seconds it took)."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s), time.monotonic() - started

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill()


@contextmanager
def worker(roles: str, settings: CommonSettings, folder: Path, **environment: Any) -> Iterator[WorkerProcess]:
    """A worker that is ready, and dead afterwards."""
    made = WorkerProcess(roles, settings, folder, **environment)
    try:
        yield made.wait_ready()
    finally:
        made.end()


def until(met: Callable[[], bool], timeout_s: float = 30.0, explain: Callable[[], str] = str) -> None:
    """Wait for a condition; AssertionError with `explain` when it does not come."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if met():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {explain()[-3000:]}")


def _decoded(value: bytes | None) -> Any:
    try:
        return decode(value or b"", REGISTRY)
    except BadRecord as error:
        return error


def read_all(settings: CommonSettings, name: str, num_at_least: int = 0, timeout_s: float = 30.0) -> list[Any]:
    """Every record of a topic of ours, decoded, with where it stood: (partition, offset, time, record or BadRecord)."""
    full = name if "." in name else topic(settings.namespace, name)
    end = time.monotonic() + timeout_s
    while True:
        found = [
            (entry.partition, entry.offset, entry.time_ms, _decoded(entry.value))
            for entry in reading.read_all(settings, full)
        ]
        if len(found) >= num_at_least:
            return sorted(found, key=lambda each: each[:2])
        if time.monotonic() > end:
            raise AssertionError(f"{full}: {len(found)} records within {timeout_s:g} s, expected {num_at_least}")
        time.sleep(0.2)


def bad_records(good: bytes) -> list[tuple[bytes | None, str]]:
    """What may stand in a topic of ours where `good` should, and why it cannot be used."""
    return [
        (None, "empty"),
        (b"", "empty"),
        (b"{}", "bad-magic"),
        (b"\0\0\0", "truncated"),
        (b"\0\xff\xff\xff\xff", "unknown-schema"),
        (good[:-1], "truncated"),
        (good[:20], "truncated"),
        (good + b"\0", "trailing-bytes"),
        (encode(DeadLetter("t", 0, 0, "r", "d", b"", b"", 0), REGISTRY), "wrong-type"),
        (b"\0" + bytes(200), "unknown-schema"),
        (good[:5] + b"\xff" * 20, "bad-varint"),
        (good[:5] + b"\x01" + good[6:], "negative-length"),
    ]


def producer(settings: CommonSettings, **options: Any) -> Producer:
    """As a shop has it."""
    return Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 5, "enable.idempotence": True, **options})
