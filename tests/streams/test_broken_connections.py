"""aiokafka on the loop of a worker: a request on a connection that has just broken fails as it expects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from streams import broken_connections
from streams.faust_worker import new_loop

Write = Callable[[AIOKafkaConnection], Any]


@pytest.fixture(autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    policy = asyncio.get_event_loop_policy()
    made = new_loop()
    yield made
    made.close()
    broken_connections.uninstall()
    asyncio.set_event_loop_policy(policy)


async def written_to_a_broken_connection(write: Write) -> AIOKafkaConnection:
    """The connection after the peer has gone and before its reader has heard of it."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        connection = AIOKafkaConnection(host, port)
        connection._reader, connection._writer = reader, writer
        connection._read_task = reading = asyncio.create_task(asyncio.sleep(60))
        connection._versions = {18: (0, 0)}
        connection._closed_fut = asyncio.get_running_loop().create_future()
        try:
            with pytest.raises(KafkaConnectionError, match="broken"):
                await write(connection)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return connection


@pytest.mark.parametrize(
    "write",
    [lambda connection: connection.send(ApiVersionRequest()), lambda connection: connection._send_sasl_token(b"x")],
    ids=["request", "login"],
)
def test_a_write_to_a_broken_connection_is_an_error_of_the_connection(
    loop: asyncio.AbstractEventLoop, write: Write
) -> None:
    connection = loop.run_until_complete(written_to_a_broken_connection(write))
    assert not connection.connected()


def test_without_it_aiokafka_takes_it_for_a_mistake(loop: asyncio.AbstractEventLoop) -> None:
    broken_connections.uninstall()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_complete(written_to_a_broken_connection(lambda each: each.send(ApiVersionRequest())))


def test_other_mistakes_stay_mistakes() -> None:
    def wrong(self: Any) -> None:
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match="another one"):
        broken_connections._translated(wrong)(SimpleNamespace(_writer=None))
