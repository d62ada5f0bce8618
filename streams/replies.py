"""From decided rows to the broker: journal, answers, dead letters, and which requests are finished.

A shell around two idempotent producers. They are two because a broker serves one request of a connection at a time: an
answer must not wait behind the journal record of the next one.

    journal-first   block → ack → answers → delivered: finished
    immediate       answers, then block; finished when both are acked
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

from schemas.blocks import DecisionBlock
from schemas.codec import encode
from schemas.keys import partition_of
from schemas.records import Decision
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.topics import topic
from streams.dead_letters import DeadLetters
from streams.journal import Output, WriteError
from streams.offsets import Offsets

log = logging.getLogger(__name__)

ROOM_S = 0.001
"""Wait for room in a full producer queue: only while the broker is gone."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stood."""

    partition: int
    offset: int
    append_time_ms: int
    as_json: bool
    """It came as JSON, so its answer is JSON."""


@dataclass(slots=True)
class _Effects:
    """What must still be acked before the requests of one block are finished."""

    answers: list[tuple[Place, str, bytes]] | None = None
    """(request, subject, encoded answer) of each row, to be sent at the ack; None until they are encoded."""
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
        self._answers = Output(settings, linger_ms=0, compression="none")
        self._dead_letters = make_dead_letters(self._journal)
        self._lock = threading.Lock()
        self.failure: WriteError | None = None
        """Set when something can never be written: the process must end and begin anew from the committed offsets."""

    def journaled(
        self,
        partition: int,
        block: DecisionBlock,
        decisions: Sequence[Decision],
        places: Sequence[Place],
        immediate: bool,
    ) -> None:
        """Write a block and answer its rows, in the order that the task asks for."""
        effects = _Effects()
        if immediate:
            for place, decision in zip(places, decisions, strict=True):
                self._answer(effects, place, decision.subject, encoded_answer(decision, place.as_json, self._registry))
            effects.answers = []
        payload = encode(block, self._registry)
        self._send(
            self._journal, self._journal_topic, partition, payload, None, lambda *ack: self._acked(effects, *ack)
        )
        if not immediate:  # encoded while the journal record is on its way
            answers = [
                (place, decision.subject, encoded_answer(decision, place.as_json, self._registry))
                for place, decision in zip(places, decisions, strict=True)
            ]
            with self._lock:
                effects.answers = answers
                acked = effects.acked
            if acked:
                self._answer_all(effects, answers)

    def unjournaled(self, place: Place, decision: Decision) -> None:
        """Answer without a journal record and without a dead letter."""
        payload = encoded_answer(decision, place.as_json, self._registry)
        self._answer(_Effects(answers=[], acked=True), place, decision.subject, payload)

    def refused(self, place: Place, decision: Decision | None, value: bytes | None, reason: str, detail: str) -> None:
        """Dead letter, and an answer if anybody can be answered."""
        effects = _Effects(answers=[])
        if decision is None:
            effects.delivered.append(place)
        else:
            payload = encoded_answer(decision, place.as_json, self._registry)
            self._answer(effects, place, decision.subject, payload)
        where = (self._requests_topic, place.partition, place.offset)
        self._dead_letters.send(
            where, value, place.append_time_ms, reason, detail, lambda *ack: self._acked(effects, *ack)
        )

    def flush(self, timeout_s: float) -> int:
        """Wait until all is delivered, answers that follow acks included; returns what is still on its way."""
        end = time.monotonic() + timeout_s
        left = len(self._journal) + len(self._answers)
        while left and time.monotonic() < end and self.failure is None:
            time.sleep(ROOM_S)
            left = len(self._journal) + len(self._answers)
        return left

    def close(self, timeout_s: float) -> None:
        """Deliver what can be delivered in `timeout_s`; the rest is read again by whoever comes next."""
        self.flush(timeout_s)
        self._journal.close(0.2)
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

    def _answer_all(self, effects: _Effects, answers: list[tuple[Place, str, bytes]]) -> None:
        for place, subject, payload in answers:
            self._answer(effects, place, subject, payload)

    def _answer(self, effects: _Effects, place: Place, subject: str, payload: bytes) -> None:
        partition = partition_of(subject, self._num_partitions)
        self._send(
            self._answers,
            self._decisions_topic,
            partition,
            payload,
            subject.encode(),
            lambda error, _: self._delivered(effects, place, error),
        )

    def _delivered(self, effects: _Effects, place: Place, error: WriteError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        self._observe_latency_s(time.time() - place.append_time_ms / 1e3)
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
    ) -> None:
        """Hand over one record, waiting for room."""
        while self.failure is None:
            try:
                output.send(name, partition, payload, key, on_delivery)
                return
            except BufferError:
                time.sleep(ROOM_S)
            except WriteError as error:
                self._fail(error)

    def _fail(self, error: WriteError) -> None:
        if self.failure is None:
            self.failure = error
            log.error("%s; this worker ends, its requests are read again from the committed offsets", error)
