"""Logging of the workers: to stderr, and an outage is said once, not a thousand times.

aiokafka writes about sixty errors per second while a broker is gone, librdkafka one per try.
"""

from __future__ import annotations

import logging
import re
import sys
import time

from schemas.outage import REPEAT_S, Outage

_NOISY = ("aiokafka", "headrace.kafka", "faust", "kafka", "mode")
_NUMBERS = re.compile(r"\d+(\.\d+)?")
_OUTAGE = re.compile(
    "connect|refused|not ready|NotReady|coordinator|metadata|transport failure|timed out|overlapping|brokers are down",
    re.IGNORECASE,
)
"""A broker that is gone shows in twenty different messages of three clients."""
_AFTERMATH = re.compile("heartbeat failed|offsetcommit failed", re.IGNORECASE)
"""Said when it is back: the session is over, and the group is joined again. No news in an outage, but otherwise."""
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class SayOnce(logging.Filter):
    """Lets a message through once per `REPEAT_S`, whatever numbers (ports, attempts, seconds) stand in it.

    Those that tell of an outage are complaints to `outage`, which knows whether it has been said.
    """

    def __init__(self, outage: Outage, repeat_s: float = REPEAT_S) -> None:
        super().__init__()
        self._outage = outage
        self._repeat_s = repeat_s
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a repetition; the next one that is let through says how many were not."""
        if record.levelno < logging.WARNING or not record.name.startswith(_NOISY):
            return True
        text = record.getMessage()
        if _OUTAGE.search(text) or (self._outage.is_on and _AFTERMATH.search(text)):
            return self._outage.begins() and _rewritten(record, f"waiting for the broker, nothing is lost: {text}")
        key = record.name + _NUMBERS.sub("#", text)[:120]
        now = time.monotonic()
        said_s, num_left_out = self._said.get(key, (-self._repeat_s, 0))
        if now - said_s < self._repeat_s:
            self._said[key] = (said_s, num_left_out + 1)
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[key] = (now, 0)
        return _rewritten(record, f"{text} (and {num_left_out} like this)" if num_left_out else text)


def _rewritten(record: logging.LogRecord, text: str) -> bool:
    """True, after the record says `text` and shows no traceback."""
    record.msg, record.args = text, None
    record.exc_info, record.exc_text = None, None
    return True


def set_up(level: str) -> Outage:
    """Log to stderr from `level` on, third parties from WARNING on; returns what they say of outages."""
    outage = Outage()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(SayOnce(outage))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Faust's own services log for our subclasses under the names of our modules.
    ours = ("headrace.kafka", "streams.transport", "streams.transport_thread")
    for name in ("faust", "mode", "aiokafka", "kafka", "numba", "httpx", "httpx2", *ours):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    return outage
