"""The learner's process: ``python -m learner`` or ``headrace learn``."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from learner import environment
from learner.settings import LearnerSettings
from schemas import early_stop
from schemas.last_resort import LastResort, end


def main(settings: LearnerSettings) -> int:
    """Learn until SIGTERM or SIGINT; returns the exit code.

    Call it before anything has been computed: the process starts itself again under the pins of `learner.environment`
    if it does not run under them yet. Raises UserError for what only the user can put right.
    """
    early_stop.install()
    environment.pin(settings.threads)
    from learner.loop import Loop  # after the pins: this loads the numeric libraries

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    LastResort(settings.stop_s_max).hear()
    return Loop(settings, stop).run()


if __name__ == "__main__":
    from schemas.errors import UserError
    from schemas.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        end(main(load_settings(LearnerSettings)))
    except UserError as error:
        sys.exit(f"headrace learn: {error}")
