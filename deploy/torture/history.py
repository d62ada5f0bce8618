"""What happened when: one line of JSON per event, for people who look for a cause afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.torture.plan import Planned


@dataclass(slots=True)
class Hit:
    """One fault as it really went. Times in seconds since the shop opened; None: never."""

    planned: Planned
    began_s: float
    healed_s: float | None = None
    """The process was started again, the network or disk was whole again."""
    recovered_s: float | None = None
    """What was hit serves again."""
    whole_s: float = 0.0
    """What it stands on was whole again: brokers, its network. Nothing recovers before that."""
    passed_over: str = ""
    """Why nothing was done."""
    num_kills: int = 0
    """SIGKILLs that really ended a process."""
    is_over: bool = False
    """Recovered, or given up."""
    bites: int = 0
    """Frames and connections that a network fault really touched."""

    @property
    def recovery_s(self) -> float | None:
        """From healing, its own and that of what it stands on, until it served again."""
        if self.healed_s is None or self.recovered_s is None:
            return None
        return max(0.0, self.recovered_s - max(self.healed_s, self.whole_s))


@dataclass(slots=True)
class End:
    """A process of ours that ended without being told to."""

    at_s: float
    name: str
    code: int
    last_words: str


@dataclass
class History:
    """Collects events; every one stands in the file before `note` returns. Thread-safe."""

    file: Path
    say: Callable[[str], None]
    hits: list[Hit] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._out = self.file.open("w", buffering=1)

    def open_shop(self) -> None:
        """Time counts from here."""
        self._began_s = time.monotonic()

    @property
    def now_s(self) -> float:
        """Seconds since the shop opened."""
        return time.monotonic() - self._began_s

    def under_fault(self) -> set[str]:
        """Targets of the faults that are under way."""
        return {hit.planned.target for hit in self.hits if not (hit.is_over or hit.passed_over)}

    def note(self, event: str, **details: Any) -> None:
        """Write one event."""
        line = json.dumps({"at_s": round(self.now_s, 3), "event": event, **details})
        with self._lock:
            self._out.write(line + "\n")

    def close(self) -> None:
        """No more events."""
        self._out.close()
