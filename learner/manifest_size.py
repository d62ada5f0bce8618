"""Manifest size: how many bytes a manifest takes, and how many it may. Pure.

A manifest is one Kafka message. It grows with the chains that it names, a task in a partition each, so a namespace of
many tasks in many partitions can outgrow it. `headrace apply` refuses such a namespace by `bytes_at_most`; a learner
that meets the limit all the same (heads of retired definitions count until they are dropped) publishes nothing and
says so, and learns and checkpoints on.
"""

from __future__ import annotations

from dataclasses import replace

from learner.policy.probes import PROBES_BYTES_MAX
from schemas import codec
from schemas.limits import LIMITS
from schemas.records import SnapshotManifest
from schemas.registry import Registry

MANIFEST_BYTES_MAX = 990_000
"""librdkafka's default for a message (1,000,000) less key and framing; the broker's own (1 MiB) is above it."""
LONG_BYTES = 9
"""An Avro long up to 2^62."""
SIGNATURE_BYTES = 64
CHAIN_BYTES = 16 + 1 + LONG_BYTES
"""Fingerprint, kind, last position."""
PARTITION_BYTES = 5 + 2 * LONG_BYTES + 8
"""Partition, offset, log time, counts of the array of chains."""
TASK_BYTES = 16 + 34 + LONG_BYTES
"""Fingerprint among the tasks, and again in hexadecimal with its rows learnt."""
REST_BYTES = 24 << 10
"""Environment, hashes, and the chunk offsets of a snapshot of 1 GiB (11 KiB)."""


def bytes_at_most(num_partitions: int, num_tasks: int) -> int:
    """Of a manifest of a namespace with `num_tasks` definitions, each with rows in every partition.

    >>> bytes_at_most(12, 256) < MANIFEST_BYTES_MAX < bytes_at_most(128, 256)
    True
    """
    chains = num_partitions * (PARTITION_BYTES + num_tasks * CHAIN_BYTES)
    return chains + num_tasks * TASK_BYTES + PROBES_BYTES_MAX + REST_BYTES


def size_of(draft: SnapshotManifest, num_chunks: int, registry: Registry) -> int:
    """Bytes at most of the message that `draft` becomes with its chunk offsets and signature."""
    unlimited = replace(LIMITS, message_bytes_max=1 << 40)
    return len(codec.encode(draft, registry, unlimited)) + SIGNATURE_BYTES + num_chunks * LONG_BYTES
