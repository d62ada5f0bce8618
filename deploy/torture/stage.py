"""Everything that is tortured: brokers behind a proxy, topics, keys, definitions, our processes, disks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

from deploy import broker, processes, stack
from deploy.torture.history import History
from deploy.torture.kafka_proxy import Proxy
from deploy.torture.members import Member
from deploy.torture.plan import BROKER, DECIDERS, JOINERS, LEARNER, SESSION_S, STORMER
from deploy.torture.small_disk import SmallDisk, open_disk
from schemas.errors import UserError
from schemas.settings import CommonSettings
from schemas.task import Project

CHECKPOINT_DISK_MIB = 768
"""Two tasks at full size are 75 MiB a checkpoint: three are kept, one is being written, one is the day's anchor."""
BROKER_DISK_MIB, BROKER_DISK_MIB_PER_MINUTE = 500, 700
"""A snapshot of two tasks a second is 8 MiB a second, 480 a minute; the rest is room for everything else."""
CHECKPOINT_S = 3.0
BROKER_SETTINGS = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"}
"""A killed broker is taken back when its old session has ended: 9 s by default, of which nothing is learnt here."""
STOP_S = 14.0
"""Processes end within 10 s of SIGTERM; some of them wait for each other's cores here."""


class Stage:
    """Built by `Stage.open`; `close` leaves no process, no mount, and the folder as evidence."""

    def __init__(
        self, folder: Path, project: Project, num_brokers: int, history: History, minutes_of_disk: float
    ) -> None:
        self.folder, self.project, self.num_brokers, self.history = folder, project, num_brokers, history
        self.broker_folder = folder / "broker"
        self.disks: dict[str, SmallDisk] = {}
        """By target; a target whose disk cannot be made small is not there."""
        self.no_disk = ""
        """Why none is."""
        self.members: dict[str, Member] = {}
        self.starter = ThreadPoolExecutor(num_brokers, "broker-start")
        """Brokers die with the thread that starts them: these live as long as the stage."""
        self._open_disks(minutes_of_disk)
        ports = processes.free_ports(num_brokers)
        while ports != list(range(ports[0], ports[0] + num_brokers)):  # the broker counts upwards from the first
            ports = list(range(ports[0], ports[0] + num_brokers))
            if any(map(processes.port_in_use, ports)):
                ports = processes.free_ports(num_brokers)
        self.proxy = Proxy([("127.0.0.1", port) for port in ports]).start()
        self._port = ports[0]

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, folder: Path, project: Project, num_brokers: int, history: History, minutes_of_disk: float
    ) -> Iterator[Stage]:
        """A stage with brokers, topics and processes that have been started (not yet: that are ready).

        Its small disks have room for `minutes_of_disk` of traffic; 0: no disk is small, none can be filled.
        """
        stage = cls(folder, project, num_brokers, history, minutes_of_disk)
        try:
            stage._start()
            yield stage
        finally:
            stage.close()

    @property
    def settings(self) -> CommonSettings:
        """How to reach the namespace: through the proxy, as everybody."""
        return self._ready.settings

    @property
    def environment(self) -> dict[str, str]:
        """Of a command of ours for this namespace (`headrace replay`)."""
        return {
            **self._ready.environment(LEARNER),
            "HEADRACE_CHECKPOINT_DIR": str(self.folder / "no-checkpoints"),
            "HEADRACE_STATE_DIR": str(self.folder / "replay"),
        }

    def broker_is_well(self) -> bool:
        """All brokers answer."""
        return broker.answers(self.settings.bootstrap) == self.num_brokers

    def node_of(self, target: str) -> int:
        """Broker number of ``broker-<n>``."""
        return int(target.removeprefix(f"{BROKER}-"))

    def pid_of(self, target: str) -> int:
        """Process id of a broker."""
        running = broker.status(self.broker_folder)
        assert running is not None
        return next(node.pid for node in running.nodes if node.node_id == self.node_of(target))

    def keep(self) -> None:
        """Bring back what ended by itself."""
        for member in self.members.values():
            member.keep()

    def new_joiner(self) -> Member:
        """A further worker, not started, not kept."""
        return self._member(STORMER, ["worker", "ingest", "join"])

    def end_members(self) -> dict[str, int]:
        """SIGTERM to every process of ours; exit codes by name."""
        return {name: member.end(STOP_S) for name, member in self.members.items()}

    def close(self) -> None:
        """End everything."""
        for member in self.members.values():
            member.end(1.0)
        broker.stop(self.broker_folder)
        self.starter.shutdown()
        self.proxy.close()
        for disk in self.disks.values():
            disk.close()

    def _open_disks(self, minutes: float) -> None:
        if not minutes:
            self.no_disk = "kills alone"
            return
        log_mib = BROKER_DISK_MIB + int(BROKER_DISK_MIB_PER_MINUTE * minutes)
        sizes = [(LEARNER, "checkpoints", CHECKPOINT_DISK_MIB), (f"{BROKER}-1", "broker-log", log_mib)]
        for target, name, size_mib in sizes:
            if size_mib << 20 > psutil.virtual_memory().available // 2:
                self.no_disk = f"{size_mib} MiB for {name} are more than half of the free memory"
                continue
            found = open_disk(self.folder / name, size_mib)
            if isinstance(found, str):
                self.no_disk = found
            else:
                self.disks[target] = found

    def _start(self) -> None:
        if shutil.disk_usage(self.folder).free < 2 << 30:
            raise UserError(f"less than 2 GiB are free in {self.folder}", "name another folder with --folder")
        log = self.disks.get(f"{BROKER}-1")
        broker.start(
            self.broker_folder,
            self._port,
            self.num_brokers,
            tied=True,
            overrides=BROKER_SETTINGS,
            advertised=self.proxy.ports,
            data_folders={1: log.folder} if log is not None else None,
        )
        ready = stack.prepare(self.project, self.folder, self.proxy.bootstrap, 0)
        names = (*JOINERS, *DECIDERS, LEARNER, STORMER)
        ports = dict(zip(names, processes.free_ports(len(names)), strict=True))
        self._ready = replace(ready, metrics_ports=ports)
        for name in (*JOINERS, *DECIDERS, LEARNER):
            arguments = ["learn"] if name == LEARNER else ["worker", "decide"]
            member = self._member(name, ["worker", "ingest", "join"] if name in JOINERS else arguments)
            self.members[name] = member
            member.start()

    def _member(self, name: str, arguments: list[str]) -> Member:
        checkpoints = self.disks[LEARNER].folder if LEARNER in self.disks else self.folder / "checkpoints"
        environment = {
            **self._ready.environment(name),
            "HEADRACE_CLIENT_ID": name,
            "HEADRACE_INSTANCE_ID": name,
            "HEADRACE_STATE_DIR": str(self.folder / name),
            "HEADRACE_SESSION_TIMEOUT_S": str(SESSION_S),
            "HEADRACE_HEARTBEAT_S": "1",
            "HEADRACE_BROKER_WAIT_S": "60",
            "HEADRACE_CHECKPOINT_S": str(CHECKPOINT_S),
            "HEADRACE_CHECKPOINT_DIR": str(checkpoints),
        }
        return Member(name, arguments, environment, self._ready.metrics_ports[name], self.folder, self.history)
