"""Send one request or one outcome and wait for what becomes of it: for people at a shell, not for shops."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeGuard

import numpy as np
from confluent_kafka import Message, Producer, TopicPartition

from deploy import reading
from deploy.outcome_fate import why_nothing
from schemas.blocks import OutcomeBlock, TransitionBlock
from schemas.codec import BadRecord, decode_outcome, decode_request
from schemas.errors import UserError
from schemas.keys import decision_key
from schemas.records import DeadLetter, Decision, DecisionBucket, Reason
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

REFUSED = frozenset(reason.label for reason in (Reason.INVALID, Reason.UNKNOWN_TASK, Reason.TOO_LARGE))
"""Of a request with such an answer there is a dead letter, which says why."""
CORRECT_IT = "correct it; `headrace lint` shows how it is read"
PAIR_S = 3.0
"""Answer and dead letter are written apart, and either may be read first: how long the other one is waited for."""
FOLLOW_WINDOW_S_MAX = 60.0
"""`tell` waits for the reward only when the window ends soon."""


class Tail:
    """Reads some topics from their present ends, so that nothing sent afterwards is missed."""

    def __init__(self, settings: CommonSettings, names: list[str]) -> None:
        self._reader = reading.consumer(settings)
        places = []
        for name in names:
            partitions = reading.partitions_of(self._reader, name, settings)
            for partition, (_, end) in reading.bounds(self._reader, name, partitions).items():
                places.append(TopicPartition(name, partition, end))
        self._reader.assign(places)
        self._end_s = 0.0

    def entries(self, timeout_s: float) -> Iterator[reading.Entry]:
        """Messages as they come, until the time is up."""
        self._end_s = time.monotonic() + timeout_s
        while (left := self._end_s - time.monotonic()) > 0:
            message = self._reader.poll(min(left, 0.1))
            if message is not None and message.error() is None:
                yield reading.entry_of(message)

    def hurry(self, timeout_s: float) -> None:
        """From now on, `entries` waits so long at most."""
        self._end_s = min(self._end_s, time.monotonic() + timeout_s)

    def close(self) -> None:
        """Give the connection back."""
        self._reader.close()


def ask(settings: CommonSettings, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send `request` (fields of DecisionRequest; `decision_id` and `subject` may be left out), wait for its decision.

    Of a request that is refused, `refused` says why (None else): it is answered all the same. Raises `UserError` when
    nothing answers in time, or only a dead letter comes.
    """
    registry = open_registry(settings.schema_registry_url)
    identity = uuid.uuid4().hex[:12]
    request = {"decision_id": f"ask-{identity}", "subject": f"shell-{identity}", **request}
    value = _checked(request, lambda payload: decode_request(payload, registry), "request")
    names = [topic(settings.namespace, name) for name in ("decisions", "dead-letters")]
    tail = Tail(settings, names)
    try:
        sent = _send(settings, topic(settings.namespace, "requests"), str(request["subject"]), value)
        answer: dict[str, Any] | None = None
        letter: DeadLetter | None = None
        for entry in tail.entries(timeout_s):
            found = _decoded(entry, registry)
            if isinstance(found, Decision) and found.decision_id == request["decision_id"]:
                answer = {**asdict(found), "token": found.token.hex(), "answered_in_ms": entry.time_ms - sent.time_ms}
                tail.hurry(PAIR_S)
            elif _is_letter_of(found, sent):
                letter = found
                tail.hurry(PAIR_S)
            if answer is not None and (letter is not None or answer["reason"] not in REFUSED):
                break
    finally:
        tail.close()
    if answer is not None:
        return {**answer, "refused": _refusal(answer["reason"], letter)}
    if letter is not None:
        raise UserError(f"refused ({letter.reason}): {letter.detail}", CORRECT_IT)
    raise UserError(
        f"no decision within {timeout_s:g} s for the request at {sent.where}",
        "start a worker: `headrace worker decide` (or `headrace up`); `headrace status` shows who runs",
    )


def tell(settings: CommonSettings, outcome: dict[str, Any], timeout_s: float, window_s: float) -> dict[str, Any]:
    """Send `outcome` (fields of Outcome), wait until it stands in the journal and, for a short window, for the reward.

    `note` says why there is no transition, as far as the log tells (None where there is one). Without `subject` the
    decision's is looked up. Raises `UserError` when the outcome is refused, its decision is not found, or nothing takes
    it in time.
    """
    registry = open_registry(settings.schema_registry_url)
    if not outcome.get("subject"):
        outcome = {**outcome, "subject": subject_of(settings, registry, str(outcome.get("decision_id", "")))}
    value = _checked(outcome, lambda payload: decode_outcome(payload, registry), "outcome")
    names = [topic(settings.namespace, name) for name in ("journal", "transitions", "dead-letters")]
    tail = Tail(settings, names)
    told: dict[str, Any] = {"outcome": outcome, "journaled": None, "transition": None, "note": None}
    follows = bool(outcome.get("decision_id")) and 0 < window_s <= FOLLOW_WINDOW_S_MAX
    try:
        sent = _send(settings, topic(settings.namespace, "outcomes"), str(outcome["subject"]), value)
        for entry in tail.entries(timeout_s + (window_s if follows else 0)):
            found = _decoded(entry, registry)
            if _is_letter_of(found, sent):
                raise UserError(f"refused ({found.reason}): {found.detail}", CORRECT_IT)
            if isinstance(found, OutcomeBlock) and _holds(found, sent):
                told["journaled"] = entry.where
                if outcome.get("decision_id"):
                    told["note"] = why_nothing(settings, registry, outcome, entry.time_ms)
            if isinstance(found, TransitionBlock) and told["transition"] is None:
                told["transition"] = _transition(found, str(outcome.get("decision_id")))
            if told["journaled"] and (told["transition"] or told["note"] or not follows):
                break
    finally:
        tail.close()
    if told["journaled"]:
        if told["transition"] is None and told["note"] is None:
            told["note"] = _still_open(outcome, follows)
        return told
    raise UserError(
        f"the outcome at {sent.where} was not taken up within {timeout_s:g} s",
        "start a worker: `headrace worker ingest join` (or `headrace up`); `headrace status` shows who runs",
    )


