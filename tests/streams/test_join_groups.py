"""Records read and folded in groups against the same records one by one: rows, counts, marks, for any cut."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.blocks import DecisionBlock, OutcomeBlock, Tick
from schemas.bounds import BadRecord
from schemas.chain import ChainReader
from schemas.codec import decode, encode
from schemas.merged_reader import merge_decisions, merge_outcomes
from schemas.registry import FileRegistry
from schemas.task import TaskTable
from streams import join_index
from streams.join import JoinLimits, JoinPartition
from streams.join_groups import DECISIONS, OTHER, OUTCOMES, classify, length_of_group, read_group, stretches
from tests.oracle.join_world import Journal, make_journal, table_of, world_tasks
from tests.streams.test_join_oracle import accept

REGISTRY = FileRegistry()


class Bytes:
    """Journal records as they lie in a fetched batch."""

    def __init__(self, journal: Journal) -> None:
        values = [b"\0" if isinstance(each, BadRecord) else encode(each, REGISTRY) for _, _, each in journal]
        self.lengths = np.array([len(each) for each in values], np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths[:-1], dtype=np.int64)]).astype(np.int64)
        self.stops = self.starts + self.lengths
        self.buffer = np.frombuffer(b"".join(values), np.uint8)
        self.offsets = np.array([offset for offset, _, _ in journal], np.int64)
        self.times = np.array([time for _, time, _ in journal], np.int64)
        self.kinds = classify(self.buffer, self.starts, self.lengths, REGISTRY)

    def group(self, first: int, last: int) -> Any:
        part = slice(first, last)
        return read_group(
            self.buffer, self.starts[part], self.stops[part], self.offsets[part], self.times[part], self.kinds[part],
            REGISTRY,
        )  # fmt: skip


def one_by_one(join: JoinPartition, journal: Journal) -> None:
    for record in journal:
        join.fold(*record)


def in_groups(join: JoinPartition, journal: Journal, seed: int) -> int:
    """Fold as the worker does, groups cut anywhere; returns how many records went in groups."""
    rng, found, index, num_grouped = random.Random(seed), Bytes(journal), 0, 0
    while index < len(journal):
        num = min(length_of_group(found.kinds, found.lengths, found.offsets, index), rng.choice([2, 5, 60]))
        group = found.group(index, index + num) if num else None
        if group is not None and join.fold_group(group):
            num_grouped += num
            index += num
        else:
            join.fold(*journal[index])
            index += 1
    return num_grouped


@pytest.mark.parametrize("seed", range(200))
def test_groups_give_the_rows_and_counts_of_single_records(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_index, "CHAINS_MIN", 2)  # so that tables grow, and are made for a backlog at once
    tasks = world_tasks(seed)
    journal = make_journal(seed, tasks)
    if seed % 2:  # long stretches without a tick, as in a catch-up
        journal = [(i, t, r) for i, (_, t, r) in enumerate(e for e in journal if not isinstance(e[2], Tick))]
        journal.append((len(journal), journal[-1][1] + 10_000_000, Tick()))
    limits = JoinLimits(num_open_max=3, num_pending_max=2) if seed % 7 == 0 else JoinLimits()
    single, grouped = (JoinPartition(0, TaskTable(tasks), limits=limits) for _ in range(2))
    if seed % 3:
        grouped.expect((0, len(journal), 40 * len(journal))[seed % 3])
    one_by_one(single, journal)
    num_grouped = in_groups(grouped, journal, seed)
    rows: tuple[Any, Any] = ({}, {})
    for join, found in zip((single, grouped), rows, strict=True):
        accept(join.emit(), ChainReader(), found)
    assert rows[0] == rows[1]
    assert single.stats == grouped.stats
    assert single.sources == grouped.sources
    assert (single.time_ms, single.next_offset) == (grouped.time_ms, grouped.next_offset)
    if seed % 3 == 2 and seed % 7:
        assert grouped._memory._known.ring.num_chains > 2 * single._memory._known.ring.num_chains
    assert num_grouped > 0 or seed % 2 == 0 or limits.num_open_max == 3


def test_payloads_of_groups_are_those_of_single_records() -> None:
    tasks = world_tasks(4)
    journal = [(i, t, r) for i, (_, t, r) in enumerate(e for e in make_journal(9, tasks) if e[2] != Tick())]
    journal.append((len(journal), journal[-1][1] + 10_000_000, Tick()))
    single, grouped = (JoinPartition(0, table_of(tasks)) for _ in range(2))
    one_by_one(single, journal)
    assert in_groups(grouped, journal, 1) > 10
    assert [encode(each, REGISTRY) for each in single.emit()] == [encode(each, REGISTRY) for each in grouped.emit()]


@pytest.mark.parametrize("seed", range(20))
def test_merged_columns_are_the_columns_of_the_messages_one_after_another(seed: int) -> None:
    tasks = world_tasks(seed)
    journal = [each for each in make_journal(seed, tasks) if isinstance(each[2], DecisionBlock)]
    found = Bytes(journal)
    parts = merge_decisions(found.buffer, found.starts, found.stops, REGISTRY)
    assert parts is not None
    for part in parts:
        blocks = [decode(encode(journal[k][2], REGISTRY), REGISTRY, strings=False) for k in part.messages]
        merged = type(blocks[0].columns).concat([each.columns for each in blocks])
        for name in ("chosen", "propensities", "reasons"):
            np.testing.assert_array_equal(getattr(part.block.columns, name), getattr(merged, name))
        np.testing.assert_array_equal(part.block.columns.features.context, merged.features.context)
        np.testing.assert_array_equal(part.block.decision_keys, np.concatenate([e.decision_keys for e in blocks]))
        assert part.rows.tolist() == [len(each) for each in blocks]
        assert part.versions.tolist() == [each.snapshot_version for each in blocks]


def broken(block: Any, kind: str) -> Any:
    """A copy of a message's block that must not be merged."""
    if kind == "rows":
        return replace(block, subject_keys=block.subject_keys[:-1])
    if kind == "propensities":
        columns = replace(block.columns, propensities=block.columns.propensities[:-1])
        return replace(block, columns=columns)
    columns = replace(block.columns, chosen=np.concatenate([block.columns.chosen] * 2, axis=1))
    return replace(block, columns=columns)


