"""A broker of lists: topics with append-time clocks of their own, group offsets, and a consumer that reads them.

`ListConsumer` is what `streams.redelivery` and `streams.snapshots` use of a confluent-kafka consumer, no more.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from confluent_kafka import OFFSET_END, KafkaError

from tests.simulation.virtual import Clock, Outbox, Record

START_MS = 1_700_000_000_000


class Broker:
    """All topics of a namespace."""

    def __init__(self, clock: Clock, topics: dict[str, int]) -> None:
        self.clock = clock
        self.logs: dict[str, list[list[Record]]] = {name: [[] for _ in range(num)] for name, num in topics.items()}
        self.steps_ms: dict[tuple[str, int], int] = {}
        """By how much the clock of a partition's leader is off."""
        self.committed: dict[tuple[str, int], int] = {}
        """Next offset by group and partition."""

    @property
    def now_ms(self) -> int:
        """True time."""
        return START_MS + int(self.clock.now_s * 1000)

    def append_ms(self, topic: str, partition: int) -> int:
        """What the leader's clock says."""
        return self.now_ms + self.steps_ms.get((topic, partition), 0)

    def append(self, topic: str, partition: int, payload: bytes) -> int:
        """Write; returns the offset."""
        log = self.logs[topic][partition]
        log.append((self.append_ms(topic, partition), payload))
        return len(log) - 1

    def outboxes(self, topic: str) -> dict[int, Outbox]:
        """A producer per partition, for one process."""
        return {
            partition: Outbox(log, lambda partition=partition: self.append_ms(topic, partition))  # type: ignore[misc]
            for partition, log in enumerate(self.logs[topic])
        }


class _Message:
    def __init__(self, topic: str, partition: int, offset: int, record: Record | None) -> None:
        self._place, self._record = (topic, partition, offset), record

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._place[2]

    def error(self) -> Any:
        return None if self._record else SimpleNamespace(code=lambda: KafkaError._PARTITION_EOF)

    def value(self) -> bytes | None:
        return self._record[1] if self._record else None

    def timestamp(self) -> tuple[int, int]:
        return (2, self._record[0] if self._record else -1)


class ListConsumer:
    """Reads a broker of lists; tells the end of a partition once each time it gets there.

    Where nothing is to be read, a poll takes its whole time: `now_s` says how much that was so far.
    """

    def __init__(self, broker: Broker, namespace: str) -> None:
        self._broker, self._cut = broker, len(namespace) + 1
        self._at: dict[tuple[str, int], int] = {}
        self._ended: dict[tuple[str, int], int] = {}
        self._turns: deque[tuple[str, int]] = deque()
        self._waited_s = 0.0

    def now_s(self) -> float:
        return self._waited_s

    def _log(self, topic: str, partition: int) -> list[Record]:
        return self._broker.logs[topic[self._cut :]][partition]

    def assign(self, places: list[Any]) -> None:
        self._at = {(place.topic, place.partition): place.offset for place in places}
        self._turns, self._ended = deque(self._at), {}

    def unassign(self) -> None:
        self.assign([])

    def get_watermark_offsets(self, place: Any, timeout: float = 0) -> tuple[int, int]:
        return 0, len(self._log(place.topic, place.partition))

    def offsets_for_times(self, wanted: list[Any], timeout: float = 0) -> list[Any]:
        found = []
        for place in wanted:
            log = self._log(place.topic, place.partition)
            offset = next((i for i, (time_ms, _) in enumerate(log) if time_ms >= place.offset), OFFSET_END)
            found.append(SimpleNamespace(topic=place.topic, partition=place.partition, offset=offset))
        return found

    def poll(self, timeout: float = 0) -> Any:
        for _ in range(len(self._turns)):
            self._turns.rotate(1)
            place = self._turns[0]
            log, offset = self._log(*place), self._at[place]
            if offset < len(log):
                self._at[place] = offset + 1
                return _Message(*place, offset, log[offset])
            if self._ended.get(place) != offset:
                self._ended[place] = offset
                return _Message(*place, offset, None)
        self._waited_s += timeout
        return None

    def close(self) -> None:
        pass
