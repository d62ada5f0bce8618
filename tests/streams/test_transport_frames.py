"""Responses received into the memory they are parsed from: the same bytes as through aiokafka's own reader."""

from __future__ import annotations

import asyncio
import datetime
import gc
import io
import random
import ssl
import struct
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop
from aiokafka import conn
from aiokafka.protocol.admin import ApiVersionRequest_v0
from aiokafka.protocol.fetch import FetchRequest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from streams import transport_frames
from streams.transport_frames import SHORT_BYTES, SPARE_FACTOR, SPARE_RESPONSES, FrameProtocol, FrameReader

Loop = Callable[[], asyncio.AbstractEventLoop]
Talk = Callable[[asyncio.StreamReader, FrameProtocol], Awaitable[None]]
LONG = 5 * SHORT_BYTES


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(the server's, the client's) with a certificate made for this."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    certificate = builder.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private + certificate.public_bytes(pem))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "key.pem")
    client = ssl.create_default_context(cadata=certificate.public_bytes(pem).decode())
    client.check_hostname = False
    return server, client


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


async def talk(
    pieces: list[bytes], read: Talk, tls: tuple[ssl.SSLContext, ssl.SSLContext] | tuple[None, None], pause_s: float = 0
) -> None:
    """A server sends `pieces` one after another and closes; `read` reads what came."""

    serving: list[asyncio.Task[None] | None] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls[0])
    async with server:
        running = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=running)
        protocol = FrameProtocol(running.create_future(), reader, loop=running)
        host, port = server.sockets[0].getsockname()
        transport, _ = await running.create_connection(lambda: protocol, host, port, ssl=tls[1])
        try:
            await asyncio.wait_for(read(reader, protocol), 20)
        finally:
            transport.abort()
            await asyncio.gather(*filter(None, serving), return_exceptions=True)


async def next_response(reader: asyncio.StreamReader) -> bytes | memoryview:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    body: bytes | memoryview = await reader.readexactly(size)
    assert len(body) == size
    return body


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("seed", range(3))
def test_responses_cut_anywhere_are_read_whole_and_in_order(
    loop: asyncio.AbstractEventLoop, tls: tuple[ssl.SSLContext, ssl.SSLContext], encrypted: bool, seed: int
) -> None:
    rng = random.Random(seed)
    sizes = [0, 1, 4, SHORT_BYTES, SHORT_BYTES + 1, LONG, 0, 7, LONG - 3, 2 * LONG, 4, 2 << 20, 1]
    bodies = [rng.randbytes(size) for size in sizes]
    sent = b"".join(map(framed, bodies))
    cuts = sorted(rng.sample(range(len(sent)), 40))
    pieces = [sent[first:last] for first, last in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def read(reader: asyncio.StreamReader, _: FrameProtocol) -> None:
        for body in bodies:
            found = await next_response(reader)
            assert found == body
            assert isinstance(found, bytes) or len(found) > SHORT_BYTES
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(4)
        assert reader.at_eof()

    loop.run_until_complete(talk(pieces, read, tls if encrypted else (None, None), pause_s=0.001))


@pytest.mark.parametrize("length", [2, 4, 1_000], ids=["in-the-length", "before-the-response", "in-the-response"])
def test_a_connection_that_ends_in_a_response_ends_its_reader(loop: asyncio.AbstractEventLoop, length: int) -> None:
    async def read(reader: asyncio.StreamReader, _: FrameProtocol) -> None:
        assert await next_response(reader) == b"whole"
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(4)

    loop.run_until_complete(talk([framed(b"whole") + framed(bytes(LONG))[:length]], read, (None, None)))


def test_a_length_that_cannot_be_true_ends_the_connection(loop: asyncio.AbstractEventLoop) -> None:
    async def read(reader: asyncio.StreamReader, protocol: FrameProtocol) -> None:
        with pytest.raises(ConnectionError, match="a response of -5 bytes"):
            await reader.readexactly(4)
        assert protocol._closed_fut.done()

    loop.run_until_complete(talk([struct.pack(">i", -5), b"x"], read, (None, None), pause_s=0.05))


def address(found: bytes | memoryview) -> int:
    return int(np.frombuffer(found, np.uint8).ctypes.data)


def test_the_memory_of_a_long_response_is_used_again_and_a_waste_is_given_back(loop: asyncio.AbstractEventLoop) -> None:
    first, second, other = (bytes([value]) * LONG for value in (1, 2, 3))
    small = bytes([4]) * (SHORT_BYTES + 1)
    bodies = [first, second, b"short", other, bytes([5]) * (4 * SPARE_FACTOR * SHORT_BYTES), small]

    async def read(reader: asyncio.StreamReader, protocol: FrameProtocol) -> None:
        found = []
        for body in bodies:
            found.append(await next_response(reader))
            assert found[-1] == body
        # The one after the first may be on its way while that is read, and has memory of its own then.
        places = {address(each) for each, body in zip(found, bodies, strict=True) if len(body) == LONG}
        assert len(places) < 3
        await reader.readexactly(4)
        assert len(protocol._spare) < SPARE_FACTOR * SHORT_BYTES

    loop.run_until_complete(talk([*map(framed, bodies), framed(b"end")], read, (None, None), pause_s=0.02))


def receive(protocol: FrameProtocol, sent: bytes) -> None:
    """As an event loop does."""
    while sent:
        room = protocol.get_buffer(-1)
        num_bytes = min(len(room), len(sent))
        room[:num_bytes] = sent[:num_bytes]
        sent = sent[num_bytes:]
        protocol.buffer_updated(num_bytes)


async def unconnected() -> tuple[asyncio.StreamReader, FrameProtocol]:
    running = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=running)
    return reader, FrameProtocol(running.create_future(), reader, loop=running)


