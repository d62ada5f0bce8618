"""Group commit: decisions that were answered already wait a moment, so that many go into the journal as one block.

Pure. With `reply = "immediate"` nobody waits for the journal record, and a block costs the same for one row as for
ten: the decider's time, a request to the broker, a message for the join. Rows of a journal partition keep their order:
of two sendings of one decision id the one that was answered first is journaled first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from streams.decision_blocks import BLOCK_BYTES_MAX, ROWS_MAX, Part, bytes_ceiling_of, merged

WAIT_S = 0.02
"""An answer's record waits no longer: what a decider that dies may leave unrecorded is what it answered since."""
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


class GroupCommit(Generic[Owner]):
    """Parts that wait; each has an owner, who hears of the block that they end in."""

    def __init__(self) -> None:
        self._runs: dict[int, list[_Run[Owner]]] = {}
        """By journal partition."""
        self._num_rows = 0
        self._due_s = 0.0

    def __len__(self) -> int:
        """Rows that wait."""
        return self._num_rows

    def add(self, part: Part, owner: Owner, now_s: float) -> None:
        """Let a part wait; the first one says until when."""
        if not self._num_rows:
            self._due_s = now_s + WAIT_S
        num_rows, num_bytes = len(part.rows), bytes_ceiling_of(part.columns)
        self._num_rows += num_rows
        runs = self._runs.setdefault(part.partition, [])
        if runs:
            run = runs[-1]
            fits = run.num_bytes + num_bytes <= BLOCK_BYTES_MAX and run.num_rows + num_rows <= ROWS_MAX
            if fits and run.parts[0].joins(part):
                run.parts.append(part)
                run.owners.append(owner)
                run.num_rows += num_rows
                run.num_bytes += num_bytes
                return
        runs.append(_Run([part], [owner], num_rows, num_bytes))

    def wait_s(self, now_s: float, longest_s: float) -> float:
        """How long nothing has to be written: `longest_s` when nothing waits, 0 when it is time."""
        if not self._num_rows:
            return longest_s
        return 0.0 if self._num_rows >= ROWS_ENOUGH else min(longest_s, max(0.0, self._due_s - now_s))

    def take(self) -> Iterator[tuple[Part, list[Owner]]]:
        """Everything that waits, as few parts as hold it; nothing waits any more."""
        taken, self._runs, self._num_rows = self._runs, {}, 0
        for runs in taken.values():
            for run in runs:
                yield merged(run.parts), run.owners
