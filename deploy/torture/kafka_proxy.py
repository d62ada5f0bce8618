"""A TCP proxy before the brokers that understands Kafka's frames and breaks what it is told to break.

Owns listeners, the thread of its event loop and the thread-safe face: `Proxy`. No root, nothing but the loopback.
Brokers must advertise the proxy's ports (`deploy.broker.start(advertised=...)`), or clients go around it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from deploy.torture.kafka_faults import Action, Direction, Fault, Injected, Rules, Seen
from deploy.torture.kafka_links import Link, Tally, Traffic, reset

CONNECT_S_MAX = 5.0
"""A broker on the loopback takes or refuses at once; one whose queue of connections is full does neither."""
CALL_S_MAX = 30.0
"""The event loop does nothing long: one that answers later than this is a mistake of ours."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Counts:
    """What passed since the start."""

    frames: Mapping[Traffic, int]
    """Frames by (direction, api key, client id), bitten ones included; api key -1: an answer to nothing known."""
    size_bytes: Mapping[Traffic, int]
    """Bytes of them."""
    bites: Mapping[Traffic, int]
    """How often a fault bit, by (action, api key, client id); api key -1: the connection as a whole."""
    connections: Mapping[str, int]
    """"accepted", "refused" (by a cut), "target down", "not Kafka"; "open" are open now."""

    def num_bites(self, action: Action, api_key: int | None = None, client_prefix: str = "") -> int:
        """Bites of one action, of one api or all, of the clients with a prefix."""
        return sum(
            count
            for (what, api, client), count in self.bites.items()
            if what == action.value and api_key in (None, api) and client.startswith(client_prefix)
        )


class Proxy:
    """One listener per broker. Every method may be called from any thread and has taken effect when it returns.

    The targets are (host, port) of the brokers; a target that is down looks like a dead broker. `ports` are to be
    listened on, free ones without. Usable as a context manager.
    """

    def __init__(self, targets: Sequence[tuple[str, int]], ports: Sequence[int] | None = None) -> None:
        if ports is not None and len(ports) != len(targets):
            raise ValueError(f"{len(ports)} ports for {len(targets)} targets")
        self._targets = tuple(targets)
        self._wanted = tuple(ports or [0] * len(targets))
        self._rules, self._tally = Rules(), Tally()
        self._links: set[Link] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._ports: tuple[int, ...] = ()

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def ports(self) -> tuple[int, ...]:
        """Where it listens, in the order of the targets; empty before `start`."""
        return self._ports

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers for clients that go through it."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def start(self) -> Proxy:
        """Listen. Raises `OSError` when a port is taken."""
        listening: Future[tuple[int, ...]] = Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="kafka-proxy", daemon=True)
        self._thread.start()
        self._ports = listening.result(CALL_S_MAX)
        return self

    def inject(self, fault: Fault) -> Injected:
        """Put a fault into force; connections that a cut selects are closed when this returns."""
        return self._call(lambda: self._inject(fault))

    def heal(self, injected: Injected) -> None:
        """End a fault (of itself over or not). Connections that a hang took bytes from are closed."""
        self._call(lambda: self._heal(injected))

    def heal_all(self) -> None:
        """End every fault."""
        self._call(self._heal_all)

    @property
    def counts(self) -> Counts:
        """Figures of now; of the end after `close`."""
        return self._call(self._count)

    def close(self) -> None:
        """Close every connection and stop. Nothing happens the second time."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(CALL_S_MAX)

    def _call(self, function: Callable[[], ResultT]) -> ResultT:
        """Run on the event loop; on this thread when the loop has ended or not begun."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return function()

        async def called() -> ResultT:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(CALL_S_MAX)

    def _inject(self, fault: Fault) -> Injected:
        injected = self._rules.add(fault)
        if fault.action is Action.CUT:
            for link in self._links:
                if not injected.is_spent and fault.selects(link.seen()):
                    self._tally.bite(injected, -1, link.client_id)
                    link.sever()
        return injected

    def _heal(self, injected: Injected) -> None:
        self._rules.remove(injected)
        for link in self._links:
            link.heal(injected)

    def _heal_all(self) -> None:
        for each in self._rules:
            self._heal(each)

    def _count(self) -> Counts:
        tally = self._tally
        connections = {**tally.connections, "open": len(self._links)}
        return Counts(dict(tally.frames), dict(tally.size_bytes), dict(tally.bites), connections)

    def _run(self, listening: Future[tuple[int, ...]]) -> None:
        asyncio.run(self._serve(listening))

    async def _serve(self, listening: Future[tuple[int, ...]]) -> None:
        self._loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        try:
            for broker, port in enumerate(self._wanted):
                servers.append(await asyncio.start_server(partial(self._accept, broker), "127.0.0.1", port))
        except OSError as error:
            for server in servers:
                server.close()
            listening.set_exception(error)
            return
        listening.set_result(tuple(server.sockets[0].getsockname()[1] for server in servers))
        await self._stop.wait()
        for server in servers:
            server.close()
        for link in tuple(self._links):
            link.sever()
        while self._links:  # or asyncio would cancel their tasks and say so in the log
            await asyncio.sleep(0.01)

    async def _accept(self, broker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections = self._tally.connections
        connections["accepted"] += 1
        unknown = Seen(broker, None, Direction.BOTH)
        for injected in self._rules:
            # a cut of some clients or apis waits for the frame that shows them
            if injected.fault.action is Action.CUT and not injected.is_spent and injected.fault.selects(unknown):
                connections["refused"] += 1
                self._tally.bite(injected, -1, None)
                reset(writer)
                return
        try:
            target = await asyncio.wait_for(asyncio.open_connection(*self._targets[broker]), CONNECT_S_MAX)
        except (OSError, TimeoutError):
            connections["target down"] += 1
            reset(writer)
            return
        link = Link(broker, (reader, writer), target, self._rules, self._tally)
        self._links.add(link)
        try:
            await link.serve()
        finally:
            self._links.discard(link)
