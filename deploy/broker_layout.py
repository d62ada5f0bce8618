"""How the nodes of a local broker are laid out: ports, folders, roles and settings. Nothing is started here.

Owns every line of ``server.properties``. Does not know Java, processes or readiness: `deploy.broker`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import broker_security, processes
from schemas.errors import UserError

QUORUM = 3
"""Controllers of a cluster that has as many nodes: the fewest that outlive the loss of one."""
_CONTROLLERS_FILE = "controllers"

Ports = tuple[int, int, int]
"""Where one node listens: for clients, for the other brokers, for the controllers."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that the configuration of the nodes is made of. Nodes are numbered from 1."""

    folder: Path
    ports: Sequence[Ports]
    """By node, node 1 first."""
    num_controllers: int
    """Nodes 1 to this one are controllers too."""
    advertised: Sequence[int]
    """Port per node that clients are told to come to: the node's own, or that of a proxy before it."""
    data_folders: Mapping[int, Path]
    """Where a node's data lie when not in its home."""
    security: broker_security.Security | None
    overrides: Mapping[str, str]
    """Added to every server.properties, and stronger than what stands there."""

    @property
    def node_ids(self) -> range:
        """Ids of the nodes."""
        return range(1, len(self.ports) + 1)

    def home(self, node_id: int) -> Path:
        """Folder of a node's configuration and console output."""
        return home(self.folder, node_id)

    def data_folder(self, node_id: int) -> Path:
        """Folder of a node's data."""
        elsewhere = self.data_folders.get(node_id)
        # not resolved: the way to it may lead through another process's mounts
        return elsewhere.absolute() if elsewhere is not None else (self.home(node_id) / "log").resolve()

    def properties(self, node_id: int) -> str:
        """server.properties of a node; only what differs from Kafka's defaults."""
        client, internal, _ = self.ports[node_id - 1]
        own = f"CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal}"
        told = f"CLIENT://127.0.0.1:{self.advertised[node_id - 1]},INTERNAL://127.0.0.1:{internal}"
        client_protocol = "SASL_SSL" if self.security else "PLAINTEXT"
        settings = {
            **self._roles(node_id, own),
            "advertised.listeners": told,
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": f"CLIENT:{client_protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.data_folder(node_id)),
            "auto.create.topics.enable": "false",
            **_replication(min(3, len(self.ports))),
            "group.initial.rebalance.delay.ms": "0",
            # A node that was killed is not let in again before its old session (9 s by default) has ended.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": "2097152",
            "num.network.threads": "2",
            "num.io.threads": "4",
            **(self.security.broker_settings() if self.security else {}),
            **self.overrides,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _roles(self, node_id: int, listeners: str) -> dict[str, str]:
        controllers = [f"127.0.0.1:{ports[2]}" for ports in self.ports[: self.num_controllers]]
        is_controller = node_id <= self.num_controllers
        voters = ",".join(f"{index}@{address}" for index, address in enumerate(controllers, 1))
        quorum = (
            # named here and not in the log, so that a start on other ports finds the others
            {"controller.quorum.voters": voters}
            if len(controllers) > 1
            else {"controller.quorum.bootstrap.servers": controllers[0]}
        )
        return {
            "node.id": str(node_id),
            "process.roles": "broker,controller" if is_controller else "broker",
            **quorum,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://{controllers[node_id - 1]}" if is_controller else listeners,
        }

    def format_arguments(self, node_id: int) -> list[str]:
        """Arguments of Kafka's StorageTool that say what a node is in the quorum, and who may log in."""
        alone = self.num_controllers == 1
        role = [] if not alone else ["--standalone"] if node_id == 1 else ["--no-initial-controllers"]
        # whichever controller leads first writes the user down
        users = self.security.format_arguments() if self.security and node_id <= self.num_controllers else []
        return [*role, *users]


def home(folder: Path, node_id: int) -> Path:
    """Folder of a node of the broker in `folder`."""
    return folder / f"node-{node_id}"


def _replication(replicas: int) -> dict[str, str]:
    """Topics, Kafka's own among them, with so many replicas, all but one of them needed for a write."""
    needed = str(max(1, replicas - 1))
    return {
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": str(replicas),
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": needed,
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": needed,
        "default.replication.factor": str(replicas),
        "min.insync.replicas": needed,
    }


def controllers(folder: Path, num_brokers: int) -> int:
    """How many controllers the cluster of `folder` has: decided at its first start, and kept in the folder.

    Raises `UserError` when fewer nodes are to start than the data have controllers.
    """
    kept = folder / _CONTROLLERS_FILE
    if kept.exists():
        num = int(kept.read_text())
    else:  # data that were formatted before there was a quorum have one controller
        old = (home(folder, 1) / "log" / "meta.properties").exists()
        num = QUORUM if num_brokers >= QUORUM and not old else 1
        if num > 1:
            kept.write_text(str(num))
    if num_brokers < num:
        raise UserError(
            f"the data in {folder} belong to a cluster with {num} controllers, {num_brokers} of them would start",
            f"Start {num} brokers or more, or name another folder with --folder",
        )
    return num


def choose_ports(folder: Path, port: int, num_brokers: int) -> list[Ports]:
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
    last: list[Ports] = [tuple(node) for node in json.loads(kept.read_text())] if kept.exists() else []
    wanted = [port + index if port else 0 for index in range(num_brokers)]
    same = len(last) == num_brokers and all(want in (0, node[0]) for want, node in zip(wanted, last, strict=True))
    if not same or any(processes.port_in_use(each) for node in last for each in node):
        free = processes.free_ports(3 * num_brokers)
        last = [(want or free[3 * k], free[3 * k + 1], free[3 * k + 2]) for k, want in enumerate(wanted)]
    kept.write_text(json.dumps(last))
    return last
