"""What the simulation puts in place of a broker, a clock and an event loop: logs in lists, writes that go wrong.

Nothing here knows what headrace does. Everything random comes from the run's own generator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from random import Random
from typing import Any

from schemas.codec import decode, encode
from schemas.registry import Registry
from streams.journal import WriteError

Record = tuple[int, bytes]
"""(append time in ms, payload)."""


class Clock:
    """The time of the processes' own clocks; no result may depend on it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class Envelopes:
    """A codec that costs nothing: a record travels as eight bytes. Every n-th run uses the real one instead."""

    def __init__(self) -> None:
        self._records: list[Any] = []

    def encode(self, record: Any, *_: Any) -> bytes:
        self._records.append(record)
        return len(self._records).to_bytes(8, "little")

    def decode(self, value: Any, *_: Any, **__: Any) -> Any:
        record = self._records[int.from_bytes(value, "little") - 1]
        if isinstance(record, Exception):
            # Raised itself, the worlds' one bad record would gather a traceback of every process that ever read it,
            # and with it their partitions: two gigabytes in 25,000 seeds.
            raise type(record)(*record.args)
        return record


class Wire:
    """The real codec."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def encode(self, record: Any) -> bytes:
        return b"neither Avro nor JSON" if isinstance(record, Exception) else encode(record, self._registry)

    def decode(self, value: Any) -> Any:
        return decode(value, self._registry)


class Ack:
    """The future of one write."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []
        self._result: int | None = None
        self._error: Exception | None = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> int:
        assert self._result is not None
        return self._result

    def settle(self, offset: int | None, error: Exception | None = None) -> None:
        self._result, self._error = offset, error
        for callback in self._callbacks:
            callback(self)


@dataclass
class Faults:
    """How often what goes wrong with a write, each as a probability."""

    lose: float = 0.0
    """Acked and not there."""
    refuse: float = 0.0
    """Not there, and the producer says so."""
    doubt: float = 0.0
    """There, and the producer says that it is not."""
    double: float = 0.0
    """There twice."""

    def strike(self, rng: Random) -> str:
        if not (self.lose or self.refuse or self.doubt or self.double):
            return ""
        fate = rng.random()
        for name in ("lose", "refuse", "doubt", "double"):
            fate -= getattr(self, name)
            if fate < 0:
                return name
        return ""


class Outbox:
    """One process's producer for one partition: in order, whatever happens to each write."""

    def __init__(self, log: list[Record], append_ms: Callable[[], int]) -> None:
        self._log, self._append_ms = log, append_ms
        self.waiting: deque[tuple[bytes, Ack]] = deque()
        """Writes that have not met their fate, and who is told of it."""

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, payload: bytes) -> Ack:
        ack = Ack()
        self.waiting.append((payload, ack))
        return ack

    def deliver(self, fault: str = "") -> None:
        """The oldest write meets its fate."""
        payload, ack = self.waiting.popleft()
        offset = len(self._log)
        if fault not in ("lose", "refuse"):
            self._log.append((self._append_ms(), payload))
        if fault == "double":
            self._log.append((self._append_ms(), payload))
        error = WriteError(f"cannot write: {fault}") if fault in ("refuse", "doubt") else None
        ack.settle(offset, error)

    def die(self, num_sent: int) -> None:
        """The process is gone; `num_sent` writes are on the wire and arrive, nobody hears of it."""
        for payload, _ in list(self.waiting)[:num_sent]:
            self._log.append((self._append_ms(), payload))
        self.waiting.clear()


class Pause:
    """Awaiting it gives the scheduler a chance to run something else."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Routine:
    """A coroutine driven by hand, a stretch between two awaits at a time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.result: Any = None

    def step(self) -> bool:
        """Go on to the next await; whether it has ended."""
        try:
            self._coroutine.send(None)
        except StopIteration as end:
            self.result = end.value
            return True
        return False

    def close(self) -> None:
        self._coroutine.close()
