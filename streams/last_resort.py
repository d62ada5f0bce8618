"""The last resort: a process that was told to stop ends, whatever it waits for. A supervisor waits no longer either."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


def end_by_force_after(seconds: float, what_ran: Callable[[], str] = str) -> None:
    """Exit with code 1 in so many seconds, unless the process has ended by then; `what_ran` says what kept it.

    Nothing is lost that was acked: what was not is done again from the log.
    """
    timer = threading.Timer(seconds, _end, (seconds, what_ran))
    timer.daemon = True
    timer.start()


def _end(waited_s: float, what_ran: Callable[[], str]) -> None:
    try:
        log.error(
            "stopping took longer than %g s (is the broker gone?): ending now; nothing that was acked is lost%s",
            waited_s,
            what_ran(),
        )
    finally:
        os._exit(1)
