"""Named points in the code at which a test may end or stop the process: a debug hook, off in production.

``HEADRACE_FAULT_POINTS`` arms points for the life of a process; without it `reach` is a function that does nothing:
one call, no look-up, no branch. The variable is a comma-separated list of ``name=count:action``:

    checkpoint.before-rename=2:kill     SIGKILL to ourselves when the point is reached for the second time
    publish.before-manifest=1:stop      SIGSTOP: a zombie, until somebody sends SIGCONT
    *=40:kill                           at the fortieth point reached, whichever it is

``:kill`` may be left out. A name that is not in `POINTS` ends the process at its start: a test that arms a point which
no longer exists would prove nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Final

VARIABLE = "HEADRACE_FAULT_POINTS"
ANY = "*"

POINTS: Final[Mapping[str, str]] = {
    "checkpoint.before-write": "the state is copied, no file of it exists",
    "checkpoint.inside-write": "half of the temporary file is written",
    "checkpoint.before-sync": "all of the temporary file is written, nothing synced",
    "checkpoint.before-rename": "the temporary file is on disk",
    "checkpoint.before-folder-sync": "the checkpoint has its name, the folder is not synced",
    "checkpoint.before-anchor": "the checkpoint is durable, the day's anchor is not linked",
    "checkpoint.before-prune": "old checkpoints are still there",
    "checkpoint.after-write": "everything of one checkpoint is done",
    "learner.before-step": "records were read, nothing of them is learnt",
    "learner.after-cut": "a cut is made, nobody has been told",
    "publish.before-chunk": "the next chunk of a snapshot is not sent, those before it are on their way",
    "publish.chunk-acked": "one more chunk stands in the log, the manifest is not sent",
    "publish.before-manifest": "all chunks stand in the log, the manifest is not sent",
    "publish.manifest-acked": "the manifest stands in the log, the learner does not know",
    "ingest.before-journal": "a batch of outcomes is decoded, nothing of it is sent",
    "ingest.before-ack": "a batch stands in the journal, its source offset is not acknowledged",
    "join.before-fold": "a batch of journal records is read, nothing of it is folded",
    "join.before-write": "a transition block is made and not sent, those before it are on their way",
    "join.write-acked": "a transition block stands in the log, it has not been read back",
    "join.read-back": "a transition block was read back and accepted, no Progress covers it",
    "join.before-progress": "the Progress that covers what was read back is not sent",
    "join.rebuilt": "a partition knows from its own output where to go on, it has not begun",
    "decide.before-journal": "a micro-batch is decided, nothing of it is sent (immediate: its answers are)",
    "decide.before-answers": "decisions stand in the journal, nobody is answered",
    "decide.answered": "an answer is in the log, its request is not finished",
    "decide.before-commit": "requests are finished, their offsets are not committed",
    "follow.before-chunks": "a manifest passed its checks, none of its chunks is read",
    "follow.before-persist": "a snapshot passed every check, its version is not yet trusted on disk",
    "follow.before-swap": "the trusted version is on disk, the old policy still serves",
}
"""Every point, and what is true of the world when it is reached. Names are `part.moment`."""

_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Armed:
    """Counts points and sends the signal when one has been reached often enough."""

    def __init__(self, wanted: Mapping[str, tuple[int, signal.Signals]], send: Callable[[int], None]) -> None:
        """`wanted`: count and signal by name; `send` sends a signal to this process."""
        self._wanted, self._send = dict(wanted), send
        self._counts: dict[str, int] = dict.fromkeys(wanted, 0)
        self._lock = Lock()

    def __call__(self, name: str) -> None:
        """The point `name` is reached."""
        assert name in POINTS, f"{name} is not in schemas.fault_points.POINTS"
        for key in (name, ANY):
            if key in self._wanted:
                with self._lock:
                    self._counts[key] += 1
                    is_due = self._counts[key] == self._wanted[key][0]
                if is_due:
                    os.write(2, f"fault point {name}: {self._wanted[key][1].name}\n".encode())
                    self._send(self._wanted[key][1])


def parse(text: str) -> dict[str, tuple[int, signal.Signals]]:
    """What the variable says. Raises ValueError for a name, count or action that does not exist.

    >>> parse("publish.before-manifest=2:stop")
    {'publish.before-manifest': (2, <Signals.SIGSTOP: 19>)}
    """
    wanted = {}
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition("=")
        count, _, action = rest.partition(":")
        if name not in POINTS and name != ANY:
            raise ValueError(f"{VARIABLE}: no point {name!r}; there are {', '.join(POINTS)}")
        if not count.isdecimal() or int(count) < 1 or (action or "kill") not in _ACTIONS:
            raise ValueError(f"{VARIABLE}: expected {name}=<count from 1>:kill or :stop, got {part!r}")
        wanted[name] = int(count), _ACTIONS[action or "kill"]
    return wanted


def _off(name: str) -> None:
    """Production: nothing is armed."""


def _send_to_self(number: int) -> None:
    os.kill(os.getpid(), number)


def _from_environment() -> Callable[[str], None]:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return _off
    try:
        return Armed(parse(text), _send_to_self)
    except ValueError as error:
        sys.exit(f"headrace: {error}")


reach: Callable[[str], None] = _from_environment()
"""Call it with a name of `POINTS` at that point. At import: a process is armed for life or not at all."""
