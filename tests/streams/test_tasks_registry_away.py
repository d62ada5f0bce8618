"""Task definitions that are read while the schema registry is away: kept, and known in order when it is back."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.codec import encode
from schemas.errors import UserError
from schemas.records import TaskRecord
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import parse
from streams.tasks import TaskFollower
from tests.kafka.decider_process import PROJECT, project
from tests.schemas.away import AwayRegistry, message

REGISTRY = FileRegistry()


def applied(*windows: str) -> list[TaskRecord]:
    """The task `route` with one reward window after the other."""
    text = PROJECT.format(namespace="unit", reply="immediate")
    return [parse(text.replace('"2s"', f'"{window}"')).tasks[0].record() for window in windows]


def test_a_definition_read_while_the_registry_is_away_is_known_when_it_is_back() -> None:
    registry = AwayRegistry()
    follower = TaskFollower(CommonSettings(namespace="unit"), registry)
    first, last = (message(encode(record, REGISTRY), k) for k, record in enumerate(applied("3s", "4s")))
    follower._records.offer([first])
    follower._records.offer([last])
    assert (follower.changes, follower.table.named("route")) == (0, None)
    registry.away = False
    follower._records.offer()
    assert follower.changes == 2
    (task,) = follower.table.current
    assert task.fingerprint == applied("4s")[0].fingerprint, "the last one in the log is in force"


def test_who_waits_for_the_definitions_hears_that_they_wait_for_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = AwayRegistry()
    follower = TaskFollower(CommonSettings(namespace="unit"), registry)
    records = [project("unit").namespace.record(), *applied("3s")]
    log: list[Any] = [message(encode(record, REGISTRY), k) for k, record in enumerate(records)]

    def messages() -> Any:
        yield from log
        follower._is_at_end = True
        while not follower._stopping.wait(0.01):
            yield None

    monkeypatch.setattr(follower, "_messages", messages)
    monkeypatch.setattr("streams.tasks.require_topics", lambda _, names: dict.fromkeys(names, 4))
    with follower:
        with pytest.raises(UserError, match=r"waits for its schema: the schema registry did not answer.*check that"):
            follower.wait_ready(0.3)
        registry.away = False
        follower.wait_ready(20)
        assert [task.name for task in follower.table.current] == ["route"]
