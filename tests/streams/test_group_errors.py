"""An error that aiokafka's group coordinator puts aside: taken, so that it goes on, or raised."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator

from streams.group_errors import take_error


async def put_aside(error: Exception) -> tuple[Any, asyncio.Future[Any]]:
    """aiokafka's own coordinator right after `error`, and what it waits for before it goes on."""
    loop = asyncio.get_running_loop()
    coordinator: Any = GroupCoordinator.__new__(GroupCoordinator)
    coordinator.group_id = "shop.join"
    coordinator._subscription = SimpleNamespace(abort_waiters=lambda error: None)
    coordinator._pending_exception = coordinator._error_consumed_fut = None
    coordinator._closing = loop.create_future()
    coordinator._rejoin_needed_fut = loop.create_future()
    coordinator._coordination_task = loop.create_future()
    waiting = asyncio.ensure_future(coordinator._push_error_to_user(error))
    await asyncio.sleep(0)
    assert not waiting.done()
    return coordinator, waiting


@pytest.mark.parametrize(
    "error",
    [errors.KafkaError(repr(errors.UnknownError())), errors.RequestTimedOutError(), errors.KafkaConnectionError()],
    ids=["a code without a rule", "no answer", "no connection"],
)
def test_what_may_pass_is_taken_and_the_group_is_joined_again(error: Exception) -> None:
    async def run() -> None:
        coordinator, waiting = await put_aside(error)
        take_error(coordinator)
        await asyncio.wait_for(waiting, 5)
        assert coordinator._rejoin_needed_fut.done()
        take_error(coordinator)  # nothing is left to take

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [errors.GroupAuthorizationFailedError("shop.join"), errors.InconsistentGroupProtocolError()], ids=repr
)
def test_what_no_trying_mends_is_raised(error: Exception) -> None:
    async def run() -> None:
        coordinator, _ = await put_aside(error)
        with pytest.raises(type(error)):
            take_error(coordinator)

    asyncio.run(run())


def test_a_coordinator_that_has_ended_is_not_waited_for() -> None:
    async def run() -> None:
        coordinator, _ = await put_aside(errors.KafkaError("x"))
        coordinator._coordination_task.set_exception(errors.KafkaError("Unexpected error during coordination"))
        with pytest.raises(errors.KafkaError, match="during coordination"):
            take_error(coordinator)

    asyncio.run(run())