def test_long_responses_that_nobody_has_read_yet_do_not_share_memory(loop: asyncio.AbstractEventLoop) -> None:
    async def check() -> None:
        reader, protocol = await unconnected()
        bodies = [bytes([value]) * LONG for value in range(6)]
        receive(protocol, framed(bodies[0]))
        first = await next_response(reader)
        receive(protocol, framed(bodies[1]))
        assert first == bodies[0], "until the next is asked for"
        assert await next_response(reader) == bodies[1]
        asked = asyncio.ensure_future(reader.readexactly(4))
        await asyncio.sleep(0)
        receive(protocol, b"".join(map(framed, bodies[2:])))
        assert struct.unpack(">i", await asked) == (LONG,)
        assert await reader.readexactly(LONG) == bodies[2]
        for body in bodies[3:]:
            assert await next_response(reader) == body

    loop.run_until_complete(check())


def test_a_quiet_connection_keeps_no_long_memory(loop: asyncio.AbstractEventLoop) -> None:
    async def check() -> None:
        reader, protocol = await unconnected()
        receive(protocol, framed(bytes(LONG)))
        await next_response(reader)
        for num in range(SPARE_RESPONSES):
            receive(protocol, framed(b"short"))
            assert await next_response(reader) == b"short"
            assert (len(protocol._spare) >= LONG) == (num < SPARE_RESPONSES - 1)

    loop.run_until_complete(check())


def test_nothing_keeps_a_protocol_that_nobody_needs(loop: asyncio.AbstractEventLoop) -> None:
    async def check() -> None:
        reader, protocol = await unconnected()
        receive(protocol, framed(bytes(LONG)))
        await next_response(reader)
        kept = weakref.ref(protocol)
        del reader, protocol
        assert kept() is None

    gc.disable()
    try:
        loop.run_until_complete(check())
    finally:
        gc.enable()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_responses_that_come_together_with_the_end_are_read(
    loop: asyncio.AbstractEventLoop, tls: tuple[ssl.SSLContext, ssl.SSLContext], encrypted: bool
) -> None:
    bodies = [bytes([value]) * 30 for value in range(3)]

    async def read(reader: asyncio.StreamReader, _: FrameProtocol) -> None:
        await asyncio.sleep(0.2)
        for body in bodies:
            assert await next_response(reader) == body

    loop.run_until_complete(talk([b"".join(map(framed, bodies))], read, tls if encrypted else (None, None)))


