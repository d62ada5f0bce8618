"""Every request is sent three times while deciders are killed and policies change: one action per id is learnt from.

What is promised (guarantee 12), and tested to the letter:

    both            Each sending is answered, and is one record of the journal, however often a decider dies over it.
                    Of an id the first record in the log is the decision; its transition names that action. Each later
                    record is a duplicate and never learnt from; one that names another action within the reward
                    window makes the decision a conflict, which is counted and not learnt from either.
    journal-first   A shop that acts on the first answer to an id does what that first record says: shop, journal and
                    transition agree on one action. Every answer is in the journal, to the last bit.
    immediate       The same, but for answers whose record died with their decider: the request is then decided again,
                    perhaps under another policy. An outcome that names the action first heard is then a conflict, or
                    an orphan if it came longer before that record than the backward window: counted either way.
"""

from __future__ import annotations

import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from deploy.audit import AuditReport, audit
from learner import metrics
from learner.publish import Publisher
from schemas.outage import Outage
from schemas.records import DecisionBucket, Progress
from schemas.settings import CommonSettings
from schemas.signing_keys import create_keys, load_private_key
from schemas.task import Project
from tests.kafka import thrice, thrice_log
from tests.kafka.thrice import Agenda, Customer, Deciders
from tests.kafka.thrice_log import Record, Transition, said_of
from tests.kafka.workers import REGISTRY, WorkerProcess, set_up, until

NUM_IDS = 250
"""Of each of the two tasks."""
SENDINGS = 3
SENDING_S = 30.0
WINDOW_S = 6
SWAP_S = 2.0
LIVES = (
    ("decide.before-answers=100", "", "decide.answered=60"),
    (thrice.LOSES, "", "decide.before-journal=40"),
)
"""Deaths of the two places in the group, besides SIGKILL and SIGTERM at fixed times."""
KILLS = ((18.0, 0, signal.SIGKILL), (22.0, 1, signal.SIGTERM))
TASKS = ("first", "hasty")


@dataclass(frozen=True)
class Told:
    """What the shop did and what the log holds, once everything is settled."""

    project: Project
    customer: Customer
    deciders: Deciders
    records: dict[str, list[Record]]
    transitions: dict[tuple[int, int], Transition]
    progress: dict[int, Progress]
    outcome_times_ms: dict[str, int]
    audited: AuditReport

    def ids(self, task: str) -> Iterator[str]:
        return (f"{task}-{number}" for number in range(NUM_IDS))

    def count(self, kind: str, bucket: str) -> int:
        """Of all partitions, by the join's own books."""
        return sum(getattr(each, kind).get(bucket, 0) for each in self.progress.values())

    def disputed(self, task: str) -> set[str]:
        """Ids of which a later record within the window names another action than the first."""
        found = set()
        for name in self.ids(task):
            head, *later = self.records[name]
            end_ms = head.time_ms + WINDOW_S * 1000
            if any(each.answer[0] != head.answer[0] and each.time_ms <= end_ms for each in later):
                found.add(name)
        return found

    def unlogged(self, task: str) -> set[str]:
        """Ids of which the shop heard an answer that the journal does not hold."""
        return {
            name
            for name in self.ids(task)
            if not {said_of(each) for each in self.customer.answers[name]}
            <= {each.answer for each in self.records[name]}
        }


