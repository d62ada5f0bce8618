"""Which offsets may be committed: the end of the contiguous run of finished requests, per partition.

Pure bookkeeping, thread-safe: requests begin on the loop and end in delivery callbacks. Committing past an unfinished
request would lose it at the next crash, and a shop would hear nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable


class Offsets:
    """Requests on their way. Partitions that are not owned are ignored: their new owner commits them.

    >>> offsets = Offsets()
    >>> offsets.own([0])
    >>> for offset in (5, 6, 7): offsets.begin(0, offset)
    >>> offsets.end(0, 6); offsets.take()
    {}
    >>> offsets.end(0, 5); offsets.take()
    {0: 7}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, deque[int]] = {}
        """Per owned partition: offsets from the first unfinished one on, rising."""
        self._finished: dict[int, set[int]] = {}
        """Those of them that are finished."""
        self._first: dict[int, int] = {}
        """First offset begun since the partition became ours."""
        self._ready: dict[int, int] = {}
        self._done: dict[int, int] = {}
        """The furthest that was ever ready of each partition."""
        self._num_open = 0

    def own(self, partitions: Iterable[int]) -> None:
        """These are ours from now on, with nothing on its way."""
        with self._lock:
            for partition in partitions:
                self._forget(partition)
                self._open[partition] = deque()
                self._finished[partition] = set()

    def disown(self, partitions: Iterable[int]) -> None:
        """These are no longer ours: whatever ends there is not committed by us."""
        with self._lock:
            for partition in partitions:
                self._forget(partition)

    def owns(self, partition: int) -> bool:
        """Whether it is ours now."""
        return partition in self._open

    def begin(self, partition: int, offset: int) -> None:
        """A request was read. Offsets of a partition come in rising order."""
        with self._lock:
            if partition in self._open:
                self._first.setdefault(partition, offset)
                self._open[partition].append(offset)
                self._num_open += 1

    def end(self, partition: int, offset: int) -> None:
        """Its answer is delivered, or it was written off to the dead letters."""
        with self._lock:
            requests = self._open.get(partition)
            if not requests or offset < requests[0]:
                return
            finished = self._finished[partition]
            if offset in finished:
                return
            finished.add(offset)
            self._num_open -= 1
            while requests and requests[0] in finished:
                first = requests.popleft()
                finished.remove(first)
                self._ready[partition] = self._done[partition] = first + 1

    def pass_over(self, partition: int, offset: int) -> None:
        """The client has read up to `offset`, and all that it gave us has begun.

        Behind the last request it may have found what is no request and never ends: aborted ones, control batches.
        """
        with self._lock:
            requests = self._open.get(partition)
            if requests is not None and not requests and offset > self._done.get(partition, 0):
                self._first.setdefault(partition, offset - 1)
                self._ready[partition] = self._done[partition] = offset

    def take(self) -> dict[int, int]:
        """Offsets to commit per partition: those that moved since the last call."""
        with self._lock:
            ready, self._ready = self._ready, {}
            return ready

    def give_back(self, partition: int, offset: int) -> None:
        """A commit that was taken did not succeed: take it again, unless the partition has changed hands since."""
        with self._lock:
            first = self._first.get(partition)
            if first is not None and offset > max(first, self._ready.get(partition, -1)):
                self._ready[partition] = offset

    @property
    def num_open(self) -> int:
        """Requests read and not finished, of the partitions we own."""
        return self._num_open

    def is_idle(self, partitions: Iterable[int]) -> bool:
        """Whether nothing of these is on its way."""
        with self._lock:
            return not any(self._open.get(partition) for partition in partitions)

    def _forget(self, partition: int) -> None:
        self._num_open -= len(self._open.pop(partition, ())) - len(self._finished.pop(partition, ()))
        self._first.pop(partition, None)
        self._ready.pop(partition, None)
        self._done.pop(partition, None)
