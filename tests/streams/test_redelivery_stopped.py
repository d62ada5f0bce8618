"""A decider told to stop while it looks up earlier answers without a broker ends: nobody needs them any more."""

from __future__ import annotations

import threading
import time

from schemas.outage import Outage
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings, load_settings
from schemas.task import TaskTable
from streams.redelivery import Redelivery


def test_the_search_ends_when_the_process_is_told_to_stop() -> None:
    stopping = threading.Event()
    settings = load_settings(CommonSettings, bootstrap="127.0.0.1:1")
    beats: list[float] = []
    search = Redelivery(
        settings, FileRegistry(), TaskTable(), 4, stopping, lambda: beats.append(time.monotonic()), Outage()
    )
    found: list[object] = []
    looking = threading.Thread(target=lambda: found.append(search.answered({0: 5}, 0)), daemon=True)
    looking.start()
    looking.join(1.0)
    assert looking.is_alive(), "it waits for a broker as long as the process serves"
    stopping.set()
    looking.join(30)
    assert found == [{}]
    assert beats, "whoever waits for a broker is not dead"
