"""Limits: the largest things that are read, and the error for what exceeds them or is wrong otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import U8
from schemas.varints import REASONS

SUBJECT_DEPTH_MAX = 256
"""An outcome without decision_id looks at this many latest decisions of its subject: no subject can stall the join."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest things that are read. Each number has its reason beside it; the defaults serve every process."""

    message_bytes_max: int = 1 << 20
    """Kafka's own default for a message (1,048,588): what is larger cannot stand in a topic of ours."""
    num_items_max: int = 1 << 20
    """Items of all arrays and maps of a message: every real item takes a byte, so a message cannot hold more."""
    num_record_items_max: int = 1 << 18
    """The same for messages that become Python objects, counted with the records and nulls that need no byte either
    (`schemas.bounds`): ≈ 200 bytes each, and 64 for each byte of the message, 128 MiB at the very worst."""
    depth_max: int = 32
    """Nesting of records, arrays and maps; ours need 5, an order of a shop 10; C decoders recurse, so it is small."""
    id_bytes_max: int = 64
    """decision_id and type: they are repeated in journal, decisions and transitions of every decision."""
    name_bytes_max: int = 256
    """subject, outcome_id, action_id, task, episode_id, feature names: longer than any e-mail address or URL key."""
    text_bytes_max: int = 1 << 16
    """One string feature: a long e-mail; its tokens are cut at 4,096 anyway (learning.md rule 4)."""
    num_features_max: int = 1 << 10
    """Named features of a context or of one candidate: more belong into a vector."""
    num_vector_max: int = 1 << 14
    """Numbers of one vector feature: four times the largest embedding in use."""
    num_tokens_max: int = 1 << 12
    """Strings of one list feature (learning.md rule 4)."""
    num_candidates_max: int = 1 << 16
    """learning.md rule 15: propensities are 24-bit integers, at least 16 each."""
    num_slots_max: int = 1 << 10
    """Slots of a slate: nobody reads the thousandth position."""
    num_rows_max: int = (1 << 16) - 1
    """Rows of a block: a position has 16 bits for the row (join.md)."""
    schema_bytes_max: int = 1 << 18
    """A writer's schema fetched from a registry; the largest of ours has 12 KiB."""
    num_schema_nodes_max: int = 10_000
    """Types in such a schema."""
    decimal_bytes_max: int = 64
    """An Avro decimal: turning a longer one into a number costs the square of its length."""


LIMITS = Limits()


class BadRecord(ValueError):
    """Bytes that cannot be used. The sender's fault, never ours; nothing was changed by reading them.

    `reason` is a code of `schemas.varints.REASONS`, stable for metrics and dead letters; `detail` a sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Payload = bytes | bytearray | memoryview | U8


def view_of(payload: Payload) -> U8:
    """The payload as a read-only contiguous (n,) uint8 array, without copying where that is possible.

    Always read-only: numba compiles another version of every function for writable input.
    """
    if isinstance(payload, bytes):
        return np.frombuffer(payload, np.uint8)
    array = payload if isinstance(payload, np.ndarray) else np.frombuffer(payload, np.uint8)
    view = np.ascontiguousarray(array, np.uint8).view()
    view.flags.writeable = False
    return view


def too_large(size_bytes: int, limits: Limits) -> BadRecord:
    """The refusal of a whole message for its size."""
    return BadRecord("too-large", f"the message has {size_bytes} bytes, at most {limits.message_bytes_max} are read")


def bad(code: int, path: str, byte: int) -> BadRecord:
    """The refusal for a code of `schemas.varints`, found in a field at a byte of the message."""
    reason, sentence = REASONS[code]
    return BadRecord(reason, f"{path} at byte {byte}: {sentence}")
