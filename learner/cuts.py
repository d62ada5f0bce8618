"""Cuts: at which log times the policy is frozen into a snapshot, how they are numbered and chained. Pure.

A cut happens at the end of the first bucket in which something was learnt, but not within `publish_ms` of log time
after the cut before, nor sooner than that one's size allows (learning.md rule 23). Cuts stand on no grid of
`publish_ms`: a row that closes after a pause is served at once, and a snapshot whose size asks for 550 ms does not
wait for 1,000. Every input is a function of the log, so two learners over one log make the same cuts with the same
numbers and the same bytes.

A version is ``version_base + number``: every cut has its version whether it is uploaded or not; in catch-up only the
newest is. So versions rise, a version never has two contents, and a restarted or a second learner agrees without being
told. `version_base` is above 0 only when a learner had to start anew (no checkpoint, and the log's beginning gone)
after another had published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from learner.merge import Position
from schemas.records import NO_TIME_MS


@dataclass(frozen=True, slots=True)
class CutRules:
    """What decides where cuts fall; constant for the life of a process, recorded in checkpoint and manifest."""

    bucket_ms: int
    publish_ms: int
    publish_bytes_per_s: int

    def due_ms(self, first_ms: int, last: CutState) -> int:
        """End of the next cut, when the first row learnt since `last` closed at `first_ms` (log time).

        >>> CutRules(100, 500, 1000).due_ms(1_234, CutState())
        1300
        >>> CutRules(100, 500, 1000).due_ms(1_234, replace(CutState(), end_ms=1_000, size_bytes=700))
        1700
        """
        gap_ms = max(self.publish_ms, -(-last.size_bytes * 1000 // self.publish_bytes_per_s))
        earliest_ms = max(first_ms + 1, last.end_ms + gap_ms)
        return -(-earliest_ms // self.bucket_ms) * self.bucket_ms


@dataclass(frozen=True, slots=True)
class CutState:
    """The newest cut of a history, and the history's identity."""

    genesis: str = ""
    """Hex: hash of where the history starts in the log."""
    version_base: int = 0
    number: int = 0
    """Cuts made since the history's start."""
    end_ms: int = NO_TIME_MS
    """Log time up to which rows are in."""
    size_bytes: int = 0
    sha256: str = ""
    """Hex: of the cut's snapshot."""
    chain_hash: str = ""
    """Hex: over all cuts, the genesis first."""

    @property
    def version(self) -> int:
        """Version of the newest cut, `version_base` before the first."""
        return self.version_base + self.number

    def next(self, end_ms: int, payload: bytes) -> CutState:
        """The state after a cut at `end_ms` whose snapshot is `payload`."""
        digest = sha256(payload).hexdigest()
        number = self.number + 1
        link = f"headrace cut\n{self.chain_hash}\n{number}\n{end_ms}\n{digest}"
        return replace(
            self,
            number=number,
            end_ms=end_ms,
            size_bytes=len(payload),
            sha256=digest,
            chain_hash=sha256(link.encode()).hexdigest(),
        )

    def broken(self, reason: str, version_base: int) -> CutState:
        """A new history that goes on from this state in another environment (learning.md rule 22)."""
        link = f"headrace lineage break\n{self.chain_hash}\n{self.number}\n{reason}"
        genesis = sha256(link.encode()).hexdigest()
        return replace(self, genesis=genesis, version_base=version_base, chain_hash=genesis)

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)

    @classmethod
    def start(cls, positions: Sequence[Position], version_base: int) -> CutState:
        """A new history that starts at `positions` of the log."""
        lines = [
            f"{p.partition} {p.offset} {p.time_ms} "
            + " ".join(f"{fingerprint.hex()}/{kind}={hwm}" for (fingerprint, kind), hwm in sorted(p.hwm.items()))
            for p in sorted(positions, key=lambda position: position.partition)
        ]
        genesis = sha256("\n".join(["headrace genesis", *lines]).encode()).hexdigest()
        return cls(genesis=genesis, version_base=version_base, chain_hash=genesis)
