"""The join on a real broker: whatever happens to its process, every decision comes out exactly once."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from deploy.audit import audit
from schemas.blocks import TransitionBlock
from schemas.codec import encode
from schemas.topics import topic
from streams.journal import Output
from tests.kafka.journal_writer import JournalWriter, account, check_complete, decision_block
from tests.kafka.workers import REGISTRY, WorkerProcess, bad_records, project, read_all, set_up, until, worker

PARTITIONS = 4


@pytest.fixture
def writer(broker: str, namespace: str) -> JournalWriter:
    """A namespace with one task (window 1 s), its journal empty."""
    wanted = project(namespace, PARTITIONS)
    return JournalWriter(set_up(broker, wanted), wanted.tasks[0], PARTITIONS)


def all_out(writer: JournalWriter, *workers: WorkerProcess, timeout_s: float = 40.0) -> None:
    """Wait until every decision has come out and Progress says so."""

    def met() -> bool:
        found = account(writer.settings)
        closed = sum(
            count
            for progress in found.progress.values()
            for bucket, count in progress.decision_counts.items()
            if bucket != "open"
        )
        return found.num_rows >= writer.num_written and closed >= writer.num_written

    until(met, timeout_s, lambda: "\n".join(each.said() for each in workers))


class Shop(threading.Thread):
    """Decisions and outcomes into all partitions, about 50 blocks a second, until it is told to stop."""

    def __init__(self, writer: JournalWriter) -> None:
        super().__init__(daemon=True)
        self._writer, self._stopping = writer, threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.08):
            for partition in range(PARTITIONS):
                self._writer.both(partition)

    def __enter__(self) -> Shop:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self.join(5)
        self._writer.flush()


@pytest.mark.parametrize("in_place", [True, False])
def test_every_decision_becomes_one_transition_with_its_reward(
    writer: JournalWriter, tmp_path: Path, in_place: bool
) -> None:
    with worker("join", writer.settings, tmp_path, decode_in_place=in_place) as join:
        assert f"record batches are {'decoded in place' if in_place else 'packed'}" in join.said()
        for partition in range(PARTITIONS):
            for _ in range(5):
                writer.both(partition, 20)
        writer.flush()
        all_out(writer, join)
        found = check_complete(writer.settings, writer)
        assert (found.num_repeated, found.num_holes) == (0, 0)
        until(lambda: join.metric("headrace_join_transitions_total") == writer.num_written)
        assert join.get("/live") == (200, "ok\n")
        code, took_s = join.stop()
        assert (code, took_s < 10) == (0, True), join.said()


def test_a_successor_goes_on_after_kill_9_without_hole_or_duplicate(writer: JournalWriter, tmp_path: Path) -> None:
    with worker("join", writer.settings, tmp_path) as first, worker("join", writer.settings, tmp_path) as second:
        with Shop(writer):
            until(lambda: first.metric("headrace_join_transitions_total") > 100, 30, first.said)
            first.kill()
            died_at = writer.num_written
            until(lambda: writer.num_written > died_at + 2000, 60)
            third = WorkerProcess("join", writer.settings, tmp_path)
        try:
            all_out(writer, second, third)
            found = check_complete(writer.settings, writer)
            assert found.num_holes == 0
        finally:
            third.end()


def test_a_rolling_restart_loses_and_repeats_nothing(writer: JournalWriter, tmp_path: Path) -> None:
    with worker("join", writer.settings, tmp_path) as first, worker("join", writer.settings, tmp_path) as second:
        with Shop(writer):
            for old in (first, second):
                time.sleep(1)
                code, took_s = old.stop()
                assert (code, took_s < 10) == (0, True), old.said()
                new = WorkerProcess("join", writer.settings, tmp_path)
                try:
                    new.wait_ready()
                    seen = new.metric("headrace_join_transitions_total")
                    until(lambda new=new, seen=seen: new.metric("headrace_join_transitions_total") > seen, 30, new.said)
                finally:
                    if old is first:
                        third = new
        try:
            all_out(writer, third, new)
            assert check_complete(writer.settings, writer).num_holes == 0
        finally:
            third.end()
            new.end()


def test_a_block_that_nobody_can_accept_is_healed(writer: JournalWriter, tmp_path: Path) -> None:
    """Somebody's block with a predecessor that is missing: a hole for every reader, and the join starts again."""
    with worker("join", writer.settings, tmp_path) as join:
        writer.both(0)
        writer.flush()
        all_out(writer, join)
        (block,) = [
            each[3] for each in read_all(writer.settings, "transitions") if isinstance(each[3], TransitionBlock)
        ]
        stray = TransitionBlock(
            **{name: getattr(block, name) for name in TransitionBlock.__slots__}
            | {"prev": block.last + 1000, "positions": block.positions + (block.last + 2000)}
        )
        output = Output(writer.settings)
        output.send(topic(writer.settings.namespace, "transitions"), 0, encode(stray, REGISTRY))
        assert output.close() == 0
        until(lambda: join.metric("headrace_join_restarts_total") >= 1, 20, join.said)
        writer.both(0)
        writer.flush()
        all_out(writer, join)
        found = check_complete(writer.settings, writer)
        assert found.num_holes == 1
        assert join.metric("headrace_join_holes_total") == 1


