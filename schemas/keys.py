"""Keys, draws and the partitioner: every hash that must come out alike on every machine and in every version.

One value at a time, by hashlib; `schemas.hashing` gives the same results over whole buffers. Each kind of key has
its own BLAKE2b `person`, so a subject and a decision of the same name never share a key.

A decision key does not include the task: an outcome names the decision and does not know the task. A draw does
(learning.md rule 17): otherwise one id used in two tasks would give confounded actions.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

PERSON_DECISION = b"hr-decision"
PERSON_SUBJECT = b"hr-subject"
PERSON_ACTION = b"hr-action"
PERSON_OUTCOME = b"hr-outcome"
PERSON_SOURCE = b"hr-source"
PERSON_EPISODE = b"hr-episode"
PERSON_TASK = b"hr-task"

DRAW_BITS = 24
DRAW_ACTION = 0
"""Purpose of a draw: which candidate."""
DRAW_VALUE = 1
"""Purpose of a draw: where in the chosen cell of a continuous action."""

_U64_MASK = (1 << 64) - 1
_MURMUR_MULTIPLIER = 0x5BD1E995
_MURMUR_SEED = 0x9747B28C
_U32_MASK = (1 << 32) - 1

Key128 = tuple[int, int]
"""Two little-endian u64 words of a 128-bit digest."""


def _words(payload: bytes, person: bytes) -> Key128:
    first, second = struct.unpack("<QQ", blake2b(payload, digest_size=16, person=person).digest())
    return first, second


def _word(payload: bytes, person: bytes) -> int:
    return int.from_bytes(blake2b(payload, digest_size=8, person=person).digest(), "little")


def decision_key(decision_id: str) -> Key128:
    """BLAKE2b-128 of a decision id."""
    return _words(decision_id.encode(), PERSON_DECISION)


def outcome_key(outcome_id: str) -> Key128:
    """BLAKE2b-128 of an outcome's own id."""
    return _words(outcome_id.encode(), PERSON_OUTCOME)


def source_outcome_key(topic: str, partition: int, offset: int) -> Key128:
    """Key of an outcome that has no id: where it stood. A copy by ingest has the same, a second sending another."""
    name = topic.encode()
    return _words(struct.pack("<I", len(name)) + name + struct.pack("<iq", partition, offset), PERSON_SOURCE)


def subject_key(subject: str) -> int:
    """BLAKE2b-64 of a subject."""
    return _word(subject.encode(), PERSON_SUBJECT)


def action_key(action_id: str) -> int:
    """BLAKE2b-64 of an action id, never 0: 0 says that an outcome names no action."""
    return _word(action_id.encode(), PERSON_ACTION) or 1


def episode_key(episode_id: str) -> int:
    """BLAKE2b-64 of an episode id."""
    return _word(episode_id.encode(), PERSON_EPISODE)


def task_key(task: str) -> int:
    """BLAKE2b-64 of a task's name."""
    return _word(task.encode(), PERSON_TASK)


def draw(key: bytes, purpose: int, slot: int, task: str, decision_id: str) -> int:
    """The keyed random number of one choice: top 24 bits of BLAKE2b(key; purpose, slot, task, decision id).

    `key` at most 64 bytes, from the namespace; `purpose` one of the `DRAW_` codes; strings are length-prefixed, so
    no two inputs share an encoding. Returns an integer in [0, 2**24). Source: learning.md rule 17.

    >>> 0 <= draw(b"key", DRAW_ACTION, 0, "support", "d1") < 2**24
    True
    """
    name, identity = task.encode(), decision_id.encode()
    payload = struct.pack("<BHI", purpose, slot, len(name)) + name + struct.pack("<I", len(identity)) + identity
    return int.from_bytes(blake2b(payload, digest_size=8, key=key).digest(), "little") >> (64 - DRAW_BITS)


def murmur2(payload: bytes) -> int:
    """Kafka's murmur2 (Java's `Utils.murmur2`) as an unsigned 32-bit integer.

    Source: org.apache.kafka.common.utils.Utils. librdkafka's default partitioner is CRC32: never rely on defaults.
    """
    length = len(payload)
    state = _MURMUR_SEED ^ length
    whole = length & ~3
    for (word,) in struct.iter_unpack("<I", payload[:whole]):
        mixed = word * _MURMUR_MULTIPLIER & _U32_MASK
        mixed = (mixed ^ mixed >> 24) * _MURMUR_MULTIPLIER & _U32_MASK
        state = (state * _MURMUR_MULTIPLIER & _U32_MASK) ^ mixed
    if whole < length:
        state = (state ^ int.from_bytes(payload[whole:], "little")) * _MURMUR_MULTIPLIER & _U32_MASK
    state = (state ^ state >> 13) * _MURMUR_MULTIPLIER & _U32_MASK
    return state ^ state >> 15


def partition_of(subject: str, num_partitions: int) -> int:
    """Journal partition of a subject (join.md rule 15), the same as Java's default partitioner gives its key.

    >>> partition_of("customer-1", 4)
    1
    """
    return (murmur2(subject.encode()) & 0x7FFFFFFF) % num_partitions