@pytest.mark.parametrize("kind", ["rows", "propensities", "slots"])
def test_a_message_whose_columns_do_not_fit_is_left_to_the_decoder(kind: str) -> None:
    tasks = world_tasks(0)
    blocks = [each[2] for each in make_journal(3, tasks) if isinstance(each[2], DecisionBlock)][:4]
    # What one message lacks the next one has too much of: only together would the sums be right.
    journal = [(i, 0, each) for i, each in enumerate([broken(blocks[0], kind), *blocks[1:]])]
    found = Bytes(journal)
    assert found.group(0, 4) is None
    with pytest.raises(BadRecord):
        decode(encode(broken(blocks[0], kind), REGISTRY), REGISTRY)


def test_outcomes_that_are_not_sound_are_left_to_the_decoder() -> None:
    tasks = world_tasks(0)
    blocks = [each[2] for each in make_journal(3, tasks) if isinstance(each[2], OutcomeBlock)][:3]
    for bad in (
        replace(blocks[0], values=np.full_like(blocks[0].values, np.nan)),
        replace(blocks[0], types=blocks[0].types + 9),
        replace(blocks[0], source_offsets=blocks[0].source_offsets[::-1].copy(), type_names=()),
    ):
        found = Bytes([(i, 0, each) for i, each in enumerate([bad, *blocks[1:]])])
        assert merge_outcomes(found.buffer, found.starts, found.stops, REGISTRY) is None


def test_truncated_and_foreign_records_are_no_part_of_a_group() -> None:
    tasks = world_tasks(0)
    journal = make_journal(3, tasks)
    found = Bytes(journal)
    expected = [
        DECISIONS if isinstance(each, DecisionBlock) else OUTCOMES if isinstance(each, OutcomeBlock) else OTHER
        for _, _, each in journal
    ]
    assert found.kinds.tolist() == expected
    cut = Bytes(journal)
    decided = np.flatnonzero(cut.kinds == DECISIONS)[:2]
    assert merge_decisions(cut.buffer, cut.starts[decided], cut.stops[decided] - 1, REGISTRY) is None


def test_stretches_end_where_another_definition_decides() -> None:
    assert stretches(np.array([-1, 0, -1, 0, 1, -1, 0])) == [(0, 4, 0), (4, 6, 1), (6, 7, 0)]
    assert stretches(np.array([-1, -1])) == [(0, 2, -1)]
