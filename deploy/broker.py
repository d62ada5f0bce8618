"""A real Apache Kafka on this machine, for development, tests and the demo.

Owns its configuration, start, readiness, state file and end. Every node is a KRaft broker; node 1 is also the only
controller, so three brokers show replication and failover of brokers, not of the controller (a simplification: the
controller of a real cluster is somebody else's work). Nothing listens but on the loopback.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from deploy import broker_security, kafka_jars, processes
from schemas.errors import UserError

JVM_FLAGS = ("-Xms128m", "-Xmx1g", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
READY_S = 60.0
DISK_FREE_BYTES_MIN = 512 << 20
"""Kafka stops with an unreadable trace when a log directory fills; refuse to start near it."""

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


@dataclass(frozen=True, slots=True)
class Node:
    """One broker process."""

    node_id: int
    port: int
    pid: int
    started_s: float
    """Creation time of the process, so that a pid given out again is not mistaken for it."""


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """What `start` leaves in ``broker.json`` and `status` reads back."""

    bootstrap: str
    folder: str
    nodes: tuple[Node, ...]
    kafka_options: dict[str, str] = field(default_factory=dict)
    """Client settings needed to connect (a secure broker's certificate and password)."""

    @property
    def is_alive(self) -> bool:
        """Whether every node still runs."""
        return all(processes.is_alive(node.pid, node.started_s) for node in self.nodes)


def start(
    folder: Path,
    port: int = 9092,
    num_brokers: int = 1,
    *,
    secure: bool = False,
    tied: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> RunningBroker:
    """Start a broker whose data lie in `folder` and wait until it answers.

    Data of an earlier start in the folder are kept. `port` 0 takes free ones; node k listens on ``port + k`` else.
    With `tied` the broker dies with this process. `overrides` are added to server.properties.
    Raises `UserError` for a port in use, a folder we cannot write, a full disk, no jars, no Java, or a broker that does
    not come up.
    """
    found = status(folder)
    if found is not None and found.is_alive:
        raise UserError(
            f"a broker runs in {folder} already, on {found.bootstrap}",
            f"Use it, or stop it first: headrace broker stop --folder {folder}",
        )
    _check_folder(folder)
    ports = _ports(folder, port, num_brokers)
    jars, java = kafka_jars.resolve(), kafka_jars.java()
    command = [str(java), *JVM_FLAGS, "-cp", ":".join(map(str, jars))]
    security = broker_security.create(folder / "security") if secure else None
    (folder / "log4j2.properties").write_text(_LOG4J.format(folder=folder.resolve()))
    nodes: list[Node] = []
    try:
        for index in range(num_brokers):
            home = folder / f"node-{index + 1}"
            home.mkdir(exist_ok=True)
            text = _properties(home, index, ports, security, overrides or {})
            (home / "server.properties").write_text(text)
            _format(command, folder, home, index, security)
            nodes.append(_launch(command, folder, home, index, ports[index][0], tied))
        options = security.client_options() if security else {}
        bootstrap = ",".join(f"127.0.0.1:{client}" for client, _, _ in ports)
        running = RunningBroker(bootstrap, str(folder), tuple(nodes), options)
        _wait_ready(running)
    except BaseException:
        for node in nodes:
            processes.end(node.pid, 2)
        raise
    (folder / "broker.json").write_text(json.dumps(asdict(running), indent=1))
    return running


def status(folder: Path) -> RunningBroker | None:
    """What was started in `folder`, alive or not; None when nothing was or it was stopped."""
    try:
        found = json.loads((folder / "broker.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    nodes = tuple(Node(**node) for node in found["nodes"])
    return RunningBroker(found["bootstrap"], found["folder"], nodes, found["kafka_options"])


def stop(folder: Path, timeout_s: float = 20.0) -> bool:
    """End the broker of `folder` by its process ids; brokers before the controller. False when none ran."""
    found = status(folder)
    if found is None:
        return False
    alive = [node for node in found.nodes if processes.is_alive(node.pid, node.started_s)]
    for node in reversed(alive):
        processes.end(node.pid, timeout_s)
    (folder / "broker.json").unlink(missing_ok=True)
    return bool(alive)


def answers(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 1.0) -> int:
    """Brokers that a cluster reports, 0 when it does not answer within `timeout_s`."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("headrace.broker.probe")
    quiet.disabled = True  # librdkafka says "connection refused" at every try; we say once what is missing
    admin = AdminClient({**(options or {}), "bootstrap.servers": bootstrap}, logger=quiet)
    try:
        return len(admin.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return 0


def require(bootstrap: str, options: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> None:
    """Raise a `UserError` that says how to get a broker unless one answers at `bootstrap`."""
    if not answers(bootstrap, options, timeout_s):
        raise UserError(
            f"no Kafka broker answers at {bootstrap}",
            "Start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
        )


def _check_folder(folder: Path) -> None:
    """The folder exists, can be written and has room, else `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"cannot write the broker's folder {folder}: {error.strerror or error}",
            "Name one that you can write with --folder",
        ) from None
    if free < DISK_FREE_BYTES_MIN:
        raise UserError(
            f"the disk of {folder} is full: {free >> 20} MiB free, a broker needs {DISK_FREE_BYTES_MIN >> 20} MiB",
            "Free some space or name another folder with --folder",
        )


def _ports(folder: Path, port: int, num_brokers: int) -> list[tuple[int, int, int]]:
    """(client, internal, controller) port per node: those of the folder's last start where they are free.

    Raises `UserError` when a named client port is taken.
    """
    for client in range(port, port + num_brokers) if port else ():
        if processes.port_in_use(client):
            raise UserError(
                f"port {client} is in use: another program, perhaps another broker, listens on 127.0.0.1:{client}",
                "Name another one with --port, or --port 0 for any free one",
            )
    kept = folder / "ports.json"
    last: list[tuple[int, int, int]] = [tuple(node) for node in json.loads(kept.read_text())] if kept.exists() else []
    wanted = [port + index if port else 0 for index in range(num_brokers)]
    same = len(last) == num_brokers and all(want in (0, node[0]) for want, node in zip(wanted, last, strict=True))
    if not same or any(processes.port_in_use(each) for node in last for each in node):
        free = processes.free_ports(3 * num_brokers)
        last = [(want or free[3 * k], free[3 * k + 1], free[3 * k + 2]) for k, want in enumerate(wanted)]
    kept.write_text(json.dumps(last))
    return last


def _properties(
    home: Path,
    index: int,
    ports: Sequence[tuple[int, int, int]],
    security: broker_security.Security | None,
    overrides: Mapping[str, str],
) -> str:
    """server.properties of node `index` (from 0); only what differs from Kafka's defaults."""
    client, internal, controller = ports[index]
    replicas = min(3, len(ports))
    listeners = [f"CLIENT://127.0.0.1:{client}", f"INTERNAL://127.0.0.1:{internal}"]
    client_protocol = "SASL_SSL" if security else "PLAINTEXT"
    settings = {
        "node.id": str(index + 1),
        "process.roles": "broker,controller" if index == 0 else "broker",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{ports[0][2]}",
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"] if index == 0 else listeners),
        "advertised.listeners": ",".join(listeners),
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": f"CLIENT:{client_protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str((home / "log").resolve()),
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": str(replicas),
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(max(1, replicas - 1)),
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(max(1, replicas - 1)),
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(max(1, replicas - 1)),
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": "2097152",
        "num.network.threads": "2",
        "num.io.threads": "4",
        **(security.broker_settings() if security else {}),
        **overrides,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def cluster_id() -> str:
    """A random cluster id as Kafka writes it: 16 bytes in URL-safe base64, never starting with a dash.

    kafka-storage takes a leading dash for an option; Kafka's own Uuid.randomUuid draws again for that reason.
    """
    while True:
        drawn = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not drawn.startswith("-"):
            return drawn


def _format(
    command: Sequence[str], folder: Path, home: Path, index: int, security: broker_security.Security | None
) -> None:
    """Give the node's log directory the cluster's id, once."""
    if (home / "log" / "meta.properties").exists():
        return
    cluster = folder / "cluster.id"
    if not cluster.exists():
        cluster.write_text(cluster_id())
    role = ["--standalone"] if index == 0 else ["--no-initial-controllers"]
    users = security.format_arguments() if security and index == 0 else []
    properties = ["-c", str(home / "server.properties")]
    arguments = ["format", *role, *users, "-t", cluster.read_text(), *properties]
    flags = [f"-Dlog4j2.configurationFile={folder.resolve() / 'log4j2.properties'}", "-XX:TieredStopAtLevel=1"]
    shown = subprocess.run(
        [*command, *flags, "kafka.tools.StorageTool", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if shown.returncode:
        raise _failed(shown.stdout + shown.stderr, home)


def _launch(command: Sequence[str], folder: Path, home: Path, index: int, port: int, tied: bool) -> Node:
    """Start one node; its console output goes to ``console.log``."""
    flags = [f"-Dlog4j2.configurationFile={folder.resolve() / 'log4j2.properties'}"]
    with (home / "console.log").open("wb") as console:
        started = processes.spawn(
            [*command, *flags, "kafka.Kafka", home / "server.properties"], console, tied=tied, folder=home
        )
    return Node(index + 1, port, started.pid, psutil.Process(started.pid).create_time())


def _wait_ready(running: RunningBroker) -> None:
    """Until every node answers; `UserError` with the reason from its log when one ends or stays silent."""
    folder = Path(running.folder)

    def ready_or_dead() -> bool:
        return not running.is_alive or answers(running.bootstrap, running.kafka_options) == len(running.nodes)

    came = processes.wait_until(ready_or_dead, READY_S)
    if came and running.is_alive:
        return
    said = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("node-*/console.log")))
    log = folder / "broker.log"
    raise _failed(said + (log.read_text(errors="replace") if log.exists() else ""), folder)


def _failed(said: str, where: Path) -> UserError:
    """One sentence out of what Java printed."""
    if "Address already in use" in said:
        return UserError(
            "the broker's port is in use: another program took it first", "Try again, or name another one with --port"
        )
    if "No space left on device" in said:
        return UserError(f"the disk of {where} is full", "Free some space or name another folder with --folder")
    if "Invalid cluster.id" in said or "already formatted" in said:
        return UserError(f"the data in {where} belong to another cluster", f"Delete {where} or name another folder")
    lines = [line for line in said.splitlines() if "ERROR" in line or "Exception" in line or "error" in line]
    last = lines[-1].strip()[:300] if lines else "it ended without a word" if not said else said.splitlines()[-1][:300]
    return UserError(
        f"the broker did not start: {last}", f"Its log is {where}/broker.log, its console node-1/console.log"
    )
