"""Learner processes by the dozen: one helper loads everything once and forks a real `Loop` per command.

Run as a script it reads one JSON object per line (settings, armed fault points), forks, and prints the child's pid,
then how it ended. A learner with all its experts takes seconds to load and a tenth of one to fork.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from learner import checkpoint, environment, loop, publish
from learner.settings import LearnerSettings
from schemas.fault_points import Armed, parse
from schemas.registry import FileRegistry
from schemas.settings import load_settings

NAMES = ("bootstrap", "namespace", "state_dir", "signing_key", "channel", "checkpoint_dir", "checkpoint_cuts")
ENDED_S_MAX = 60.0


class Helper:
    """The test's side."""

    def __init__(self, said: Path) -> None:
        root = Path(__file__).resolve().parents[2]
        pins = environment.pins(1, environment.cpu_flags())
        self._log = said.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **pins, "PYTHONPATH": str(root), "HEADRACE_DEVICE": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._read(120) == {"ready": True}

    def start(self, settings: LearnerSettings, faults: str = "") -> int:
        """Fork a learner; its pid."""
        assert self._process.stdin is not None
        values = {name: str(getattr(settings, name)) for name in NAMES}
        self._process.stdin.write(json.dumps({"settings": values, "faults": faults}) + "\n")
        self._process.stdin.flush()
        return int(self._read(30)["pid"])

    def ended(self, pid: int, within_s: float) -> int:
        """How the learner ended (as `Popen.returncode`); one that lives on after `within_s` is killed."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], within_s)[0]:
            os.kill(pid, signal.SIGKILL)
        return int(self._read(ENDED_S_MAX)["code"])

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], timeout_s)[0], "the helper does not answer"
        line = self._process.stdout.readline()
        assert line, "the helper ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()


def learn(values: dict[str, str], faults: str) -> int:
    """The child: a learner as `headrace learn` runs it, less the loading."""
    from learner.update import TaskLearner

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if faults:
        armed = Armed(parse(faults), lambda number: os.kill(os.getpid(), number))
        for module in (checkpoint, loop, publish):
            module.reach = armed  # type: ignore[attr-defined]  # bound at import, before this process was armed
    settings = load_settings(LearnerSettings, **values)
    return loop.Loop(settings, stop).run(lambda task: TaskLearner(task, "cpu"))


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(process)d %(levelname)s %(message)s")
    environment.configure(1, "cpu")
    from learner.warm_up import warm_up

    warm_up(FileRegistry(), "cpu")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = learn(command["settings"], command["faults"])
            except BaseException:
                logging.exception("the learner ended")
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
