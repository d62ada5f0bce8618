"""Kafka's frames as bytes: cut a stream into frames, read of each what a proxy must know. Pure: no I/O, no clock.

Theory of operation. Both ways a connection carries frames: an int32 size, then that many bytes. A request begins with
api key (int16), api version (int16), correlation id (int32) and client id (int16 length or -1, UTF-8); flexible
versions append tagged fields behind them and move nothing. A response begins with the correlation id alone, so its api
is that of the request with the same id: `InFlight`.

Deliberate simplifications: no TLS (its first record reads as a frame of hundreds of MiB and is refused), no SASL
handshake of version 0 (raw tokens without a header), no request header of version 0 (without a client id; only
ControlledShutdown 0 had it).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

FRAME_BYTES_MAX = 128 << 20
"""Above what any client of ours sends or asks for (fetch.max.bytes is 50 MiB); a larger size is no Kafka."""

_SIZE = struct.Struct(">i")
_REQUEST = struct.Struct(">hhih")
_HEAD_BYTES = _SIZE.size + _REQUEST.size


class FrameError(ValueError):
    """The bytes are no frame of Kafka's protocol."""


class Api(IntEnum):
    """Api keys that faults are aimed at; others are plain numbers."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    INIT_PRODUCER_ID = 22


@dataclass(frozen=True, slots=True)
class Request:
    """What the header of a request says."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str
    """Empty for Kafka's null."""


class FrameSplitter:
    """Cuts the bytes of one direction into frames, however the network cut them.

    >>> splitter = FrameSplitter()
    >>> list(splitter.feed(b"\\0\\0\\0")), list(splitter.feed(b"\\2ab\\0"))
    ([], [b'\\x00\\x00\\x00\\x02ab'])
    >>> splitter.held_bytes
    1
    """

    def __init__(self, size_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._held = bytearray()
        self._size_bytes_max = size_bytes_max

    def feed(self, some: bytes) -> Iterator[bytes]:
        """Every frame that is whole now, its size field included. Held: at most one frame and one `some`.

        The iterator raises `FrameError`, after the good frames, at a negative size or one above the limit.
        """
        self._held += some
        return self._whole()

    def _whole(self) -> Iterator[bytes]:
        while len(self._held) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self._held)
            if not 0 <= size <= self._size_bytes_max:
                raise FrameError(f"a frame of {size} bytes; expected 0 to {self._size_bytes_max}: is this Kafka?")
            end = _SIZE.size + size
            if len(self._held) < end:
                return
            frame = bytes(self._held[:end])
            del self._held[:end]
            yield frame

    @property
    def held_bytes(self) -> int:
        """Bytes of the frame that is not whole yet."""
        return len(self._held)


def read_request(frame: bytes) -> Request:
    """Header of a request frame (size field included). Raises `FrameError` when it is too short for one."""
    if len(frame) < _HEAD_BYTES:
        raise FrameError(f"a request of {len(frame)} bytes; its header alone has at least {_HEAD_BYTES}")
    api_key, api_version, correlation_id, length = _REQUEST.unpack_from(frame, _SIZE.size)
    name = frame[_HEAD_BYTES : _HEAD_BYTES + max(0, length)]
    if len(name) < length:
        raise FrameError(f"a client id of {length} bytes in a request of {len(frame)}")
    return Request(api_key, api_version, correlation_id, name.decode(errors="replace"))


def read_correlation(frame: bytes) -> int:
    """Correlation id of a response frame (size field included). Raises `FrameError` when it has none."""
    if len(frame) < 2 * _SIZE.size:
        raise FrameError(f"a response of {len(frame)} bytes; its correlation id alone ends at {2 * _SIZE.size}")
    found: int = _SIZE.unpack_from(frame, _SIZE.size)[0]
    return found


class InFlight:
    """Requests of one connection that wait for their response.

    A broker answers a connection in order, so an answer also settles every older request: those had no answer to come
    (Produce with acks=0). Nothing can pile up behind them.
    """

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def sent(self, request: Request) -> None:
        """Note a request on its way to the broker."""
        self._waiting.append(request)

    def answered(self, correlation_id: int) -> Request | None:
        """The request that this id answers; None, and nothing changed, when no such one waits."""
        if all(each.correlation_id != correlation_id for each in self._waiting):
            return None
        while (oldest := self._waiting.popleft()).correlation_id != correlation_id:
            pass
        return oldest
