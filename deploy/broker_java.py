"""Kafka's Java programs: the command line, formatting a node's data, launching a node, reading what it complains of.

Does not know which nodes there are or when one is ready: `deploy.broker`.
"""

from __future__ import annotations

import re
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path

import psutil

from deploy import broker_cache, broker_layout, kafka_jars, processes
from deploy.broker_layout import Layout
from schemas.errors import UserError

_FRAME = re.compile(r"\s+at |\s*\.\.\. \d+ more")
"""Lines of a stack that say where, not what."""
JVM_FLAGS = ("-Xms128m", "-Xmx1g", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")

_LOG4J = """\
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={folder}/broker.log
appender.file.filePattern={folder}/broker.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %c{{1}}: %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=WARN
rootLogger.appenderRef.file.ref=file
"""


def cluster_id() -> str:
    """A random cluster id as Kafka writes it: 16 bytes in URL-safe base64, never starting with a dash.

    kafka-storage takes a leading dash for an option; Kafka's own Uuid.randomUuid draws again for that reason.
    """
    while True:
        drawn = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not drawn.startswith("-"):
            return drawn


def command() -> list[str]:
    """Java with the jars on its path. Raises `UserError` when one is missing."""
    jars, java = kafka_jars.resolve(), kafka_jars.java()
    return [str(java), *JVM_FLAGS, "-cp", ":".join(map(str, jars))]


def write_log_settings(folder: Path) -> None:
    """Settings of the log that the nodes of `folder` share."""
    (folder / "log4j2.properties").write_text(_LOG4J.format(folder=folder.resolve()))


def format_data(command: Sequence[str], layout: Layout, node_id: int) -> None:
    """Give the node's log directory the cluster's id, once."""
    folder, home = layout.folder, layout.home(node_id)
    if (layout.data_folder(node_id) / "meta.properties").exists():
        return
    cluster = folder / "cluster.id"
    if not cluster.exists():
        cluster.write_text(cluster_id())
    properties = ["-c", str(home / "server.properties")]
    arguments = ["format", *layout.format_arguments(node_id), "-t", cluster.read_text(), *properties]
    flags = [f"-Dlog4j2.configurationFile={folder.resolve() / 'log4j2.properties'}", "-XX:TieredStopAtLevel=1"]
    shown = subprocess.run(
        [*command, *flags, "kafka.tools.StorageTool", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # Ctrl-C reaches only us, as in `processes.spawn`: else it looks like a broker's fault
    )
    if shown.returncode:
        raise failed(shown.stdout + shown.stderr, folder)


def launch(
    command: Sequence[str], folder: Path, node_id: int, tied: bool, java_flags: Sequence[str] = ()
) -> psutil.Process:
    """Start one node, from the cache of `broker_cache` without flags; its console output goes to ``console.log``."""
    home = broker_layout.home(folder, node_id)
    flags = [f"-Dlog4j2.configurationFile={folder.resolve() / 'log4j2.properties'}"]
    flags += java_flags or broker_cache.flags(command)
    with (home / "console.log").open("wb") as console:
        started = processes.spawn(
            [*command, *flags, "kafka.Kafka", home / "server.properties"], console, tied=tied, folder=home
        )
    return psutil.Process(started.pid)


def failed(said: str, where: Path) -> UserError:
    """One sentence out of what Java printed; `where` is the broker's folder, not a node's."""
    if "Address already in use" in said:
        return UserError(
            "the broker's port is in use: another program took it first", "Try again, or name another one with --port"
        )
    if "No space left on device" in said:
        return UserError(f"the disk of {where} is full", "Free some space or name another folder with --folder")
    if "Invalid cluster.id" in said or "already formatted" in said:
        return UserError(f"the data in {where} belong to another cluster", f"Delete {where} or name another folder")
    lines = [line for line in said.splitlines() if not _FRAME.match(line)]
    lines = [line for line in lines if "ERROR" in line or "Exception" in line or "error" in line]
    last = lines[-1].strip()[:300] if lines else "it ended without a word" if not said else said.splitlines()[-1][:300]
    return UserError(
        f"the broker did not start: {last}", f"Its log is {where}/broker.log, its console node-1/console.log"
    )
