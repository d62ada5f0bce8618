"""The `headrace` command. One module per group of commands; each says in its `--help` how it is used."""

from __future__ import annotations

import os
import signal
import sys

COMPUTING = ("learn", "replay")
"""Commands that run under the pins of `learner.environment`."""

SERVING = ("worker", "learn")
"""Commands that serve until a signal comes."""
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit. Raises SystemExit."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # nothing is begun yet: what it raises in an import is only a traceback
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    _prepare(command)
    from schemas.collector import uncollected

    with uncollected():
        from deploy.cli import entry
    if command not in SERVING:
        signal.signal(signal.SIGINT, before)
    sys.exit(entry.run())


def _prepare(command: str) -> None:
    """What must come before all else is loaded."""
    if command in SERVING:
        from schemas import early_stop

        early_stop.install()
    if command in COMPUTING:
        from learner import environment

        # They see to it themselves, by starting again. Before anything is loaded that takes 20 ms, later 300.
        threads = os.environ.get("HEADRACE_THREADS", "1")
        if threads.isdecimal():
            environment.pin(int(threads))