def test_a_writer_is_held_back_as_ever(loop: asyncio.AbstractEventLoop) -> None:
    async def check() -> None:
        _, protocol = await unconnected()
        protocol.pause_writing()
        drained = asyncio.ensure_future(protocol._drain_helper())
        await asyncio.sleep(0.01)
        assert not drained.done()
        protocol.resume_writing()
        await asyncio.wait_for(drained, 5)

    loop.run_until_complete(check())


def fetched(correlation_id: int, records: bytes) -> bytes:
    """A FetchResponse, version 4, with `records` of one partition."""
    head = struct.pack(">iii", correlation_id, 0, 1) + struct.pack(">h", 1) + b"t" + struct.pack(">i", 1)
    return framed(head + struct.pack(">ihqqii", 0, 0, 9, 9, -1, len(records)) + records)


async def fetches(num: int, records: Callable[[int], bytes]) -> list[bytes]:
    """What a connection of aiokafka's gets for `num` requests that are answered all at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: list[int] = []
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                api, _, correlation_id = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
                if api == ApiVersionRequest_v0.API_KEY:
                    writer.write(framed(struct.pack(">ihi", correlation_id, 0, 1) + struct.pack(">hhh", 1, 0, 4)))
                    continue
                asked.append(correlation_id)
                if len(asked) == num:
                    writer.write(b"".join(fetched(each, records(place)) for place, each in enumerate(asked)))
                    asked = []
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = await conn.create_conn(*server.sockets[0].getsockname(), request_timeout_ms=10_000)
        found: list[bytes] = []
        for _ in range(3):
            requests = [connection.send(FetchRequest(100, 1, LONG, 0, [("t", [(0, 0, LONG)])])) for _ in range(num)]
            found += [answer.topics[0][1][0][-1] for answer in await asyncio.gather(*requests)]
        await connection.close()
        await asyncio.sleep(0.05)  # the server hears of it
        return found


def test_a_connection_of_aiokafka_gets_every_answer_as_bytes(loop: asyncio.AbstractEventLoop) -> None:
    def records(place: int) -> bytes:
        return bytes([place]) * (LONG if place % 2 else 100)

    transport_frames.install()
    try:
        found = loop.run_until_complete(fetches(5, records))
    finally:
        transport_frames.uninstall()
    assert found == 3 * [records(place) for place in range(5)]
    assert {type(each) for each in found} == {bytes}


def test_a_frame_reads_like_a_file_of_bytes() -> None:
    content = random.Random(1).randbytes(1_000)
    ours, theirs = FrameReader(memoryview(np.frombuffer(content, np.uint8))), io.BytesIO(content)
    for size in (1, 2, 4, 0, 500, 493, 10, 1):
        found = ours.read(size)
        assert found == theirs.read(size)
        assert type(found) is bytes, "a view would change with the next response"


def test_installed_it_stands_in_aiokafka_and_uninstalled_it_is_gone() -> None:
    assert transport_frames.obstacle() is None
    protocol, files = conn.AIOKafkaProtocol, conn.io
    transport_frames.install()
    transport_frames.install()
    try:
        assert conn.AIOKafkaProtocol is FrameProtocol
        assert conn.io.BytesIO(b"ab").read(2) == b"ab"
        assert isinstance(conn.io.BytesIO(memoryview(b"ab")), FrameReader)
    finally:
        transport_frames.uninstall()
    assert (conn.AIOKafkaProtocol, conn.io) == (protocol, files)
