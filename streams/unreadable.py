"""Where a record batch ends that the Kafka client cannot read. A shell around one short-lived consumer.

librdkafka decompresses zstd up to `receive.message.max.bytes` and fetches what is larger again, for ever: the partition
stands still (its issues 3935 and 5260). It tells the offset at which such a batch begins and never the one at which it
ends, and a position inside the batch fetches the whole of it once more. So the end is found by trying: who starts
inside is told the same beginning, who starts behind it is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.settings import CommonSettings
from streams.messages import code_of, place_of
from streams.read_back import consumer

ANSWER_S = 10.0
POLL_S = 0.2


def first_behind(is_inside: Callable[[int], bool], first: int, end: int) -> int:
    """The first offset in (first, end] that is not inside what begins at `first`; `end` is taken to be behind it.

    In doubling steps, because nearly all batches are short, and then by halves.

    >>> first_behind(lambda offset: offset < 1_007, 1_000, 5_000)
    1007
    """
    inside, step = first, 1
    while inside + step < end and is_inside(inside + step):
        inside, step = inside + step, 2 * step
    behind = min(inside + step, end)
    while behind - inside > 1:
        middle = (inside + behind) // 2
        inside, behind = (middle, behind) if is_inside(middle) else (inside, middle)
    return behind


def first_readable(settings: CommonSettings, topic: str, partition: int, first: int) -> int:
    """The first offset behind the unreadable record batch at `first`. Blocks: a tenth of a second for each try.

    Raises KafkaException or TimeoutError when the broker does not answer.
    """
    client = consumer(settings, "unreadable", 10)
    try:
        _, end = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
        return first_behind(lambda offset: _is_inside(client, topic, partition, offset, first), first, end)
    finally:
        client.close()


def _is_inside(client: Consumer, topic: str, partition: int, offset: int, first: int) -> bool:
    """Whether reading from `offset` on meets the unreadable batch that begins at `first`."""
    client.assign([TopicPartition(topic, partition, offset)])
    until_s = time.monotonic() + ANSWER_S
    while time.monotonic() < until_s:
        message = client.poll(POLL_S)
        if message is None:
            continue
        code, (_, found) = code_of(message), place_of(message)
        if code == KafkaError._BAD_COMPRESSION:
            return found == first
        if code is None and found >= offset:
            return False
        error = message.error()
        if error is not None and error.fatal():
            raise KafkaException(error)
    raise TimeoutError(f"{topic}[{partition}] was silent for {ANSWER_S:g} s at offset {offset}")