@pytest.fixture(scope="module")
def told(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("thrice")
    project = thrice.project(f"t{uuid.uuid4().hex[:12]}", f"{WINDOW_S}s")
    settings = set_up(broker, project)
    private, public = create_keys(folder / "keys")
    publisher = Publisher(settings, REGISTRY, load_private_key(private), metrics.make(), 3600.0, Outage()).start()
    publisher.submit(thrice.snapshot(project.tasks, 1, 0))
    assert publisher.flush(30)
    join = WorkerProcess("ingest+join", settings, folder)
    deciders = Deciders(settings, folder, public, LIVES)
    customer = Customer(settings, 5)
    try:
        for process in (join, *deciders.running):
            process.wait_ready()
        _talk(project, publisher, deciders, customer)
        until(lambda: _is_settled(settings, project, len(customer.told)), 60, join.said)
        assert join.stop()[0] == 0
    finally:
        publisher.close()
        deciders.end()
        join.end()
    rows, progress = thrice_log.transitions(settings, project)
    records, times_ms = thrice_log.journaled(settings, project), thrice_log.outcome_times_ms(settings)
    return Told(project, customer, deciders, records, rows, progress, times_ms, audit(settings))


def _talk(project: Project, publisher: Publisher, deciders: Deciders, customer: Customer) -> None:
    """The run: sendings at random times, swaps and deaths, until each sending is answered and each outcome sent."""
    agenda = Agenda()
    for task in TASKS:
        for number in range(NUM_IDS):
            for _ in range(SENDINGS):
                agenda.at(customer.random.uniform(0, SENDING_S), partial(customer.ask, task, number))
    for version in range(2, int(SENDING_S / SWAP_S) + 2):
        made = thrice.snapshot(project.tasks, version, version % 3)
        agenda.at((version - 1) * SWAP_S, partial(publisher.submit, made))
    for second, place, number in KILLS:
        agenda.at(second, partial(_kill, agenda, deciders, place, number))
    num = NUM_IDS * SENDINGS * len(TASKS)

    def is_done() -> bool:
        agenda.work()
        deciders.look_after()
        customer.listen(agenda)
        answered = all(len(customer.answers[name]) >= SENDINGS for task in TASKS for name in _names(task))
        return not agenda.due and customer.num_heard >= num and answered

    until(is_done, SENDING_S + 60, lambda: f"{customer.num_heard} of {num} answers; {deciders.ends}")
    deciders.stop()
    customer.close()


def _kill(agenda: Agenda, deciders: Deciders, place: int, number: signal.Signals) -> None:
    """As soon as the process in that place serves."""
    process = deciders.running[place]
    if process.get("/ready")[0] == 200:
        process.process.send_signal(number)
    else:
        agenda.at(agenda.now_s() + 0.5, partial(_kill, agenda, deciders, place, number))


def _names(task: str) -> list[str]:
    return [f"{task}-{number}" for number in range(NUM_IDS)]


def _is_settled(settings: CommonSettings, project: Project, num_outcomes: int) -> bool:
    """Every window has closed, and every outcome has found its place."""
    _, progress = thrice_log.transitions(settings, project)
    if len(progress) < thrice.PARTITIONS:
        return False
    decisions, outcomes = Counter[str](), Counter[str]()
    for each in progress.values():
        decisions.update(each.decision_counts)
        outcomes.update({bucket: count for bucket, count in each.outcome_counts.items() if bucket != "copies"})
    num_records = sum(map(len, thrice_log.journaled(settings, project).values()))
    is_closed = decisions["open"] == 0 and sum(decisions.values()) == num_records
    return is_closed and outcomes["pending"] == 0 and sum(outcomes.values()) == num_outcomes


def test_the_run_was_what_it_says(told: Told) -> None:
    """Deaths by signals and at fault points, swaps that served, answers again after takeovers."""
    versions = {each.answer[2] for records in told.records.values() for each in records}
    num_answers = sum(map(len, told.customer.answers.values()))
    print(f"exit codes {told.deciders.ends}, {len(versions)} versions decided, {num_answers} answers")
    assert told.deciders.ends.count(-signal.SIGKILL) >= 4
    assert 0 in told.deciders.ends
    assert len(versions) >= 8
    assert sum(len(told.disputed(task)) for task in TASKS) > 50


@pytest.mark.parametrize("task", TASKS)
def test_every_sending_is_answered_and_is_one_record(told: Told, task: str) -> None:
    for name in told.ids(task):
        assert len(told.customer.answers[name]) >= SENDINGS
        assert len(told.records[name]) == SENDINGS
        assert len({each.request for each in told.records[name]}) == SENDINGS


@pytest.mark.parametrize("task", TASKS)
def test_the_first_record_is_the_transition_and_later_ones_are_duplicates(told: Told, task: str) -> None:
    disputed, unlogged = told.disputed(task), told.unlogged(task)
    for name in told.ids(task):
        rows = [told.transitions[each.place] for each in told.records[name]]
        assert [row.answer for row in rows] == [each.answer for each in told.records[name]]
        assert {row.bucket for row in rows[1:]} == {DecisionBucket.DUPLICATE}
        if name in disputed:
            assert rows[0].bucket == DecisionBucket.CONFLICT
        elif name not in unlogged:  # else an outcome may dispute it
            assert rows[0].bucket in (DecisionBucket.JOINED, DecisionBucket.DEFAULTED)


def test_shop_journal_and_transition_agree_on_one_action(told: Told) -> None:
    """journal-first: the first answer is the first record, exactly; and no answer is without its record."""
    for name in told.ids("first"):
        head = told.records[name][0]
        assert said_of(told.customer.first[name]) == head.answer == told.transitions[head.place].answer
    assert told.unlogged("first") == set()


def test_an_immediate_task_differs_only_where_a_record_died_with_its_decider(told: Told) -> None:
    lost = told.unlogged("hasty")
    differing = {
        name for name in told.ids("hasty") if said_of(told.customer.first[name]) != told.records[name][0].answer
    }
    print(f"{len(lost)} of {NUM_IDS} ids heard an answer without a record, {len(differing)} first of all")
    assert differing <= lost
    assert lost, "a decider died with records on their way"


def test_conflicts_are_counted_one_for_one(told: Told) -> None:
    """Decisions: those with a later record of another action, or an outcome of one. Outcomes: those of another."""
    disputed = set().union(*(told.disputed(task) for task in TASKS))
    named = {name for task in TASKS for name in told.ids(task) if _contradicts(told, name)}
    waited_ms = {name: told.outcome_times_ms[name] + thrice.BACKWARD_MS for name in told.customer.told}
    early = {name for name, until_ms in waited_ms.items() if told.records[name][0].time_ms > until_ms}
    in_books = told.count("decision_counts", "conflict")
    print(f"{in_books} conflicts counted: {len(disputed)} by a later record, {len(named - early)} named by an outcome")
    assert named | early <= told.unlogged("hasty")
    assert in_books == len(disputed | (named - early))
    assert in_books == sum(row.bucket == DecisionBucket.CONFLICT for row in told.transitions.values())
    assert told.count("outcome_counts", "conflict") == len(named - early)
    assert told.count("outcome_counts", "orphan") == len(early)
    assert told.count("decision_counts", "duplicate") == 2 * NUM_IDS * (SENDINGS - 1)


def _contradicts(told: Told, name: str) -> bool:
    """The shop told of an outcome and named an action that the first record did not choose."""
    action = told.customer.first[name]["actions"][0]
    return name in told.customer.told and action != told.records[name][0].answer[0]


def test_the_audit_is_clean(told: Told) -> None:
    assert told.audited.verdict == "clean"
