"""What a process of the campaign does before its first seed.

Imports nothing that is large: numpy reads how many threads it may have when it is imported.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import tempfile
import threading
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock

NICE = 19
"""Other tests run at the same time, and theirs are the deadlines."""
LOGS = "*.log"
GC_OBJECTS = 20_000
"""Between two collections, thirty times as many as Python's: a seed makes few cycles and many blocks."""


def begin(lifeline: Connection, compiling: Lock, folder: str) -> None:
    """Called once in each process; `lifeline` ends with whoever started the campaign. All files and output go to
    `folder`."""
    os.nice(NICE)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever waits; then the lifeline ends
    tempfile.tempdir = folder
    log = os.open(f"{folder}/{os.getpid()}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    with compiling:  # the first compiles what is not in numba's cache yet, the others find it there
        from tests.simulation.campaign import WHOLE_EVERY, run_chunk

        run_chunk(0, 1)
        run_chunk(WHOLE_EVERY - 1, WHOLE_EVERY)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 20)


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(0)
