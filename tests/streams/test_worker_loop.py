"""The event loop of a worker keeps the promises that aiokafka relies on."""

from __future__ import annotations

import asyncio

from streams.faust_worker import new_loop


def test_writing_to_a_connection_that_just_broke_is_no_mistake_of_the_program() -> None:
    """aiokafka's tasks for metadata and the group end for good by a RuntimeError, which uvloop raises here."""

    async def run() -> None:
        broker = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with broker:
            _, writer = await asyncio.open_connection(*broker.sockets[0].getsockname())
            writer.transport.abort()
            await asyncio.sleep(0.1)
            writer.write(b"a request")

    loop = new_loop()
    try:
        loop.run_until_complete(run())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
