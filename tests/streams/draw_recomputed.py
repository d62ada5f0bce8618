"""The draws once more, from journal records and the namespace's key alone: learning.md rules 15 and 17 read again.

Shares nothing with `learner.policy.explore` and `schemas.keys`: sums, draws and choices are written out here.

Shape legend: N rows (decisions), M candidates of all rows, row after row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.blocks import DecisionBlock
from schemas.codec import decode
from schemas.registry import FileRegistry

REGISTRY = FileRegistry()
Ints = npt.NDArray[np.int64]
ONE = 16_777_216


@dataclass(frozen=True)
class Rows:
    """What the journal says of N decisions."""

    tasks: list[str]
    ids: list[bytes]
    versions: Ints
    sizes: Ints
    """(N,) candidates of each row."""
    integers: Ints
    """(M,)"""
    chosen: Ints
    """(N,)"""
    reasons: Counter[int]

    @property
    def starts(self) -> Ints:
        """(N,) place of each row's first candidate."""
        return np.cumsum(self.sizes) - self.sizes

    def sums(self) -> Ints:
        """(N,) of each row's integers."""
        return np.add.reduceat(self.integers, self.starts)


def read(records: Iterable[bytes]) -> Rows:
    """Rows of journal records, decoded from their bytes."""
    tasks: list[str] = []
    ids: list[bytes] = []
    reasons: Counter[int] = Counter()
    parts: dict[str, list[Any]] = {name: [] for name in ("versions", "sizes", "integers", "chosen")}
    for record in records:
        block = decode(record, REGISTRY, expect=DecisionBlock)
        columns, strings = block.columns, block.decision_ids
        whole = strings.buffer.tobytes()
        ends = (strings.starts + strings.lengths).tolist()
        ids += [whole[start:end] for start, end in zip(strings.starts.tolist(), ends, strict=True)]
        tasks += [block.task] * len(block)
        reasons.update(columns.reasons.tolist())
        parts["versions"].append(np.full(len(block), block.snapshot_version))
        parts["sizes"].append(columns.features.num_candidates)
        parts["integers"].append(columns.propensities)
        parts["chosen"].append(columns.chosen[:, 0])
    return Rows(
        tasks, ids, reasons=reasons, **{name: np.concatenate(part).astype(np.int64) for name, part in parts.items()}
    )


def joined(first: Rows, second: Rows) -> Rows:
    """All rows of both."""
    return Rows(
        first.tasks + second.tasks,
        first.ids + second.ids,
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("versions", "sizes", "integers", "chosen")
        ),
        reasons=first.reasons + second.reasons,
    )


def draws(key: bytes, tasks: list[str], ids: list[bytes]) -> Ints:
    """(N,) top 24 bits of BLAKE2b(key; purpose 0 as u8, slot 0 as u16, length-prefixed task name and decision id)."""
    heads = {name: b"\0" + b"\0\0" + len(name.encode()).to_bytes(4, "little") + name.encode() for name in set(tasks)}
    digests = [
        blake2b(heads[name] + len(each).to_bytes(4, "little") + each, digest_size=8, key=key).digest()
        for name, each in zip(tasks, ids, strict=True)
    ]
    return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(40)).astype(np.int64)


def choices(rows: Rows, key: bytes) -> Ints:
    """(N,) index that each draw chooses: the first candidate whose running sum exceeds it. Sums must be `ONE`."""
    running = np.cumsum(rows.integers)  # of all rows: row i covers [i · ONE, (i + 1) · ONE)
    wanted = np.arange(len(rows.sizes)) * ONE + draws(key, rows.tasks, rows.ids)
    return np.searchsorted(running, wanted, side="right") - rows.starts


def chi_square(rows: Rows, at_least: float = 10.0) -> tuple[float, int]:
    """χ² of choices against integers and its degrees of freedom, summed over groups of rows with the same integers.

    Within a group, cells that expect fewer than `at_least` choices count as one with the cell that expects most.
    """
    total, freedom = 0.0, 0
    for size in np.unique(rows.sizes).tolist():
        mine = np.flatnonzero(rows.sizes == size)
        table = rows.integers[rows.starts[mine][:, None] + np.arange(size)]
        kinds, group = np.unique(table, axis=0, return_inverse=True)
        seen = np.bincount(group.reshape(-1) * size + rows.chosen[mine], minlength=kinds.size).reshape(kinds.shape)
        expected = kinds / ONE * seen.sum(1)[:, None]
        small = expected < at_least
        best = np.arange(len(kinds)), expected.argmax(1)
        for counts in (seen, expected):
            rest = (counts * small).sum(1)
            counts[best] += rest
        fits = ~small & (np.count_nonzero(~small, axis=1) >= 2)[:, None]  # with one cell there is nothing to compare
        total += float(((seen - expected)[fits] ** 2 / expected[fits]).sum())
        freedom += int(np.count_nonzero(fits) - np.count_nonzero(fits.any(1)))
    return total, freedom


def chi_square_limit(freedom: int, normal: float) -> float:
    """Quantile of χ² at a standard normal's quantile (Wilson and Hilferty 1931): exact to a percent for these."""
    share = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - share + normal * share**0.5) ** 3)
