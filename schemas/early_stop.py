"""SIGTERM and SIGINT to a process that does not serve yet: it ends at once, with code 0.

Nothing is begun by then that needs an end, and what goes on (a minute of numba's compiler in a new container) cannot
be asked to stop. The default would not do: the first process of a container is not ended by a signal that it does not
handle, and `docker stop` would wait in vain until it kills.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


def install(code: Callable[[], int] = int) -> None:
    """From now on, until the process sets handlers of its own; it ends with `code`. Call it in the main thread."""
    for number in _NUMBERS:
        signal.signal(number, lambda *_: os._exit(code()))


@contextmanager
def ending_at_once() -> Iterator[None]:
    """While it lasts; then the handlers from before are back. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
