"""Arrays of one element type, and columns of strings: what columns and blocks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.frozen import frozen

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


def empty(dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """A column that the task does not use: no elements, the right dtype and rank."""
    return np.empty(shape or (0,), dtype)


@frozen
class Strings:
    """A column of UTF-8 strings that makes no Python string until asked for one.

    `buffer` uint8 bytes of all strings, one after another; string i is ``buffer[starts[i]:starts[i] + lengths[i]]``.
    """

    buffer: U8
    starts: I64
    lengths: I32

    @classmethod
    def of(cls, values: Sequence[str]) -> Strings:
        """Pack Python strings.

        >>> Strings.of(["a", "bc"])[1]
        'bc'
        """
        encoded = [value.encode() for value in values]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        starts = np.zeros(len(encoded), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        start = self.starts[index]
        return self.buffer[start : start + self.lengths[index]].tobytes().decode()

    def tolist(self) -> list[str]:
        """All strings; for people and tests, never on the hot path."""
        return [self[index] for index in range(len(self))]

    def slice(self, start: int, stop: int) -> Strings:
        """Rows [start, stop) without copying the bytes."""
        return Strings(self.buffer, self.starts[start:stop], self.lengths[start:stop])


NO_STRINGS = Strings(empty(np.uint8), empty(np.int64), empty(np.int32))
