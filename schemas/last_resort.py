"""The last resort: a process that was told to stop ends, whatever it waits for. A supervisor waits no longer either."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class LastResort:
    """Exits with code 1 so many seconds after `arm`, unless the process has ended by then or `disarm` came.

    Nothing is lost that was acked: what was not is done again from the log.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def arm(self, what_ran: Callable[[], str] = str) -> None:
        """Count from now, once; `what_ran` says then what kept the process."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._end, (what_ran,))
            self._timer.daemon = True
            self._timer.start()

    def disarm(self) -> None:
        """It stopped in time and goes on with something else."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, what_ran: Callable[[], str]) -> None:
        try:
            log.error(
                "stopping took longer than %g s (is the broker gone?): ending now; nothing that was acked is lost%s",
                self._seconds,
                what_ran(),
            )
        finally:
            os._exit(1)
