"""The `headrace` command. One module per group of commands; each says in its `--help` how it is used."""

from __future__ import annotations

import os
import sys

from learner import environment
from schemas import early_stop
from schemas.collector import uncollected

COMPUTING = ("learn", "replay")
"""Commands that run under the pins of `learner.environment`."""

SERVING = ("worker", "learn")
"""Commands that serve until a signal comes."""


def main() -> None:
    """Run the command line and exit. Raises SystemExit."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in SERVING:
        early_stop.install()
    if command in COMPUTING:
        # They see to it themselves, by starting again. Before anything is loaded that takes 20 ms, later 300.
        threads = os.environ.get("HEADRACE_THREADS", "1")
        if threads.isdecimal():
            environment.pin(int(threads))
    with uncollected():
        from deploy.cli import entry
    sys.exit(entry.run())
