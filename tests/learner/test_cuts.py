"""Cuts: by log time alone, numbered, chained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learner.cuts import CutRules, CutState
from learner.merge import Position

RULES = CutRules(bucket_ms=100, publish_ms=500, publish_bytes_per_s=1_000_000)


@pytest.mark.parametrize(
    ("first_ms", "due_ms"), [(0, 100), (99, 100), (100, 200), (1_700_000_000_123, 1_700_000_000_200)]
)
def test_first_cut_is_due_at_the_end_of_the_bucket_of_the_first_row(first_ms: int, due_ms: int) -> None:
    assert RULES.due_ms(first_ms, CutState()) == due_ms


def test_cuts_lie_at_least_the_publish_period_apart() -> None:
    last = replace(CutState(), end_ms=1000, size_bytes=10)
    assert RULES.due_ms(1050, last) == 1500
    assert RULES.due_ms(1499, last) == 1500
    assert RULES.due_ms(1500, last) == 1600


def test_large_snapshot_pushes_the_next_cut_out_by_log_time() -> None:
    last = replace(CutState(), end_ms=1000, size_bytes=2_000_001)
    assert RULES.due_ms(1100, last) == 3100


def test_period_that_is_no_multiple_of_the_bucket_is_rounded_up() -> None:
    assert CutRules(100, 250, 1_000_000).due_ms(410, replace(CutState(), end_ms=400)) == 700


def test_every_cut_has_its_own_version_and_chains_to_the_one_before() -> None:
    start = CutState.start([Position(0), Position(1)], version_base=7)
    first = start.next(500, b"one")
    second = first.next(1000, b"two")
    assert [start.version, first.version, second.version] == [7, 8, 9]
    assert len({start.chain_hash, first.chain_hash, second.chain_hash}) == 3
    assert first.next(1000, b"other").chain_hash != second.chain_hash
    assert start.next(600, b"one").chain_hash != first.chain_hash


def test_history_is_named_by_where_it_starts() -> None:
    beginning = CutState.start([Position(1), Position(0)], 0)
    assert beginning.genesis == CutState.start([Position(0), Position(1)], 5).genesis
    assert beginning.genesis != CutState.start([Position(0), Position(1, 3, 9, {(b"a" * 16, 0): 4})], 0).genesis
