"""The join against a brute-force join over the whole log: any journal, any restart, any loss of its output."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import TransitionBlock
from schemas.chain import Accepted, Chain, ChainReader, Fork
from schemas.codec import encode
from schemas.records import DecisionBucket, Progress
from schemas.registry import FileRegistry
from schemas.task import Task
from streams import join_emit
from streams.join import JoinLimits, JoinPartition
from tests.oracle.brute_force_join import BruteForceJoin, Row
from tests.oracle.join_world import Journal, brute_of, make_journal, table_of, world_tasks

NO_LIMITS = JoinLimits()


def rows_of(block: TransitionBlock) -> list[Row]:
    """The block's rows in the words of the brute-force join."""
    return [
        Row(
            position=int(block.positions[row]),
            closed_at=int(block.closed_at_ms[row]),
            bucket=DecisionBucket(int(block.buckets[row])).label,
            flags=int(block.flags[row]),
            rewards=tuple(block.rewards[row].tolist()),
            num_outcomes=int(block.num_outcomes[row]),
            version=int(block.snapshot_versions[row]),
        )
        for row in range(len(block))
    ]


def expected_rows(brute: BruteForceJoin) -> dict[bytes, list[Row]]:
    """As float32, like a transition."""
    return {
        fingerprint: [
            replace(row, rewards=tuple(np.float32(row.rewards).tolist()))
            for row in rows
        ]
        for fingerprint, rows in brute.rows.items()
    }  # fmt: skip


def counts_of(progress_or_stats: tuple[dict[str, int], dict[str, int]], brute: BruteForceJoin) -> None:
    """Both identities agree."""
    assert progress_or_stats == brute.counts


def join_segments_early(patch: pytest.MonkeyPatch) -> None:
    """Every second small segment, so that a small world sees it too."""
    patch.setattr(join_emit, "_SMALL_SEGMENTS_MAX", 2)
    patch.setattr(join_emit, "SEGMENT_ROWS_MIN", 4)


