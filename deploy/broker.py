"""A real Apache Kafka on this machine, for development, tests and the demo.

Owns start, readiness, state file and end, of all nodes or of one. `deploy.broker_layout` owns their configuration,
`deploy.broker_java` the programs.
Every node is a KRaft broker. One or two nodes have one controller, node 1; three or more have a quorum of three
controllers, nodes 1 to 3, and outlive the loss of any node. Nothing listens but on the loopback.

Deliberate simplification: brokers and controllers share processes, which a production cluster keeps apart.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from deploy import broker_java, broker_layout, broker_security, processes
from deploy.broker_java import cluster_id
from deploy.broker_java import failed as _failed
from deploy.broker_layout import Layout
from deploy.broker_probe import answers, brokers, num_lagging_replicas, require
from deploy.outputs import require_folder
from schemas.errors import UserError

__all__ = [
    "Node",
    "RunningBroker",
    "answers",
    "cluster_id",
    "num_lagging_replicas",
    "require",
    "start",
    "start_node",
    "status",
    "stop",
    "stop_node",
]

READY_S = 60.0
LAST_NODE_S = 2.0
"""Nodes that are left without a quorum may have been let go before: they end within this, or never."""
_keeping = threading.Lock()
"""Nodes may be started again from several threads; each writes the whole state file."""
DISK_FREE_BYTES_MIN = 512 << 20
"""Kafka stops with an unreadable trace when a log directory fills; refuse to start near it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One broker process."""

    node_id: int
    port: int
    pid: int
    started_s: float
    """Creation time of the process, so that a pid given out again is not mistaken for it."""

    @property
    def is_alive(self) -> bool:
        """Whether its process still runs."""
        return processes.is_alive(self.pid, self.started_s)


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
        return all(node.is_alive for node in self.nodes)


def start(
    folder: Path,
    port: int = 9092,
    num_brokers: int = 1,
    *,
    secure: bool = False,
    tied: bool = False,
    overrides: Mapping[str, str] | None = None,
    advertised: Sequence[int] | None = None,
    data_folders: Mapping[int, Path] | None = None,
    java_flags: Sequence[str] = (),
) -> RunningBroker:
    """Start a broker whose data lie in `folder` and wait until it answers.

    Data of an earlier start in the folder are kept. `port` 0 takes free ones; node k listens on ``port + k`` else.
    With `tied` the broker dies with this process. `overrides` are added to server.properties. Clients are told to come
    to the ports `advertised`, one per node (a proxy's), and to the nodes' own without. `data_folders` puts the data of
    a node (by its id, from 1) somewhere else, on another file system perhaps. `java_flags` take the place of the flags
    that make Java start fast.
    Raises `UserError` for a port in use, a folder we cannot write, a full disk, no jars, no Java, or a broker that does
    not come up.
    """
    folder = folder.resolve()  # a node runs in a folder of its own, and another process may ask for it
    found = status(folder)
    if found is not None and any(node.is_alive for node in found.nodes):
        raise UserError(
            f"a broker runs in {folder} already, on {found.bootstrap}",
            f"Use it, or stop it first: headrace broker stop --folder {folder}",
        )
    _check_folder(folder)
    ports = broker_layout.choose_ports(folder, port, num_brokers)
    layout = Layout(
        folder=folder,
        ports=ports,
        num_controllers=broker_layout.controllers(folder, num_brokers),
        advertised=advertised or [client for client, _, _ in ports],
        data_folders={node_id: each.resolve() for node_id, each in (data_folders or {}).items()},
        security=broker_security.create(folder / "security") if secure else None,
        overrides=overrides or {},
    )
    broker_java.write_log_settings(folder)
    running = _start_all(layout, tied, java_flags)
    _keep(running)
    return running


def _start_all(layout: Layout, tied: bool, java_flags: Sequence[str]) -> RunningBroker:
    """Format and launch every node and wait for them; none is left when one fails."""
    command = broker_java.command()
    nodes: list[Node] = []
    try:
        for node_id in layout.node_ids:
            home = layout.home(node_id)
            home.mkdir(exist_ok=True)
            (home / "server.properties").write_text(layout.properties(node_id))
            broker_java.format_data(command, layout, node_id)
            port = layout.ports[node_id - 1][0]
            nodes.append(_launch(command, layout.folder, node_id, port, tied, java_flags))
        options = layout.security.client_options() if layout.security else {}
        bootstrap = ",".join(f"127.0.0.1:{client}" for client, _, _ in layout.ports)
        running = RunningBroker(bootstrap, str(layout.folder), tuple(nodes), options)
        _wait_ready(running)
    except BaseException:
        for node in nodes:
            processes.end(node.pid, 2)
        raise
    return running


def start_node(folder: Path, node_id: int, *, tied: bool = False) -> RunningBroker:
    """Start a node of a running cluster again, on its data and ports, and wait until the cluster has it back.

    Its replicas may still lag then: `num_lagging_replicas`. With `tied` it dies with the thread that calls this.
    Raises `UserError` when no cluster was started in `folder`, the node runs already, or it does not come up (without
    a quorum of controllers, for one).
    """
    folder = folder.resolve()
    found = _node_of(folder, node_id)
    if found.is_alive:
        raise UserError(f"node {node_id} of {folder} runs already", "stop it first")
    processes.reap(found.pid)
    _reap(found)
    node = _launch(broker_java.command(), folder, node_id, found.port, tied)
    with _keeping:
        running = _with(folder, node)
        _keep(running)
    address = f"127.0.0.1:{node.port}"

    def back_or_dead() -> bool:
        return not node.is_alive or node_id in brokers(address, running.kafka_options)

    if processes.wait_until(back_or_dead, READY_S) and node.is_alive:
        return running
    processes.end(node.pid, 2)
    raise _silent(folder, [node_id])


def stop_node(folder: Path, node_id: int, *, kill: bool = False, timeout_s: float = 20.0) -> bool:
    """End one node, in order or (`kill`) by SIGKILL; the others go on. False when it did not run."""
    node = _node_of(folder, node_id)
    if not node.is_alive:
        return False
    if kill:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(node.pid).kill()
    processes.end(node.pid, timeout_s)
    return True


def _reap(node: Node) -> None:
    """Forget a child of ours that ended by itself."""
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(node.pid).ppid() == os.getpid():
            processes.end(node.pid, 1)


def _node_of(folder: Path, node_id: int) -> Node:
    found = status(folder)
    for node in found.nodes if found is not None else ():
        if node.node_id == node_id:
            return node
    raise UserError(
        f"no node {node_id} was started in {folder}",
        f"Start the cluster first: headrace broker start --folder {folder}",
    )


def _with(folder: Path, node: Node) -> RunningBroker:
    """The cluster of `folder` with a node's new process."""
    found = status(folder)
    assert found is not None  # _node_of has read it
    return replace(found, nodes=tuple(node if each.node_id == node.node_id else each for each in found.nodes))


def _keep(running: RunningBroker) -> None:
    """Write ``broker.json``, so that whoever reads it finds the old one or the new one whole.

    For its owner only: a secure broker's password stands in it.
    """
    kept = Path(running.folder) / "broker.json"
    new = kept.with_suffix(".json.new")
    new.unlink(missing_ok=True)  # left by a start that was killed, perhaps with another mode
    new.touch(mode=0o600)
    new.write_text(json.dumps(asdict(running), indent=1))
    new.replace(kept)


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
    alive = [node for node in found.nodes if node.is_alive]
    if broker_layout.controllers(folder, len(found.nodes)) > 1:
        _dissolve(alive, timeout_s)
    for node in reversed(alive):
        processes.end(node.pid, timeout_s)
    (folder / "broker.json").unlink(missing_ok=True)
    return bool(alive)


def _dissolve(nodes: Sequence[Node], timeout_s: float) -> None:
    """End the nodes of a cluster with a quorum, at once: a node that leaves alone hands its work to the others first.

    A node may go when the controllers let it. Once most of them are gone nobody does, and the last node would wait for
    minutes: it is killed. What it has written is in the kernel's hands and outlives that.
    """
    for node in nodes:
        with suppress(ProcessLookupError):
            os.kill(node.pid, signal.SIGTERM)
    majority = broker_layout.QUORUM // 2 + 1
    controllers = [node for node in nodes if node.node_id <= broker_layout.QUORUM]
    processes.wait_until(lambda: sum(node.is_alive for node in controllers) < majority, timeout_s)
    processes.wait_until(lambda: not any(node.is_alive for node in nodes), LAST_NODE_S)
    for node in nodes:
        if node.is_alive:
            os.kill(node.pid, signal.SIGKILL)


def _check_folder(folder: Path) -> None:
    """The folder exists, can be written and has room, else `UserError`."""
    free = shutil.disk_usage(require_folder(folder, "the broker's folder", "--folder")).free
    if free < DISK_FREE_BYTES_MIN:
        raise UserError(
            f"the disk of {folder} is full: {free >> 20} MiB free, a broker needs {DISK_FREE_BYTES_MIN >> 20} MiB",
            "Free some space or name another folder with --folder",
        )


def _launch(
    command: Sequence[str], folder: Path, node_id: int, port: int, tied: bool, java_flags: Sequence[str] = ()
) -> Node:
    started = broker_java.launch(command, folder, node_id, tied, java_flags)
    return Node(node_id, port, started.pid, started.create_time())


def _wait_ready(running: RunningBroker) -> None:
    """Until every node answers; `UserError` with the reason from its log when one ends or stays silent."""

    def ready_or_dead() -> bool:
        return not running.is_alive or answers(running.bootstrap, running.kafka_options) == len(running.nodes)

    if not processes.wait_until(ready_or_dead, READY_S) or not running.is_alive:
        raise _silent(Path(running.folder), [node.node_id for node in running.nodes])


def _silent(folder: Path, node_ids: Iterable[int]) -> UserError:
    """Why nodes do not answer, out of what they printed and logged."""
    consoles = [broker_layout.home(folder, node_id) / "console.log" for node_id in node_ids]
    said = [path.read_text(errors="replace") for path in (*consoles, folder / "broker.log") if path.exists()]
    return _failed("".join(said), folder)
