"""From decided rows to the broker: journal, answers, dead letters, and which requests are finished.

A shell around three idempotent producers. A broker serves one request of a connection at a time, and an answer must not
wait behind the journal record of the next one: so answers have their own. Of the others one is for records whose ack an
answer waits for, and one for all the rest: their acks only let offsets be committed, as those of answers do, and are
served a few hundred times a second. Each one served by itself would take the interpreter from the batch being decided.

    journal-first   block → ack → answers → delivered: finished
    immediate       answers; a moment later their block, with others' (`group_commit`); finished when both are acked
    unjournaled     answer, and where there is one, dead letter; finished when both are acked

Called by the loop (`Replies.journaled` and so on); acks come in the producers' own threads.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from schemas.codec import encode
from schemas.fault_points import reach
from schemas.frozen import frozen
from schemas.keys import partition_of
from schemas.records import DeadLetter, Decision
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic
from streams.dead_letters import DeadLetters, letter_of
from streams.decision_blocks import Part
from streams.group_commit import GroupCommit
from streams.journal import Output, WriteError
from streams.offsets import Offsets

log = logging.getLogger(__name__)

REST_S = 0.005
"""Between two looks at acks that nobody waits for: well below the time between commits (measured at 1,000 requests a
second, answers at once: 10 % less of a processor)."""
ROOM_S = 0.001
"""Wait for room in a full producer queue: only while the broker is gone."""


@frozen
class Place:
    """Where a request stood."""

    partition: int
    offset: int
    append_time_ms: int
    as_json: bool
    """It came as JSON, so its answer is JSON."""


_Answer = tuple[Place, int, str, bytes]
"""Request, partition of its subject, subject, encoded answer."""


@dataclass(slots=True)
class _Effects:
    """What must still be acked before the requests of one block are finished."""

    answers: list[_Answer] | None = None
    """Of each row, to be sent at the ack; None until they are encoded."""
    acked: bool = False
    """The journal record (or the dead letter) is in the log."""
    delivered: list[Place] = field(default_factory=list)
    """Requests whose answer was delivered before the ack."""


def encoded_answer(decision: Decision, as_json: bool, registry: Registry) -> bytes:
    """The answer in the format of its request; JSON names are the Avro ones, the token is Base64."""
    if not as_json:
        return encode(decision, registry)
    return orjson.dumps(
        {
            "decision_id": decision.decision_id,
            "task": decision.task,
            "subject": decision.subject,
            "actions": decision.actions,
            "propensities": decision.propensities,
            "snapshot_version": decision.snapshot_version,
            "reason": decision.reason,
            "values": decision.values,
            "token": base64.b64encode(decision.token).decode(),
            "time_ms": decision.time_ms,
        }
    )


class Replies:
    """Everything that leaves the decide role."""

    def __init__(
        self,
        settings: CommonSettings,
        registry: Registry,
        num_partitions: int,
        offsets: Offsets,
        make_dead_letters: Callable[[Output], DeadLetters],
        observe_latency_s: Callable[[float], None],
    ) -> None:
        self._registry = registry
        self._num_partitions = num_partitions
        self._offsets = offsets
        self._observe_latency_s = observe_latency_s
        self._journal_topic = topic(settings.namespace, "journal")
        self._decisions_topic = topic(settings.namespace, "decisions")
        self._requests_topic = topic(settings.namespace, "requests")
        self._journal = Output(settings, linger_ms=0, compression="none")
        self._answers = Output(settings, linger_ms=0, compression="none", rest_s=REST_S)
        self._unhurried = Output(settings, linger_ms=0, compression="none", rest_s=REST_S)
        self._dead_letters = make_dead_letters(self._unhurried)
        self._waiting: GroupCommit[_Effects] = GroupCommit()
        self._lock = threading.Lock()
        self.failure: WriteError | None = None
        """Set when something can never be written: the process must end and begin anew from the committed offsets."""

    def journaled(self, part: Part, decisions: Sequence[Decision], places: Sequence[Place]) -> None:
        """Write the block of these rows, and answer them once it is in the log."""
        effects = _Effects()
        self._write(self._journal, part, [effects])
        answers = self._encoded(part.partition, decisions, places)  # while the journal record is on its way
        with self._lock:
            effects.answers = answers
            acked = effects.acked
        if acked:
            self._answer_all(effects, answers)

    def immediate(self, part: Part, decisions: Sequence[Decision], places: Sequence[Place]) -> None:
        """Answer these rows now; their block is written with others by `write_due`."""
        effects = _Effects(answers=[])
        for answer in self._encoded(part.partition, decisions, places):
            self._answer(effects, answer)
        self._waiting.add(part, effects, time.monotonic())

    def wait_s(self, longest_s: float) -> float:
        """How long the loop may wait for requests before `write_due` has something to do."""
        return self._waiting.wait_s(time.monotonic(), longest_s)

    def write_due(self) -> None:
        """Write blocks of what was answered and has waited long enough."""
        for part, effects in self._waiting.due(time.monotonic()):
            self._write(self._unhurried, part, effects)

    def _hand_over_waiting(self) -> None:
        """Write all that was answered, due or not, as far as there is room: also when something else has failed."""
        for part, effects in self._waiting.all():
            payload, acked = self._record_of(part, effects)
            try:
                self._unhurried.send(self._journal_topic, part.partition, payload, None, acked)
            except BufferError:
                self._waiting.put_back(part, effects)
                return
            except WriteError as error:
                self._fail(error)

    def _write(self, output: Output, part: Part, effects: list[_Effects]) -> None:
        payload, acked = self._record_of(part, effects)
        self._send(output, self._journal_topic, part.partition, payload, None, acked)

    def _record_of(self, part: Part, effects: list[_Effects]) -> tuple[bytes, Callable[[WriteError | None, int], None]]:
        """(journal record of these rows, what is to be told of its ack)."""
        payload = encode(part.block(), self._registry)
        reach("decide.before-journal")

        def acked(error: WriteError | None, offset: int) -> None:
            for each in effects:
                self._acked(each, error, offset)

        return payload, acked

    def _encoded(self, partition: int, decisions: Sequence[Decision], places: Sequence[Place]) -> list[_Answer]:
        """Answers of one journal partition; decisions have the same partition, because both follow the subject."""
        return [
            (place, partition, decision.subject, encoded_answer(decision, place.as_json, self._registry))
            for place, decision in zip(places, decisions, strict=True)
        ]

    def unjournaled(self, place: Place, decision: Decision) -> None:
        """Answer without a journal record and without a dead letter."""
        self._answer_one(_Effects(answers=[], acked=True), place, decision)

    def refused(self, place: Place, decision: Decision | None, value: bytes | None, reason: str, detail: str) -> None:
        """Dead letter, and an answer if anybody can be answered."""
        effects = _Effects(answers=[])
        if decision is None:
            effects.delivered.append(place)
        else:
            self._answer_one(effects, place, decision)
        where = (self._requests_topic, place.partition, place.offset)
        letter = letter_of(where, value, place.append_time_ms, reason, detail)
        self._dead_letters.send(letter, lambda *ack: self._acked(effects, *ack))

    def tell(self, letter: DeadLetter) -> None:
        """A dead letter of what is no request."""
        self._dead_letters.send(letter, lambda *ack: self._acked(_Effects(), *ack))

    def flush(self, timeout_s: float) -> int:
        """Wait until all is delivered, answers that follow acks included; returns what is still on its way.

        Nothing is on its way once something can never be written: who waits for this would wait for ever.
        """
        end = time.monotonic() + timeout_s
        self._hand_over_waiting()
        while (left := self._num_left()) and self.failure is None:
            if time.monotonic() >= end:
                return left
            time.sleep(ROOM_S)
            self._hand_over_waiting()
        return 0

    def _num_left(self) -> int:
        return len(self._waiting) + len(self._journal) + len(self._unhurried) + len(self._answers)

    def close(self, timeout_s: float) -> None:
        """Deliver what can be delivered in `timeout_s`; the rest is read again by whoever comes next."""
        self.flush(timeout_s)
        self._journal.close(0.2)
        self._unhurried.close(0.2)
        self._answers.close(0.2)

    def _acked(self, effects: _Effects, error: WriteError | None, _offset: int) -> None:
        """The journal record or dead letter of `effects` is in the log, or never will be."""
        if error is not None:
            self._fail(error)
            return
        with self._lock:
            effects.acked = True
            answers, finished = effects.answers, effects.delivered
            effects.delivered = []
        for place in finished:
            self._offsets.end(place.partition, place.offset)
        if answers:
            self._answer_all(effects, answers)

    def _answer_all(self, effects: _Effects, answers: list[_Answer]) -> None:
        reach("decide.before-answers")
        for answer in answers:
            self._answer(effects, answer)

    def _answer_one(self, effects: _Effects, place: Place, decision: Decision) -> None:
        partition = partition_of(decision.subject, self._num_partitions)
        payload = encoded_answer(decision, place.as_json, self._registry)
        self._answer(effects, (place, partition, decision.subject, payload))

    def _answer(self, effects: _Effects, answer: _Answer) -> None:
        place, partition, subject, payload = answer
        age_s = time.time() - place.append_time_ms / 1e3
        self._send(
            self._answers,
            self._decisions_topic,
            partition,
            payload,
            subject.encode(),
            lambda error, _: self._delivered(effects, place, error),
            lambda seconds: self._observe_latency_s(age_s + seconds),
        )

    def _delivered(self, effects: _Effects, place: Place, error: WriteError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        reach("decide.answered")
        with self._lock:
            if not effects.acked:
                effects.delivered.append(place)
                return
        self._offsets.end(place.partition, place.offset)

    def _send(
        self,
        output: Output,
        name: str,
        partition: int,
        payload: bytes,
        key: bytes | None,
        on_delivery: Callable[[WriteError | None, int], None],
        on_latency: Callable[[float], None] | None = None,
    ) -> None:
        """Hand over one record, waiting for room."""
        while self.failure is None:
            try:
                output.send(name, partition, payload, key, on_delivery, on_latency)
                return
            except BufferError:
                time.sleep(ROOM_S)
            except WriteError as error:
                self._fail(error)

    def _fail(self, error: WriteError) -> None:
        if self.failure is None:
            self.failure = error
            log.error("%s; this worker ends, its requests are read again from the committed offsets", error)