@pytest.mark.parametrize("seed", range(150))
def test_rows_and_counts_after_every_record_are_those_of_the_brute_force_join(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        join_segments_early(monkeypatch)
    tasks = world_tasks(seed)
    journal = make_journal(seed, tasks)
    limits = JoinLimits(num_open_max=3, num_pending_max=2) if seed % 7 == 0 else NO_LIMITS
    brute = brute_of(tasks, [], **_limits(limits))
    join = JoinPartition(0, table_of(tasks), limits=limits)
    reader, rows = ChainReader(), {}
    for offset, append_ms, record in journal:
        brute.fold(offset, append_ms, record)
        join.fold(offset, append_ms, record)
        stats = join.stats
        counts_of((stats["decisions"], stats["outcomes"]), brute)
        if (seed + offset) % 3 == 0:
            accept(join.emit(), reader, rows)
    accept(join.emit(), reader, rows)
    assert rows == expected_rows(brute)


@pytest.mark.parametrize("seed", range(40))
def test_small_segments_that_are_joined_leave_the_same_columns(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def columns() -> dict[int, bytes]:
        join, found, registry = JoinPartition(0, table_of(tasks), limits=limits), {}, FileRegistry()
        for offset, append_ms, record in journal:
            join.fold(offset, append_ms, record)
            for block in join.emit() if offset % 5 == 0 else []:
                for row in range(len(block)):
                    alone = replace(block.rows(row, row + 1), prev=-1)
                    found[int(block.positions[row])] = encode(alone, registry)
        return found

    tasks = world_tasks(seed)
    journal = make_journal(seed, tasks)
    limits = JoinLimits(num_open_max=3) if seed % 4 == 0 else NO_LIMITS
    single = columns()
    join_segments_early(monkeypatch)
    assert columns() == single


def _limits(limits: JoinLimits) -> dict[str, int]:
    return {"open_max": limits.num_open_max, "pending_max": limits.num_pending_max}


def accept(blocks: list[TransitionBlock], reader: ChainReader, rows: dict[bytes, list[Row]]) -> None:
    """A reader takes the blocks; there must be no hole and nothing twice."""
    for block in blocks:
        judged = reader.offer(block)
        assert isinstance(judged, Accepted)
        if judged.start < len(block):
            rows.setdefault(block.fingerprint, []).extend(rows_of(block)[judged.start :])


class Log:
    """A transitions partition: what was written stays, in the order in which it arrived."""

    def __init__(self) -> None:
        self.records: list[TransitionBlock | Progress] = []

    def read(self) -> tuple[ChainReader, Progress | None, list[tuple[TransitionBlock, int]]]:
        """Read from the start by rules 7 and 8: (reader, newest countable Progress, [(block, its first new row)])."""
        reader, counted, taken = ChainReader(), None, []
        for record in self.records:
            if isinstance(record, Progress):
                if reader.covers(record) and (counted is None or record.journal_offset > counted.journal_offset):
                    counted = record
                continue
            judged = reader.offer(record)
            assert not isinstance(judged, Fork), "two joins disagree about the log"
            if isinstance(judged, Accepted) and judged.start < len(record):
                taken.append((record, judged.start))
        return reader, counted, taken


class Truth:
    """What the brute-force join says of every prefix of a journal."""

    def __init__(self, tasks: list[Task], journal: Journal, limits: JoinLimits) -> None:
        brute = brute_of(tasks, [], **_limits(limits))
        self.prefixes = []
        for record in journal:
            brute.fold(*record)
            lasts = {fingerprint: rows[-1].position for fingerprint, rows in brute.rows.items()}
            self.prefixes.append((brute.counts, brute.time, lasts))
        self.rows = expected_rows(brute)

    def check(self, said: Progress) -> None:
        """What a Progress says is true of its range of the journal, and covers what had closed by then."""
        counts, time_ms, lasts = self.prefixes[said.journal_offset - 1]
        assert (said.decision_counts, said.outcome_counts) == counts
        assert said.time_ms == time_ms
        hwm: dict[Chain, int] = {(chain.fingerprint, chain.kind): chain.hwm for chain in said.chains}
        assert all(hwm[fingerprint, 0] >= last for fingerprint, last in lasts.items())


def simulate(seed: int, num_records: int = 60, lose: float = 0.05, delay: float = 0.1) -> None:
    """Up to three workers at once (one the owner, others zombies), restarts anywhere, lost and late writes."""
    rng = random.Random(seed)
    tasks = world_tasks(rng.randrange(5))
    journal = make_journal(seed, tasks, num_records)
    limits = JoinLimits(num_open_max=5, num_pending_max=3) if rng.random() < 0.2 else NO_LIMITS
    truth = Truth(tasks, journal, limits)
    log = Log()
    late: list[tuple[int, TransitionBlock | Progress]] = []

    def start() -> JoinPartition:
        reader, counted, _ = log.read()
        if counted is None and rng.random() < 0.5:
            return JoinPartition(0, table_of(tasks), None, reader.hwm, None, limits)
        resume = counted.resume if counted else None
        return JoinPartition(0, table_of(tasks), resume, reader.hwm, counted, limits)

    def write(record: TransitionBlock | Progress, step: int) -> None:
        fate = rng.random()
        if fate >= lose + delay:
            log.records.append(record)
        elif fate >= lose:
            late.append((step + rng.randint(1, 25), record))

    workers = [start()]
    available = 3
    for step in range(8 * num_records):
        available = min(len(journal), available + rng.choice([0, 0, 1, 2]))
        if rng.random() < 0.03:
            workers = [*workers, start()][-3:]
        if rng.random() < 0.03:
            workers[rng.randrange(len(workers))] = start()
        for worker in workers:
            for _ in range(rng.randint(0, 3)):
                if (worker.next_offset or 0) < available:
                    worker.fold(*journal[worker.next_offset or 0])
            if rng.random() < 0.6:
                for block in worker.emit():
                    for part in cut_anywhere(rng, block):
                        write(part, step)
            if rng.random() < 0.5:
                reader, _, taken = log.read()
                if rng.random() < 0.3:
                    for block, _ in taken:
                        worker.accepted(block)
                said = worker.progress(reader, len(log.records))
                if said is not None:
                    truth.check(said)
                    write(said, step)
        for due, record in list(late):
            if due <= step:
                log.records.append(record)
                late.remove((due, record))
    for _, record in late:
        log.records.append(record)
    finish(log, start(), journal, truth)


def cut_anywhere(rng: random.Random, block: TransitionBlock) -> list[TransitionBlock]:
    """The same rows in two blocks, now and then."""
    if len(block) < 2 or rng.random() < 0.5:
        return [block]
    at = rng.randrange(1, len(block))
    return [block.rows(0, at), block.rows(at, len(block))]


def finish(log: Log, worker: JoinPartition, journal: Journal, truth: Truth) -> None:
    """One last worker without faults: then the transitions hold every decision once, as the brute-force join has it."""
    for record in journal[worker.next_offset or 0 :]:
        worker.fold(*record)
    log.records.extend(worker.emit())
    reader, _, taken = log.read()
    rows: dict[bytes, list[Row]] = {}
    for block, first in taken:
        rows.setdefault(block.fingerprint, []).extend(rows_of(block)[first:])
    assert rows == truth.rows
    assert (worker.stats["decisions"], worker.stats["outcomes"]) == truth.prefixes[-1][0]
    said = worker.progress(reader, len(log.records))
    if said is not None:
        assert said.journal_offset == len(journal)
        truth.check(said)


@pytest.mark.parametrize("seed", range(120))
def test_no_restart_zombie_lost_or_late_write_changes_a_row_or_a_count(seed: int) -> None:
    simulate(seed)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    variant=st.integers(0, 4),
    num_open_max=st.sampled_from([1, 4, 10**6]),
    num_pending_max=st.sampled_from([0, 2, 10**5]),
    restart=st.floats(0, 1),
)
def test_a_successor_says_what_its_predecessor_would_have_said(
    seed: int, variant: int, num_open_max: int, num_pending_max: int, restart: float
) -> None:
    """One restart, from the Progress of any tick; limits as tight as they come."""
    tasks, limits = world_tasks(variant), JoinLimits(num_open_max, num_pending_max)
    journal = make_journal(seed, tasks, 40)
    truth, log = Truth(tasks, journal, limits), Log()
    first = JoinPartition(0, table_of(tasks), limits=limits)
    for record in journal[: round(restart * len(journal))]:
        first.fold(*record)
        log.records.extend(first.emit())
        reader, _, _ = log.read()
        said = first.progress(reader, len(log.records))
        if said is not None:
            log.records.append(said)
    reader, counted, _ = log.read()
    resume = counted.resume if counted else None
    finish(log, JoinPartition(0, table_of(tasks), resume, reader.hwm, counted, limits), journal, truth)