def _still_open(outcome: dict[str, Any], follows: bool) -> str:
    """Why there is no transition of an outcome that may count."""
    if not outcome.get("decision_id"):
        return "attributed by subject, to the latest open decision that counts its type; `headrace status` counts both"
    shown = f"`headrace explain {outcome['decision_id']}` shows the reward"
    if follows:
        return f"in time, but no transition came: see `headrace status` whether join keeps up; then {shown}"
    return f"in time; its reward window is still open. Once it has ended, {shown}"


def subject_of(settings: CommonSettings, registry: Registry, decision_id: str) -> str:
    """The subject of a decision in the `decisions` topic. Raises `UserError` when it is not there."""
    if decision_id:
        for entry in reading.read_all(settings, topic(settings.namespace, "decisions")):
            found = _decoded(entry, registry)
            if isinstance(found, Decision) and found.decision_id == decision_id:
                return found.subject
    raise UserError(
        f"no decision {decision_id!r} in {topic(settings.namespace, 'decisions')}, and no --subject",
        "name a decision that was answered, or the subject: it must equal the decision's",
    )


def _checked(fields: dict[str, Any], read: Callable[[bytes], object], kind: str) -> bytes:
    """JSON of `fields`, refused here rather than in the dead letters when nobody could read it."""
    value = json.dumps(fields, ensure_ascii=False).encode()
    try:
        read(value)
    except BadRecord as error:
        raise UserError(
            f"the {kind} is malformed ({error.reason}): {error.detail}", "correct it and send it again"
        ) from error
    return value


def _send(settings: CommonSettings, name: str, subject: str, value: bytes) -> reading.Entry:
    """Write one message and wait for its ack; where it stands."""
    written: list[Message] = []
    errors: list[str] = []

    def delivered(error: object, message: Message) -> None:
        (errors if error else written).append(str(error) if error else message)  # type: ignore[arg-type]  # one list each

    producer = Producer(settings.librdkafka(**{"acks": "all", "linger.ms": 0, "message.timeout.ms": 10_000}))
    producer.produce(name, value, subject.encode(), on_delivery=delivered)
    producer.flush(11)
    if not written:
        raise UserError(
            f"{name} did not take the message: {errors[0] if errors else 'no answer from the broker'}",
            "see whether the broker is healthy (headrace broker status) and the topics stand (headrace topics check)",
        )
    return reading.entry_of(written[0])


def _decoded(entry: reading.Entry, registry: Registry) -> object:
    """The record, or None when it is not ours to read."""
    try:
        if entry.topic.endswith(".decisions"):
            return reading.decision_of(entry, registry)
        return reading.record_of(entry, registry)
    except BadRecord:
        return None


def _is_letter_of(found: object, sent: reading.Entry) -> TypeGuard[DeadLetter]:
    """Whether `found` says that the message we sent was refused."""
    place = (sent.topic, sent.partition, sent.offset)
    return isinstance(found, DeadLetter) and (found.topic, found.partition, found.offset) == place


def _refusal(reason: str, letter: DeadLetter | None) -> str | None:
    """Why a request was refused, in a sentence; None when it was not."""
    if letter is not None:
        return f"{letter.reason}: {letter.detail}"
    return f"{reason}: its dead letter has not come within {PAIR_S:g} s" if reason in REFUSED else None


def _holds(block: OutcomeBlock, sent: reading.Entry) -> bool:
    """Whether the block holds the outcome that we sent."""
    if (block.source_topic, block.source_partition) != (sent.topic, sent.partition):
        return False
    return bool((block.source_offsets == sent.offset).any())


def _transition(block: TransitionBlock, decision_id: str) -> dict[str, Any] | None:
    """The row of a decision, for people."""
    key = np.asarray(decision_key(decision_id), np.uint64)
    rows = np.flatnonzero((block.decision_keys == key).all(axis=1))
    if not len(rows):
        return None
    row = int(rows[0])
    return {
        "bucket": DecisionBucket(int(block.buckets[row])).label,
        "reward": round(float(block.rewards[row, 0]), 6),
        "outcomes": int(block.num_outcomes[row]),
        "snapshot_version": int(block.snapshot_versions[row]),
        "closed_at_ms": int(block.closed_at_ms[row]),
    }