def test_an_unknown_task_stops_only_its_partition_until_it_is_applied(
    writer: JournalWriter, namespace: str, tmp_path: Path
) -> None:
    from deploy.applying import apply

    later = project(namespace, PARTITIONS, window="900ms")
    with worker("join", writer.settings, tmp_path) as join:
        other = JournalWriter(writer.settings, later.tasks[0], PARTITIONS)
        other.decide(0)
        other.flush()
        until(lambda: join.metric("headrace_join_unknown_task") == 1, 20, join.said)
        writer.both(1)
        writer.flush()
        until(lambda: account(writer.settings).num_rows == 10, 20, join.said)
        assert join.get("/live")[0] == 200
        assert "waits for a task definition" in join.get("/ready")[1]
        apply(writer.settings, later)
        until(lambda: account(writer.settings).num_rows == 20, 20, join.said)
        until(lambda: join.get("/ready")[0] == 200)
        assert join.metric("headrace_join_unknown_task") == 0


def test_malformed_journal_records_go_to_the_dead_letters_and_the_rest_goes_on(
    writer: JournalWriter, tmp_path: Path
) -> None:
    bad = bad_records(encode(decision_block(writer.task, ["x"], ["s"]), REGISTRY))
    with worker("join", writer.settings, tmp_path) as join:
        for value, _ in bad:
            writer.raw(0, value)
            writer.both(0)
            writer.both(1)
        writer.flush()
        all_out(writer, join)
        check_complete(writer.settings, writer)
        letters = [each[3] for each in read_all(writer.settings, "dead-letters", len(bad))]
        assert sorted(letter.reason for letter in letters) == sorted(reason for _, reason in bad)
        assert {letter.partition for letter in letters} == {0}
        assert join.process.poll() is None


def test_malformed_transitions_go_to_the_dead_letters_and_the_rest_goes_on(
    writer: JournalWriter, tmp_path: Path
) -> None:
    name = topic(writer.settings.namespace, "transitions")
    producer = Producer({"bootstrap.servers": writer.settings.bootstrap})

    def spoil(good: bytes) -> list[str]:
        bad = bad_records(good)
        for value, _ in bad:
            producer.produce(name, value, partition=0)
            writer.both(0)
            writer.both(1)
        assert producer.flush(10) == 0
        writer.flush()
        return sorted(reason for _, reason in bad)

    def reasons(num: int) -> list[str]:
        letters = [each[3] for each in read_all(writer.settings, "dead-letters", num)]
        assert {(letter.topic, letter.partition) for letter in letters} == {(name, 0)}
        return sorted(letter.reason for letter in letters)

    with worker("join", writer.settings, tmp_path) as join:
        writer.both(0)
        writer.flush()
        all_out(writer, join)
        found = [each for *_, each in read_all(writer.settings, "transitions", 1)]
        good = encode(next(each for each in found if isinstance(each, TransitionBlock)), REGISTRY)
        expected = spoil(good)
        all_out(writer, join)
        check_complete(writer.settings, writer, len(expected))
        assert reasons(len(expected)) == expected
        assert join.process.poll() is None
    spoil(good)  # while nobody reads
    with worker("join", writer.settings, tmp_path) as join:
        all_out(writer, join)
        check_complete(writer.settings, writer, 2 * len(expected))
        until(lambda: len(reasons(len(expected))) >= 2 * len(expected), 20, join.said)
        assert set(reasons(2 * len(expected))) == set(expected)


