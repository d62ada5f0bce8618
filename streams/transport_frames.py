"""Kafka's responses received into the memory they are parsed from.

Theory of operation. aiokafka reads through asyncio's StreamReader: what the system hands over becomes a bytes object,
is added to a bytearray, copied out of it when the response is whole, and copied once more into a BytesIO. Of a fetch
response of many megabytes each of these is memory that the system must empty and map first. `install` puts two of ours
in place of two names of the module ``aiokafka.conn``: a protocol that learns from the first bytes of a response how
long it is, and lets the system write the rest straight into an array of that size; and a reader over that array.
What a response holds is copied once, out of the array, by aiokafka's own decoding; the array is used for the next
long response. Measured over 2.2 M journal records of 245 bytes, CPU of the thread that fetches: 0.35 -> 0.17 us each.

Short responses, among them the tokens of SASL, are passed on as bytes, as ever.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import struct
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
from aiokafka import conn

_LENGTH = struct.Struct(">i")
SCRATCH_BYTES = 16 << 10
"""What comes while no response is known to be coming: the length of one, or several short ones. TLS hands over so much
at once, and what it holds when the connection ends is asked for once only."""
SHORT_BYTES = 64 << 10
"""Responses up to this are bytes: nothing is gained by more care."""
SPARE_FACTOR = 8
"""Memory this much larger than a long response is given back: a backlog was read, and is over."""
SPARE_RESPONSES = 64
"""So many short responses after a long one: the same."""
_PARAMETERS = "self closed_fut args loop kw"


class FrameProtocol(asyncio.BufferedProtocol):
    """Stands where aiokafka's protocol stood, which still does all but the receiving.

    Takes the place of the reader's `readexactly`, which the connection asks for the length of a response and for the
    response, in turn.
    """

    def __init__(self, closed: asyncio.Future[None], reader: asyncio.StreamReader, *, loop: Any) -> None:
        self._inner = _Protocol(closed, reader, loop=loop)
        self._reader = weakref.ref(reader)  # which holds us
        self._loop = loop
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._num_scratch = 0
        """Bytes of `_scratch` that are the beginning of a response."""
        self._frame: memoryview | None = None
        """The response that is being received, None while its length is."""
        self._room = self._scratch
        """Where the next bytes go."""
        self._whole: deque[memoryview | bytes] = deque()
        self._next: memoryview | bytes | None = None
        """The response whose length was asked for."""
        self._spare = memoryview(b"")
        """Memory of the last long response, for the next one: new memory costs more than what is written to it."""
        self._num_short = 0
        """Short responses since then."""
        self._lent: memoryview | None = None
        """The long response that the connection was given; it is done with it when it asks for the next."""
        self._waiter: asyncio.Future[None] | None = None
        vars(reader)["readexactly"] = self.readexactly

    def __getattr__(self, name: str) -> Any:
        """What a StreamWriter asks of its protocol."""
        return getattr(self._inner, name)

    def connection_made(self, transport: Any) -> None:
        """As aiokafka's."""
        self._inner.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """As aiokafka's; whoever waits for a response hears of it."""
        self._inner.connection_lost(exc)
        self._wake()

    def eof_received(self) -> bool | None:
        """As aiokafka's; whoever waits for a response hears of it."""
        stays_open: bool | None = self._inner.eof_received()
        self._wake()
        return stays_open

    def pause_writing(self) -> None:
        """As aiokafka's."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """As aiokafka's."""
        self._inner.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room up to the end of the response that is being received, or for what comes first; never empty."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """So much of the room was filled."""
        if self._frame is None:
            self._take_scratch(self._num_scratch + nbytes)
            return
        self._room = self._room[nbytes:]
        if not len(self._room):
            self._finish(self._frame)

    def _take_scratch(self, num_bytes: int) -> None:
        """Responses that are whole in the scratch, and the beginning of one that is not."""
        at = 0
        while num_bytes - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._scratch, at)
            if size < 0:
                raise ConnectionError(f"the broker announced a response of {size} bytes: is this a Kafka broker?")
            begun = self._scratch[at + _LENGTH.size : min(num_bytes, at + _LENGTH.size + size)]
            at += _LENGTH.size + len(begun)
            frame = self._memory(size)
            frame[: len(begun)] = begun
            if len(begun) == size:
                self._finish(frame)
            else:
                self._frame, self._room = frame, frame[len(begun) :]
        if self._frame is None:
            self._num_scratch = num_bytes - at
            self._scratch[: self._num_scratch] = bytes(self._scratch[at:num_bytes])
            self._room = self._scratch[self._num_scratch :]

    def _finish(self, frame: memoryview) -> None:
        """`frame` is whole: whoever waits may have it, and the next one begins in the scratch."""
        self._whole.append(frame.tobytes() if len(frame) <= SHORT_BYTES else frame)
        self._frame, self._room, self._num_scratch = None, self._scratch, 0
        self._wake()

    async def readexactly(self, n: int) -> memoryview | bytes:
        """The length of the next response (4 bytes), then the response, and so on.

        Raises IncompleteReadError at the end of the connection, or what ended it.
        """
        if self._next is not None:
            found, self._next = self._next, None
            self._lent = None if isinstance(found, bytes) else found
            return found
        if self._lent is not None:
            self._spare, self._lent = memoryview(self._lent.obj), None
        while not self._whole:
            reader = self._reader()
            if reader is not None and (error := reader.exception()) is not None:
                raise error
            if reader is None or reader.at_eof():
                raise asyncio.IncompleteReadError(b"", n)
            del reader
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._next = self._whole.popleft()
        return _LENGTH.pack(len(self._next))

    def _memory(self, size: int) -> memoryview:
        """Room for a response of `size` bytes: the spare one unless it is too small, or so large that it is a waste."""
        spare, self._spare = self._spare, memoryview(b"")
        if size <= SHORT_BYTES:
            self._num_short += 1
            self._spare = spare if self._num_short < SPARE_RESPONSES else self._spare
            return memoryview(bytearray(size))
        self._num_short = 0
        if size <= len(spare) <= SPARE_FACTOR * size:
            return spare[:size]
        return np.empty(1 << (size - 1).bit_length(), np.uint8).data[:size]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class FrameReader:
    """Stands where a BytesIO of the whole response stood: reads from it without a copy of it."""

    def __init__(self, frame: memoryview) -> None:
        self._frame, self._at = frame, 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        first, self._at = self._at, self._at + size
        return self._frame[first : self._at].tobytes()


def _opened(response: memoryview | bytes) -> FrameReader | io.BytesIO:
    return io.BytesIO(response) if isinstance(response, bytes) else FrameReader(response)


_Protocol: Any = conn.AIOKafkaProtocol


def obstacle() -> str | None:
    """Why this aiokafka's connections cannot be taken over, or None."""
    if " ".join(inspect.signature(_Protocol.__init__).parameters) != _PARAMETERS:
        return "aiokafka's AIOKafkaProtocol takes other arguments"
    return None


def install() -> None:
    """For every connection that aiokafka makes in this process from now on."""
    conn.AIOKafkaProtocol, conn.io = FrameProtocol, SimpleNamespace(BytesIO=_opened)


def uninstall() -> None:
    """Aiokafka as it was, for tests."""
    conn.AIOKafkaProtocol, conn.io = _Protocol, io
