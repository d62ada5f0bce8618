"""What a reader of the transitions accepts, by the letter of join.md rule 7. Pure: blocks in, findings out.

The audit's own copy of the rule: it shares no code with `schemas.chain`, whose users it checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.blocks import TransitionBlock
from schemas.records import Progress

ChainName = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One accepted row of a transition block."""

    position: int
    fingerprint: bytes
    key: tuple[int, int]
    closed_at_ms: int
    snapshot_version: int
    bucket: int
    flags: int
    rewards: tuple[float, ...]
    """Of every slot."""
    num_outcomes: int

    @property
    def reward(self) -> float:
        """Of the first slot."""
        return self.rewards[0]


@dataclass(slots=True)
class Accepted:
    """Everything a reader of one transitions partition ends up with."""

    rows: dict[int, Row] = field(default_factory=dict)
    """By position."""
    marks: dict[ChainName, int] = field(default_factory=dict)
    """Last accepted position per chain."""
    progress: Progress | None = None
    """The newest that this reader counts."""
    num_repeated_rows: int = 0
    """Rows that came again and were passed over: harmless, and the price of at-least-once."""
    num_ignored_blocks: int = 0
    """Blocks before which something was missing; the join sends them again."""
    unproved: Progress | None = None
    """The newest Progress when it claims rows that were not accepted before it: something is missing for good."""
    num_accepted_twice: int = 0
    forks: list[str] = field(default_factory=list)
    adopted: bool = False
    """The log no longer reaches back to the chain's start: reading began at a Progress."""


def accept(entries: Iterable[tuple[int, int, object]], *, from_start: bool) -> Accepted:
    """Read one transitions partition: (offset, append time in ms, decoded block) in order.

    Without `from_start` (older records were deleted) everything before the first Progress is passed over.
    """
    state = Accepted()
    for offset, _, block in entries:
        if isinstance(block, Progress):
            _take_progress(state, block, from_start)
        elif isinstance(block, TransitionBlock) and (from_start or state.adopted):
            _take_block(state, block, offset)
    return state


def _take_progress(state: Accepted, progress: Progress, from_start: bool) -> None:
    if not from_start and not state.adopted:
        state.adopted = True
        state.marks = {(each.fingerprint, each.kind): each.hwm for each in progress.chains}
    if all(state.marks.get((each.fingerprint, each.kind), -1) >= each.hwm for each in progress.chains):
        state.progress, state.unproved = progress, None
    else:
        state.unproved = progress


def _take_block(state: Accepted, block: TransitionBlock, offset: int) -> None:
    chain = (block.fingerprint, block.kind)
    mark = state.marks.get(chain, -1)
    positions = block.positions.tolist()
    if not positions:
        return
    if block.prev > mark:
        state.num_ignored_blocks += 1
        return
    if block.prev < mark <= positions[-1] and mark not in positions:
        state.forks.append(f"offset {offset}: goes from {block.prev} to {positions[-1]} without the accepted {mark}")
        return
    for index, position in enumerate(positions):
        if position <= mark:
            state.num_repeated_rows += 1
            continue
        if position in state.rows:
            state.num_accepted_twice += 1
        state.rows[position] = Row(
            position=position,
            fingerprint=block.fingerprint,
            key=(int(block.decision_keys[index, 0]), int(block.decision_keys[index, 1])),
            closed_at_ms=int(block.closed_at_ms[index]),
            snapshot_version=int(block.snapshot_versions[index]),
            bucket=int(block.buckets[index]),
            flags=int(block.flags[index]),
            rewards=tuple(block.rewards[index].tolist()),
            num_outcomes=int(block.num_outcomes[index]),
        )
        state.marks[chain] = position
        mark = position
