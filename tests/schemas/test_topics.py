from __future__ import annotations

import pytest

from schemas import task as tasks
from schemas.topics import DAY_MS, TOPICS, configs, num_partitions, spec_of, topic

PROJECT = tasks.parse(
    """
[namespace]
partitions = 6
[[tasks]]
name = "t"
actions = ["a", "b"]
[tasks.reward]
window = "2d"
backward_window = "1h"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""
)


def test_topics_are_named_after_the_namespace() -> None:
    assert topic("shop", "dead-letters") == "shop.dead-letters"
    with pytest.raises(KeyError):
        topic("shop", "jurnal")


def test_every_topic_is_stamped_by_the_broker() -> None:
    assert {configs(spec, PROJECT)["message.timestamp.type"] for spec in TOPICS} == {"LogAppendTime"}


def test_journal_and_transitions_outlast_any_rebuild() -> None:
    for name in ("journal", "transitions"):
        retention = int(configs(spec_of(name), PROJECT)["retention.ms"])
        assert retention == 3 * 2 * DAY_MS + 3_600_000 + 2 * DAY_MS + 7 * DAY_MS


def test_partitions_follow_the_namespace_except_where_order_over_all_is_needed() -> None:
    assert num_partitions(spec_of("journal"), PROJECT) == num_partitions(spec_of("transitions"), PROJECT) == 6
    assert num_partitions(spec_of("tasks"), PROJECT) == num_partitions(spec_of("snapshots"), PROJECT) == 1


def test_definitions_are_compacted_and_kept_for_ever() -> None:
    assert configs(spec_of("tasks"), PROJECT)["cleanup.policy"] == "compact"
    assert configs(spec_of("tasks"), PROJECT)["retention.ms"] == "-1"


def test_chunks_are_bounded_by_bytes_too() -> None:
    config = configs(spec_of("snapshot-chunks"), PROJECT)
    assert int(config["segment.bytes"]) * 4 < int(config["retention.bytes"])
