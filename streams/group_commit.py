"""Group commit: decisions that were answered already wait a moment, so that many go into the journal as one block.

Pure. With `reply = "immediate"` nobody waits for the journal record, and a block costs the same for one row as for
ten: the decider's time, a request to the broker, a message for the join. Rows of a journal partition that wait keep
their order: of two sendings of one decision id the one that was answered first is journaled first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from streams.decision_blocks import BLOCK_BYTES_MAX, ROWS_MAX, Part, bytes_ceiling_of, merged

WAIT_S = 0.02
"""When an answer's record is due. What a decider that dies may leave unrecorded is what it answered in about this time,
at most twice this, and what is on its way to the broker."""
ROWS_ENOUGH = 64
"""With so many rows waiting more company saves nothing."""

Owner = TypeVar("Owner")


@dataclass(slots=True)
class _Run(Generic[Owner]):
    """Parts that follow each other in one journal partition and fit into one block."""

    parts: list[Part]
    owners: list[Owner]
    num_rows: int
    num_bytes: int
    """At most."""
    due_s: float

    def takes(self, part: Part, num_bytes: int) -> bool:
        """Whether the part fits in."""
        return (
            self.num_bytes + num_bytes <= BLOCK_BYTES_MAX
            and self.num_rows + len(part.rows) <= ROWS_MAX
            and self.parts[0].joins(part)
        )


class GroupCommit(Generic[Owner]):
    """Parts that wait; each has an owner, who hears of the block that they end in."""

    def __init__(self) -> None:
        self._runs: deque[_Run[Owner]] = deque()
        """Oldest first."""
        self._newest: dict[int, _Run[Owner]] = {}
        """Of those, the last one of each journal partition."""
        self._num_rows = 0

    def __len__(self) -> int:
        """Rows that wait."""
        return self._num_rows

    def add(self, part: Part, owner: Owner, now_s: float) -> None:
        """Let a part wait, with others of its partition if they may stand in one block."""
        num_bytes = bytes_ceiling_of(part.columns)
        self._num_rows += len(part.rows)
        run = self._newest.get(part.partition)
        if run is None or not run.takes(part, num_bytes):
            run = self._newest[part.partition] = _Run([], [], 0, 0, now_s + WAIT_S)
            self._runs.append(run)
        run.parts.append(part)
        run.owners.append(owner)
        run.num_rows += len(part.rows)
        run.num_bytes += num_bytes

    def wait_s(self, now_s: float, longest_s: float) -> float:
        """How long nothing is due: `longest_s` when nothing waits, 0 when something is."""
        if not self._num_rows:
            return longest_s
        return 0.0 if self._num_rows >= ROWS_ENOUGH else min(longest_s, max(0.0, self._runs[0].due_s - now_s))

    def due(self, now_s: float) -> Iterator[tuple[Part, list[Owner]]]:
        """What is to be written now. One block where that will do: the next request need not wait for several."""
        while self._num_rows >= ROWS_ENOUGH or (self._runs and self._runs[0].due_s + WAIT_S <= now_s):
            yield self._oldest()
        if self._runs and self._runs[0].due_s <= now_s:
            yield self._oldest()

    def all(self) -> Iterator[tuple[Part, list[Owner]]]:
        """Everything that waits. What was yielded last waits on if `put_back` is called."""
        while self._runs:
            yield self._oldest()

    def put_back(self, part: Part, owners: list[Owner]) -> None:
        """It could not be written: it is the oldest again, and due."""
        self._runs.appendleft(_Run([part], owners, len(part.rows), bytes_ceiling_of(part.columns), 0.0))
        self._newest.setdefault(part.partition, self._runs[0])
        self._num_rows += len(part.rows)

    def _oldest(self) -> tuple[Part, list[Owner]]:
        run = self._runs.popleft()
        self._num_rows -= run.num_rows
        partition = run.parts[0].partition
        if self._newest.get(partition) is run:
            del self._newest[partition]
        return merged(run.parts), run.owners
