"""One owned partition without a broker: a log in a list, writes that are lost or refused, and no Python per row."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.blocks import Tick, TransitionBlock
from schemas.chain import Accepted, ChainReader
from schemas.codec import decode, encode
from schemas.errors import UserError
from schemas.records import DeadLetter, Progress, Resume
from schemas.registry import FileRegistry
from schemas.settings import load_settings
from schemas.task import TaskTable
from streams import agents_owned
from streams.agents_owned import UNREAD_FACTOR, OwnedPartition
from streams.agents_ports import Ports, State
from streams.journal import WriteError
from streams.metrics import worker_metrics
from streams.owned_gauges import SKEW_MS_MAX, SKEW_ROUNDS
from streams.read_back import Read, ReadState
from streams.settings import WorkerSettings
from streams.transport_batch import OVERSIZED_LENGTH, RecordBatch, join, pack
from tests.kafka.journal_writer import decision_block, outcome_block
from tests.kafka.workers import project
from tests.schemas.away import AwayRegistry

REGISTRY = FileRegistry()
TASK = project("unit").tasks[0]


@dataclass
class FakeOutput:
    """A transitions partition in a list. `lose` and `refuse` name the writes (counted from 0) that go wrong."""

    log: list[bytes] = field(default_factory=list)
    lose: set[int] = field(default_factory=set)
    refuse: set[int] = field(default_factory=set)
    num_writes: int = 0

    async def write(self, topic: str, partition: int, value: bytes, key: bytes | None = None) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        number, self.num_writes = self.num_writes, self.num_writes + 1
        if number in self.refuse:
            done.set_exception(WriteError("cannot write to transitions: refused"))
        else:
            done.set_result(len(self.log))
            if number not in self.lose:
                self.log.append(value)
        return done


class Bench:
    """An `OwnedPartition` with its log, its journal and its restarts."""

    def __init__(self, registry: FileRegistry = REGISTRY, **settings: Any) -> None:
        self.output = FakeOutput()
        self.restarts: list[str] = []
        self.metrics = worker_metrics()
        self.letters: list[DeadLetter] = []
        self.clock_ms = 0
        ports: Any = Ports(
            settings=load_settings(WorkerSettings, namespace="unit", **settings),
            registry=registry,
            tasks=TaskTable([TASK]),
            output=self.output,  # type: ignore[arg-type]  # a fake
            dead_letters=SimpleNamespace(write=self._letter),  # type: ignore[arg-type]  # a fake
            metrics=self.metrics,
            restart=lambda partition, cause: self.restarts.append(cause),
            now_ms=lambda: self.clock_ms,
            tick_ms=100,
        )
        self.owned = OwnedPartition(0, ports)
        self.journal: list[tuple[int, bytes | None]] = []
        self._num_read = 0

    async def _letter(self, letter: DeadLetter) -> None:
        self.letters.append(letter)

    def begin(self, journal_start: int = 0) -> None:
        """Rebuild from what the log holds, as `read_state` does."""
        self.generation = self.owned.begin_rebuild()
        reader, progress = ChainReader(), None
        for value in self.output.log:
            record = decode(value, REGISTRY)
            if isinstance(record, TransitionBlock):
                reader.offer(record)
            elif reader.covers(record):
                progress = record
        self._num_read = len(self.output.log)
        state = ReadState(progress, reader, self._num_read, journal_start, len(self.journal), 0, 0)
        self.owned.begin_fold(state)

    def append(self, time_ms: int, *blocks: Any) -> RecordBatch:
        """Journal records, as the batch in which they are fetched."""
        first = len(self.journal)
        self.journal += [(time_ms, encode(block, REGISTRY)) for block in blocks]
        return self.fetch(first)

    def fetch(self, first: int) -> RecordBatch:
        """The journal from an offset on."""
        rows = self.journal[first:]
        return pack("unit.journal", 0, [_record(first + i, *row) for i, row in enumerate(rows)])

    def read_back(self) -> None:
        """Everything written since the last time."""
        for offset in range(self._num_read, len(self.output.log)):
            self.owned.read(Read(0, self.generation, offset, self.output.log[offset]))
        self._num_read = len(self.output.log)

    def written(self, kind: type) -> list[Any]:
        return [record for record in (decode(value, REGISTRY) for value in self.output.log) if isinstance(record, kind)]


def _record(offset: int, time_ms: int, value: bytes | None) -> Any:
    return SimpleNamespace(offset=offset, timestamp=time_ms, value=value)


def ids(num: int, start: int = 0) -> list[str]:
    return [f"d{i}" for i in range(start, start + num)]


def decisions(names: Sequence[str]) -> Any:
    return decision_block(TASK, list(names), ["s"] * len(names))


def accepted_rows(log: Sequence[bytes]) -> int:
    """Rows that a reader of the log accepts."""
    reader, count = ChainReader(), 0
    for value in log:
        record = decode(value, REGISTRY)
        if isinstance(record, TransitionBlock):
            verdict = reader.offer(record)
            count += len(record) - verdict.start if isinstance(verdict, Accepted) else 0
    return count


def test_progress_is_written_only_when_the_rows_it_speaks_of_were_read_back() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        await bench.owned.fold(bench.append(1000, decisions(ids(3)), Tick()))
        await bench.owned.fold(bench.append(9000, Tick()))
        assert len(bench.written(TransitionBlock)) == 1
        before = [progress.time_ms for progress in bench.written(Progress)]
        assert before == [1000], "the tick at 9000 closed rows that nobody has read back"
        bench.read_back()
        await bench.owned.checkpoint()
        newest = bench.written(Progress)[-1]
        assert (newest.time_ms, newest.decision_counts["defaulted"]) == (9000, 3)

    asyncio.run(run())


def test_a_refused_write_restarts_from_what_was_read_back_and_nothing_is_missing() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        await bench.owned.fold(bench.append(1000, decisions(ids(3))))
        bench.output.refuse = {0}
        await bench.owned.fold(bench.append(9000, Tick()))
        await asyncio.sleep(0)
        assert bench.restarts == ["write error"]
        bench.begin()
        await bench.owned.fold(bench.fetch(bench.owned.next_offset or 0))
        assert accepted_rows(bench.output.log) == 3

    asyncio.run(run())


def test_a_lost_block_is_healed_though_it_was_acked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        bench = Bench(heal_after_ms=500)
        bench.begin()
        bench.output.lose = {0}
        await bench.owned.fold(bench.append(1000, decisions(ids(3))))
        await bench.owned.fold(bench.append(9000, Tick()))
        await asyncio.sleep(0)
        assert not bench.owned.needs_healing()
        import streams.agents_owned as module

        now_s = module.time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now_s + 6 * 0.5 + 0.1)
        assert bench.owned.needs_healing()
        bench.begin()
        await bench.owned.fold(bench.fetch(0))
        assert accepted_rows(bench.output.log) == 3

    asyncio.run(run())


@pytest.mark.parametrize(("has_passed", "factor"), [(True, 1), (False, UNREAD_FACTOR)])
def test_a_block_that_read_back_has_not_reached_has_six_times_as_long(
    has_passed: bool, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        bench = Bench(heal_after_ms=500)
        bench.begin()
        await bench.owned.fold(bench.append(1000, decisions(ids(3)), Tick()))
        bench.output.lose = {1}
        await bench.owned.fold(bench.append(9000, Tick()))
        await asyncio.sleep(0)
        assert len(bench.written(TransitionBlock)) == 0
        if has_passed:
            bench.output.log.append(bench.output.log[0])  # anybody's record behind where it was acked
            bench.read_back()
        import streams.agents_owned as module

        now_s = module.time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now_s + factor * 0.5 - 0.1)
        assert not bench.owned.needs_healing()
        monkeypatch.setattr(module.time, "monotonic", lambda: now_s + factor * 0.5 + 0.1)
        assert bench.owned.needs_healing()
        assert bench.restarts == []

    assert UNREAD_FACTOR == 6, "the setting's description says six"
    asyncio.run(run())


def test_a_block_after_a_lost_one_is_a_hole_that_restarts_the_partition() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        bench.output.lose = {0}
        await bench.owned.fold(bench.append(1000, decisions(ids(3))))
        await bench.owned.fold(bench.append(5000, Tick(), decisions(ids(3, 3))))
        await bench.owned.fold(bench.append(9000, Tick()))
        bench.read_back()
        assert bench.restarts == ["hole"]
        assert bench.metrics.value("headrace_join_holes", partition=0) == 1
        bench.begin()
        await bench.owned.fold(bench.fetch(0))
        assert accepted_rows(bench.output.log) == 6

    asyncio.run(run())


def test_a_batch_that_does_not_continue_the_fold_is_read_again() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        bench.append(1000, decisions(ids(3)))
        later = bench.append(2000, Tick())
        assert not await bench.owned.fold(later)
        assert bench.owned.next_offset == 0
        assert await bench.owned.fold(bench.fetch(0))
        assert await bench.owned.fold(bench.fetch(0)), "records folded already are dropped"
        assert bench.owned.next_offset == 2

    asyncio.run(run())


def test_an_unknown_task_keeps_what_came_before_it_and_waits() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        other = project("unit", window="900ms").tasks[0]
        block = decision_block(other, ids(2), ["s", "s"])
        await bench.owned.fold(bench.append(1000, decisions(ids(3)), block, Tick()))
        assert (bench.owned.state, bench.owned.next_offset) == (State.WAITING, 1)
        assert not bench.owned.look_again()
        bench.owned._ports.tasks.add(other)
        assert bench.owned.look_again()
        await bench.owned.fold(bench.fetch(1))
        assert bench.owned.next_offset == 3

    asyncio.run(run())


def test_a_record_whose_schema_cannot_be_fetched_waits_and_nothing_behind_it_is_folded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        registry = AwayRegistry("DecisionBlock", "OutcomeBlock")
        bench = Bench(registry)
        bench.begin()
        assert await bench.owned.fold(bench.append(1000, decisions(ids(3)), Tick(), decisions(ids(2, 3))))
        assert (bench.owned.state, bench.owned.next_offset) == (State.NO_SCHEMA, 1)
        later = bench.append(2000, Tick())
        for _ in range(3):  # what was fetched ahead is dropped, not sought again and again
            assert await bench.owned.fold(later)
            assert not bench.owned.look_again()
        for _ in range(3):
            now_s[0] += agents_owned.REGISTRY_RETRY_S
            assert bench.owned.look_again()
            assert not bench.owned.look_again()
            assert not await bench.owned.fold(later), "it must be sought"
            num_asked = registry.num_asked
            assert await bench.owned.fold(bench.fetch(1))
            assert (bench.owned.state, bench.owned.next_offset) == (State.NO_SCHEMA, 1)
            assert registry.num_asked == num_asked + 1
        registry.away = False
        now_s[0] += agents_owned.REGISTRY_RETRY_S
        assert bench.owned.look_again()
        assert await bench.owned.fold(bench.fetch(1))
        assert (bench.owned.state, bench.owned.next_offset) == (State.FOLDING, 4)
        await bench.owned.fold(bench.append(9000, Tick()))
        assert accepted_rows(bench.output.log) == 5

    now_s = [1_000.0]
    monkeypatch.setattr(agents_owned.time, "monotonic", lambda: now_s[0])
    asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["ERROR"], "said once"


def test_output_whose_schema_cannot_be_fetched_is_read_back_once_more_when_it_can() -> None:
    async def run() -> None:
        registry = AwayRegistry("DecisionBlock", "OutcomeBlock", "Tick")
        bench = Bench(registry)
        bench.begin()
        await bench.owned.fold(bench.append(1000, decisions(ids(3)), Tick()))
        await bench.owned.fold(bench.append(9000, Tick()))
        stranger = Progress(0, 1000, 1, 0, (), Resume(0), {}, {})
        bench.output.log.insert(0, encode(stranger, REGISTRY))
        bench.read_back()
        assert bench.restarts[0] == "no schema"

    asyncio.run(run())


def test_records_of_an_earlier_life_are_ignored() -> None:
    async def run() -> None:
        bench = Bench()
        bench.begin()
        stale = bench.generation
        await bench.owned.fold(bench.append(1000, decisions(ids(3))))
        await bench.owned.fold(bench.append(9000, Tick()))
        bench.begin()
        bench.owned.read(Read(0, stale, 999, bench.output.log[0]))
        await bench.owned.fold(bench.fetch(bench.owned.next_offset or 0))
        await bench.owned.checkpoint()
        assert all(progress.transitions_offset < 999 for progress in bench.written(Progress))

    asyncio.run(run())


def test_a_journal_made_anew_is_refused_rather_than_read_and_ignored() -> None:
    """Found by review: all that came was dropped as folded before, in every worker and for ever."""

    async def run() -> None:
        bench = Bench()
        bench.begin()
        await bench.owned.fold(bench.append(1000, *[Tick()] * 50))
        await bench.owned.fold(bench.append(9000, Tick()))
        bench.read_back()
        await bench.owned.checkpoint()
        folded = bench.written(Progress)[-1].journal_offset
        bench.begin()  # a log that ends where the fold stands is as it should be
        bench.journal.clear()
        bench.append(3_000_000, decisions(ids(3)))
        with pytest.raises(UserError, match=rf"unit.journal\[0\] ends at offset 1, .* read up to {folded}") as refused:
            bench.begin()
        assert "a new namespace" in refused.value.remedy
        assert bench.owned.state is State.REFUSED

    asyncio.run(run())


def test_what_the_journal_lost_is_refused_with_the_remedy() -> None:
    bench = Bench()
    with pytest.raises(UserError, match=r"unit.journal\[0\] starts at offset 7, but the join must go on at 0"):
        bench.begin(journal_start=7)
    assert bench.owned.state is State.REFUSED
    declared = Bench(declare_gap=True)
    declared.begin(journal_start=7)
    assert declared.owned.next_offset == 7


def test_python_calls_per_block_do_not_grow_with_its_rows() -> None:
    def calls(num_rows: int) -> int:
        bench = Bench()
        bench.begin()
        first = bench.append(
            1000, decisions(ids(num_rows)), outcome_block(0, 0, ids(num_rows)[::2], ["s"] * len(ids(num_rows)[::2]))
        )
        second = bench.append(9000, Tick())
        count = 0

        def count_call(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        async def run() -> None:
            sys.setprofile(count_call)
            try:
                await bench.owned.fold(first)
                await bench.owned.fold(second)
                bench.read_back()
                await bench.owned.checkpoint()
            finally:
                sys.setprofile(None)

        asyncio.run(run())
        assert accepted_rows(bench.output.log) == num_rows
        return count

    calls(4)
    small, large = calls(64), calls(2048)
    assert large - small < 0.1 * (2048 - 64), "only buffers that double with the rows may add calls"


def test_a_wrong_clock_is_told_once_it_was_wrong_for_twenty_ticks_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    async def tick(bench: Bench, now_ms: int, skew_ms: int, unread: int = 0) -> float:
        """One tick folded as our clock shows `now_ms`, looked at; returns the gauge."""
        bench.clock_ms = now_ms
        assert await bench.owned.fold(bench.append(now_ms + skew_ms, Tick()))
        bench.owned.show(len(bench.journal) + unread)
        return bench.metrics.value("headrace_join_clock_skew_ms", partition=0)

    async def run() -> None:
        bench, wrong = Bench(), SKEW_MS_MAX + 1
        bench.begin()
        times = iter(range(100_000, 10**9, 250))

        for _ in range(SKEW_ROUNDS - 1):
            assert await tick(bench, next(times), wrong) == wrong
        assert await tick(bench, next(times), SKEW_MS_MAX) == SKEW_MS_MAX, "within a second is right"
        for _ in range(SKEW_ROUNDS - 1):
            assert await tick(bench, next(times), -wrong) == -wrong
        await tick(bench, next(times), -3_600_000, unread=1)  # reading the past: no word about the clock
        assert caplog.messages == []

        assert await tick(bench, next(times), -wrong) == -wrong
        (told,) = caplog.messages
        assert told.startswith(f"unit.journal[0]: the broker's clock and ours differ by {-wrong} ms: set up NTP")
        for _ in range(2 * SKEW_ROUNDS):
            await tick(bench, next(times), -wrong)
        assert len(caplog.messages) == 1, "and not again while it stays wrong"

        await tick(bench, next(times), 0)
        for _ in range(SKEW_ROUNDS):
            await tick(bench, next(times), wrong)
        assert len(caplog.messages) == 2

    asyncio.run(run())


def test_a_record_batch_that_nobody_can_read_is_one_dead_letter_and_the_fold_goes_on_behind_it() -> None:
    async def run() -> None:
        for is_joined in (True, False):  # with what follows it in one batch, and by itself
            bench = Bench()
            before = bench.append(1_000, decisions(ids(2)))
            bench.journal += [(1_100, None)] * 5
            after = bench.append(1_200, decisions(ids(2, 2)))
            bench.begin()
            unread = bench.fetch(1)
            stand_in = replace(
                unread,
                **{name: getattr(unread, name)[:1] for name in ("offsets", "timestamps_ms", "starts")},
                lengths=np.array([OVERSIZED_LENGTH], np.int32),
                next_offset=6,
            )
            parts = [before, stand_in, after]
            for batch in [join(parts)] if is_joined else parts:
                assert await bench.owned.fold(batch)
            assert [(letter.offset, letter.reason) for letter in bench.letters] == [(1, "too-large")]
            assert bench.owned.next_offset == 7
            assert await bench.owned.fold(bench.append(9_000, Tick()))
            assert [len(block) for block in bench.written(TransitionBlock)] == [4]

    asyncio.run(run())
