"""The last resort: a process that was told to stop ends, whatever it waits for. A supervisor waits no longer either.

Three things could keep a process beyond its time, and each has an answer here. Its main thread may be in a call of C
that waits for a broker, and Python's signal handlers run between two of its own instructions: a thread hears the
signal (`hear`). A thread of Python is not run any more once the interpreter has begun to end, nor while a call of C
keeps its lock: a second guard needs none (faulthandler's, in C). And the interpreter's end waits for every thread that
still asks a broker which is gone, and for the ends of all clients: a process whose work is done and closed does not
go through it (`end`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 0.5
"""The second guard comes so much later: it can only say where each thread was."""


class LastResort:
    """Exits with code 1 so many seconds after `arm`, unless the process has ended by then or `disarm` came.

    Nothing is lost that was acked: what was not is done again from the log.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def hear(self) -> None:
        """Arm at the moment of SIGTERM or SIGINT, whatever the main thread is in.

        Call it in the main thread of a process that handles these signals and runs no event loop there: asyncio has
        a use of its own for what Python writes when a signal comes.
        """
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True).start()

    def arm(self, what_ran: Callable[[], str] = str) -> None:
        """Count from now, once; `what_ran` says then what kept the process."""
        if not self._lock.acquire(blocking=False):  # somebody arms; a signal's handler must not wait for it
            return
        try:
            if self._timer is None:
                with suppress(OSError, ValueError, RuntimeError):  # it wants a stderr, for where each thread was
                    faulthandler.dump_traceback_later(self._seconds + GRACE_S, exit=True)
                self._timer = threading.Timer(self._seconds, self._end, (what_ran,))
                self._timer.daemon = True
                self._timer.start()
        finally:
            self._lock.release()

    def disarm(self) -> None:
        """It stopped in time and goes on with something else."""
        faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _listen(self, heard: int) -> None:
        while numbers := os.read(heard, 64):
            if any(number in numbers for number in SIGNALS):
                self.arm()

    def _end(self, what_ran: Callable[[], str]) -> None:
        try:
            log.error(
                "stopping took longer than %g s (is the broker gone?): ending now; nothing that was acked is lost%s",
                self._seconds,
                what_ran(),
            )
        finally:
            os._exit(1)


def end(code: int) -> NoReturn:
    """End this process with `code`, now: its work is done, and whatever had to be delivered or closed has been."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