def test_malformed_definitions_go_to_the_dead_letters_and_the_rest_goes_on(
    writer: JournalWriter, tmp_path: Path
) -> None:
    name = topic(writer.settings.namespace, "tasks")
    record = writer.task.record()
    strange = replace(record, fingerprint=bytes(16), definition='{"kind": "from the future"}')
    good = encode(record, REGISTRY)
    bad = [each for each in bad_records(good)[:10] if each[0] is not None]  # None is a tombstone
    bad += [
        (good[:21] + b"\xff" * 20, "bad-varint"),  # behind the fingerprint
        (good[:21] + b"\x01" + good[22:], "negative-length"),
        (good[:5] + b"\x01" + good[6:], "bad-definition"),  # under another's fingerprint
        (encode(strange, REGISTRY), "bad-definition"),
        (encode(replace(record, kind="new"), REGISTRY), "wrong-type"),
    ]
    producer = Producer({"bootstrap.servers": writer.settings.bootstrap})
    with worker("join", writer.settings, tmp_path) as join:
        for value, _ in bad:
            producer.produce(name, value, b"some key")
            writer.both(0)
        assert producer.flush(10) == 0
        writer.flush()
        all_out(writer, join)
        letters = [each[3] for each in read_all(writer.settings, "dead-letters", len(bad))]
        assert sorted(letter.reason for letter in letters) == sorted(reason for _, reason in bad)
        assert {(letter.topic, letter.partition) for letter in letters} == {(name, 0)}
        assert join.process.poll() is None


def test_lost_journal_records_stop_the_join_with_the_remedy_unless_declared(
    writer: JournalWriter, tmp_path: Path
) -> None:
    writer.both(2)
    writer.flush()
    where = TopicPartition(topic(writer.settings.namespace, "journal"), 2, 1)
    admin = AdminClient({"bootstrap.servers": writer.settings.bootstrap})
    admin.delete_records([where])[where].result(10)
    refused = WorkerProcess("join", writer.settings, tmp_path)
    try:
        assert refused.process.wait(40) == 1
        assert "1 records are gone that were not joined" in refused.said()
        assert refused.said().rstrip().endswith("headrace worker join --declare-gap")
        assert "Traceback" not in refused.said()
    finally:
        refused.end()
    with worker("join", writer.settings, tmp_path, declare_gap=True) as join:
        writer.both(2)
        writer.flush()
        until(lambda: account(writer.settings).num_rows == 10, 20, join.said)
        assert join.metric("headrace_join_declared_gap_records_total") == 1
        until(lambda: audit(writer.settings).total("num_in_declared_gaps") == 1, 20, join.said)
    with worker("join", writer.settings, tmp_path):  # declared once, said for good
        writer.both(2)
        writer.flush()
        until(lambda: account(writer.settings).num_rows == 20, 20, join.said)
        found = audit(writer.settings)
        assert found.is_clean
        assert found.total("num_in_declared_gaps") == 1
        assert any("1 journal records from offset 0 on were lost" in each for each in found.as_json()["notes"])


def test_a_join_that_retention_overtakes_ends_with_the_remedy(writer: JournalWriter, tmp_path: Path) -> None:
    with worker("join", writer.settings, tmp_path) as join:
        writer.both(2)
        writer.flush()
        until(lambda: account(writer.settings).num_rows == 10, 20, join.said)
        join.process.send_signal(signal.SIGSTOP)
        writer.both(2)
        writer.flush()
        time.sleep(1.0)  # an answer that was on its way holds no more than this
        for _ in range(40):
            writer.both(2)
        writer.flush()
        name = topic(writer.settings.namespace, "journal")
        admin = AdminClient({"bootstrap.servers": writer.settings.bootstrap})
        end = admin.list_offsets({TopicPartition(name, 2): OffsetSpec.latest()})[TopicPartition(name, 2)].result(10)
        where = TopicPartition(name, 2, end.offset - 5)
        admin.delete_records([where])[where].result(10)
        join.process.send_signal(signal.SIGCONT)
        assert join.process.wait(40) == 1
        assert "records are gone that were not joined" in join.said()
        assert join.said().rstrip().endswith("headrace worker join --declare-gap")
        assert "Traceback" not in join.said()


def test_a_restart_continues_the_counts_of_before(writer: JournalWriter, tmp_path: Path) -> None:
    for _ in range(2):
        with worker("join", writer.settings, tmp_path) as join:
            for partition in range(PARTITIONS):
                writer.both(partition)
            writer.flush()
            all_out(writer, join)
            assert join.stop()[0] == 0
    found = check_complete(writer.settings, writer)
    assert (found.num_repeated, found.num_holes) == (0, 0)
