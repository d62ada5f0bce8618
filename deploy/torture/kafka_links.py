"""One connection of a client through the proxy: two pumps of frames, and what a fault does to them.

Lives on the proxy's event loop. Owns order, back-pressure and the end of a connection; which frames are meant is
`kafka_faults`'s business, listening and threads are `kafka_proxy`'s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter, deque
from contextlib import suppress

from deploy.torture.kafka_faults import Action, Direction, Injected, Rules, Seen
from deploy.torture.kafka_frames import FrameError, FrameSplitter, InFlight, read_correlation, read_request

READ_BYTES = 256 << 10
LANE_BYTES_MAX = 4 << 20
"""Delayed frames of one direction: above it the sender is held up, as behind a full socket. One frame may exceed it."""
FLUSH_S_MAX = 2.0
"""An end in order waits so long for the other side to take what was sent."""

log = logging.getLogger(__name__)

Traffic = tuple[str, int, str]
"""Direction (or action), api key, client id."""


class Tally:
    """What passed and what was bitten, counted on the event loop."""

    def __init__(self) -> None:
        self.frames: Counter[Traffic] = Counter()
        self.size_bytes: Counter[Traffic] = Counter()
        self.bites: Counter[Traffic] = Counter()
        self.connections: Counter[str] = Counter()

    def bite(self, injected: Injected, api_key: int, client_id: str | None) -> None:
        """A fault did its work once."""
        injected.num_bites += 1
        self.bites[(injected.fault.action.value, api_key, client_id or "")] += 1


class _Lane:
    """Frames of one direction on their way out; those that are delayed wait here in order."""

    def __init__(self, writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
        self._writer = writer
        self._over = over
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._moved = asyncio.Event()
        self._flushing: asyncio.Task[None] | None = None

    async def send(self, frame: bytes, delay_s: float = 0.0) -> None:
        """Pass a frame on, `delay_s` from now at the earliest and never before the one that was sent before it."""
        if not delay_s and not self._waiting:
            await self._write(frame)
            return
        self._waiting.append((asyncio.get_running_loop().time() + delay_s, frame))
        self._held_bytes += len(frame)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        while self._held_bytes > LANE_BYTES_MAX:
            await self._next_move()

    async def settle(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            await self._next_move()

    def close(self) -> None:
        """Forget what waits."""
        if self._flushing is not None:
            self._flushing.cancel()

    async def _write(self, frame: bytes) -> None:
        """Piece by piece: written at once, a large frame would lie in memory twice and hold up the other links."""
        for begin in range(0, len(frame), READ_BYTES):
            self._writer.write(frame[begin : begin + READ_BYTES])
            await self._writer.drain()

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                due_s, frame = self._waiting[0]
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                await self._write(frame)
                self._waiting.popleft()
                self._held_bytes -= len(frame)
                self._moved.set()
        except OSError:
            self._over.set()
        self._flushing = None


class Link:
    """A client's connection and the one to the broker behind it."""

    def __init__(
        self,
        broker: int,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        target: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        rules: Rules,
        tally: Tally,
    ) -> None:
        self.broker = broker
        self.client_id: str | None = None
        self._client, self._target = client, target
        self._rules, self._tally = rules, tally
        self._over = asyncio.Event()
        self._in_flight = InFlight()
        self._hung: dict[Direction, Injected] = {}
        self._lanes = {
            Direction.REQUESTS: _Lane(target[1], self._over),
            Direction.RESPONSES: _Lane(client[1], self._over),
        }

    def seen(self, direction: Direction = Direction.BOTH, api_key: int | None = None) -> Seen:
        """This connection, or a frame of it, as faults see it."""
        return Seen(self.broker, self.client_id, direction, api_key)

    async def serve(self) -> None:
        """Pump both ways until either side or a fault ends it; both connections are closed then."""
        tasks = [
            asyncio.create_task(self._pump(Direction.REQUESTS, self._client[0])),
            asyncio.create_task(self._pump(Direction.RESPONSES, self._target[0])),
            asyncio.create_task(self._over.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane in self._lanes.values():
                lane.close()
            await asyncio.gather(*(_close(writer) for _, writer in (self._client, self._target)))

    def sever(self) -> None:
        """End by RST, now."""
        for _, writer in (self._client, self._target):
            reset(writer)
        self._over.set()

    def heal(self, injected: Injected) -> None:
        """`injected` is over: a connection that it took bytes from ends, nobody can give them back."""
        if injected in self._hung.values():
            self._over.set()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader) -> None:
        try:
            if not await self._pump_frames(direction, reader):
                return
        except FrameError as error:
            self._tally.connections["not Kafka"] += 1
            log.warning("connection of client %r to broker %d closed: %s", self.client_id, self.broker, error)
            return
        except OSError:  # either side went away
            pass
        if direction not in self._hung and (by := self._hanging(direction)):
            self._hang(by, direction, -1)
        if direction in self._hung:  # a blackhole takes the end of a connection too
            await self._over.wait()

    async def _pump_frames(self, direction: Direction, reader: asyncio.StreamReader) -> bool:
        """True when the sender has ended, False when a fault ends the connection."""
        splitter = FrameSplitter()
        while some := await reader.read(READ_BYTES):
            if direction in self._hung:
                continue
            for frame in splitter.feed(some):
                if not await self._pass(direction, frame):
                    return False
                if direction in self._hung:
                    break
        return True

    def _hang(self, injected: Injected, direction: Direction, api_key: int) -> None:
        self._tally.bite(injected, api_key, self.client_id)
        self._hung[direction] = injected

    def _hanging(self, direction: Direction) -> Injected | None:
        found = self._rules.breaking(self.seen(direction))
        return found if found is not None and found.fault.action is Action.HANG else None

    def _read(self, direction: Direction, frame: bytes) -> int:
        """Api key of a frame, -1 for an answer to nothing known. Raises `FrameError`."""
        if direction is Direction.REQUESTS:
            request = read_request(frame)
            self.client_id = request.client_id
            self._in_flight.sent(request)
            return request.api_key
        answered = self._in_flight.answered(read_correlation(frame))
        return -1 if answered is None else answered.api_key

    async def _pass(self, direction: Direction, frame: bytes) -> bool:
        """Pass a frame on or do to it what a fault wants; False when the connection is to end."""
        api_key = self._read(direction, frame)
        seen = self.seen(direction, api_key)
        traffic = (direction.value, api_key, self.client_id or "")
        self._tally.frames[traffic] += 1
        self._tally.size_bytes[traffic] += len(frame)
        if injected := self._rules.breaking(seen):
            return await self._break(injected, direction, api_key, frame)
        delay_ms = 0.0
        for injected, wait_ms in self._rules.delaying(seen):
            self._tally.bite(injected, api_key, self.client_id)
            delay_ms += wait_ms
        await self._lanes[direction].send(frame, delay_ms / 1e3)
        return True

    async def _break(self, injected: Injected, direction: Direction, api_key: int, frame: bytes) -> bool:
        action = injected.fault.action
        if action is Action.HANG:
            self._hang(injected, direction, api_key)
            return True
        self._tally.bite(injected, api_key, self.client_id)
        if action is Action.CUT:
            self.sever()
            return False
        if action is Action.CUT_IN_FRAME:
            await self._lanes[direction].send(frame[: len(frame) // 2])
        await self._lanes[direction].settle()  # what came before was not meant
        return False


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: what was not sent yet never is."""
    found: socket.socket | None = writer.get_extra_info("socket")
    if found is not None:
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    """End a connection by FIN behind what was sent; by force when the other side takes nothing."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), FLUSH_S_MAX)
    except (OSError, TimeoutError):
        writer.transport.abort()
