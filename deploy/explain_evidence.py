"""Find every record that a decision's lineage consists of: the shell around `deploy.explain`.

Reads the journal once for the id (a search in raw bytes: only messages that hold it are decoded), then short stretches
by time. What retention has taken is reported as gone, never guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploy import reading
from deploy.audit_rules import Judged, judge_records
from deploy.definitions import Definitions, read_definitions
from deploy.explain import Explanation, explain
from deploy.explain_parts import RowShown, TrainedShown
from deploy.explain_records import Evidence, Logged
from deploy.explain_snapshots import Snapshots
from schemas.blocks import FLAG_CUT, KIND_TRANSITION, DecisionBlock, OutcomeBlock, TransitionBlock
from schemas.chain import START, Accepted, ChainReader
from schemas.codec import BadRecord, decode, decode_request
from schemas.errors import UserError
from schemas.keys import partition_of
from schemas.records import DecisionBucket, DecisionRequest, Progress
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.topics import topic

CLOCK_SLACK_MS = 3_600_000
"""Append times of two partitions may lie so far apart: each is the clock of its own leader."""

LEARNT = (DecisionBucket.JOINED.label, DecisionBucket.DEFAULTED.label)
"""Rows of other buckets are read and counted, never learnt from (learning.md rule 7)."""


def explain_decision(
    settings: CommonSettings, decision_id: str, task: str | None = None, subject: str | None = None
) -> list[Explanation]:
    """Every decision of the journal with this id, oldest first; `subject` narrows the search to one partition.

    Raises `UserError` when the journal holds none, or broker or topics are missing.
    """
    registry = open_registry(settings.schema_registry_url)
    definitions = read_definitions(settings, registry)
    if definitions.namespace is None:
        raise UserError(f"nothing is applied to {settings.namespace}", "apply it with `headrace apply headrace.toml`")
    partitions = None if subject is None else [partition_of(subject, definitions.namespace.partitions)]
    found = [
        each for each in logged(settings, registry, decision_id, partitions) if task is None or each.block.task == task
    ]
    if not found:
        raise _not_found(settings, registry, decision_id, task, partitions)
    snapshots = Snapshots(settings, registry, definitions.namespace.partitions)
    return [explain(_evidence(settings, registry, definitions, snapshots, decision_id, each)) for each in found]


def logged(
    settings: CommonSettings, registry: Registry, decision_id: str, partitions: Sequence[int] | None
) -> list[Logged]:
    """Where the journal holds the id, in order of position per partition."""
    name, wanted = topic(settings.namespace, "journal"), decision_id.encode()
    found = []
    for entry in reading.read_all(settings, name, partitions):
        if wanted not in entry.value:
            continue
        block: object = None
        with contextlib.suppress(BadRecord):
            block = decode(entry.value, registry)
        if isinstance(block, DecisionBlock):
            rows = [row for row, each in enumerate(block.decision_ids.tolist()) if each == decision_id]
            found += [Logged(name, entry.partition, entry.offset, row, entry.time_ms, block) for row in rows]
    return sorted(found, key=lambda each: (each.partition, each.position))


def _not_found(
    settings: CommonSettings, registry: Registry, decision_id: str, task: str | None, partitions: Sequence[int] | None
) -> UserError:
    """Why there is nothing to explain: answered without being logged, or not there at all."""
    decisions = topic(settings.namespace, "decisions")
    for entry in reading.read_all(settings, decisions):
        if decision_id.encode() not in entry.value:
            continue
        with contextlib.suppress(BadRecord):
            answer = reading.decision_of(entry, registry)
            if answer.decision_id == decision_id and task in (None, answer.task):
                return UserError(
                    f"decision {decision_id!r} was answered ({entry.where}, reason {answer.reason}) but is not in "
                    f"{topic(settings.namespace, 'journal')}",
                    "answers with the reasons expired, too-large, invalid and unknown-task are never journaled, and "
                    f"nothing is learnt from them: see {topic(settings.namespace, 'dead-letters')}; for any other "
                    "reason the journal's retention has taken it",
                )
    where = "any partition" if partitions is None else f"partition {partitions[0]}, that of the subject given,"
    of_task = "" if task is None else f" of task {task}"
    return UserError(
        f"decision {decision_id!r}{of_task} does not stand in {where} of {topic(settings.namespace, 'journal')}",
        "check the id (that of the request, 1 to 64 bytes), --namespace, --task and --subject; decisions older than "
        "the journal's retention cannot be explained any more",
    )


def _evidence(
    settings: CommonSettings,
    registry: Registry,
    definitions: Definitions,
    snapshots: Snapshots,
    decision_id: str,
    logged: Logged,
) -> Evidence:
    task = definitions.table.get(logged.block.fingerprint)
    if task is None:
        raise UserError(
            f"decision {decision_id!r} was made under the definition {logged.block.fingerprint.hex()} of task "
            f"{logged.block.task}, which {topic(settings.namespace, 'tasks')} does not hold",
            "apply that definition again: `headrace apply headrace.toml` as it was then",
        )
    assert definitions.namespace is not None
    request, where = _request(settings, registry, logged)
    stretch = _stretch(settings, registry, definitions, logged)
    decided = next((each for each in stretch.judged.decided if each.position == logged.position), None)
    closes_ms = (decided.time_ms if decided else logged.time_ms) + task.reward.window_ms
    accepted = _accepted(settings, registry, logged, task.fingerprint)
    shown, weights, absent = snapshots.of_version(logged.block.snapshot_version, logged.time_ms, task.fingerprint)
    trained: TrainedShown | None = None
    if accepted is not None and accepted.bucket in LEARNT:
        trained = snapshots.first_trained(logged.partition, task.fingerprint, logged.position, closes_ms)
    return Evidence(
        decision_id=decision_id,
        logged=logged,
        task=task,
        draw_key=bytes.fromhex(definitions.namespace.draw_key),
        request=request,
        request_where=where,
        snapshot=shown,
        weights=weights,
        weights_absent=absent,
        judged=stretch.judged,
        outcome_blocks=stretch.outcomes,
        accepted=accepted,
        trained=trained,
    )


def _request(settings: CommonSettings, registry: Registry, logged: Logged) -> tuple[DecisionRequest | None, str]:
    """The request where the decision says it stood, None when it is gone."""
    block, row = logged.block, logged.row
    name, partition = block.request_topic, int(block.request_partitions[row])
    offset = int(block.request_offsets[row])
    where = f"{name}/{partition}/{offset}"
    for entry in reading.read_span(settings, name, partition, offset, offset + 1):
        with contextlib.suppress(BadRecord):
            return decode_request(entry.value, registry), where
    return None, where


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The journal around a decision, judged."""

    judged: Judged
    outcomes: dict[int, OutcomeBlock]


def _stretch(settings: CommonSettings, registry: Registry, definitions: Definitions, logged: Logged) -> _Stretch:
    """From L before the decision (nothing earlier bears on it, join.md) until nothing later can."""
    table, look_back_ms = definitions.table, definitions.look_back_ms
    first, _ = reading.span_of(settings, logged.topic, logged.partition)
    start = reading.offset_at(
        settings, logged.topic, logged.partition, logged.time_ms - look_back_ms - table.max_backward_ms
    )
    after_ms = 2 * table.max_window_ms + 2 * table.max_backward_ms + 1_000
    stop = reading.offset_at(settings, logged.topic, logged.partition, logged.time_ms + after_ms) + 1
    entries: list[tuple[int, int, object]] = []
    for entry in reading.read_span(settings, logged.topic, logged.partition, start, stop):
        block: object = None
        with contextlib.suppress(BadRecord):
            block = decode(entry.value, registry)
        entries.append((entry.offset, entry.time_ms, block))
    outcomes = {offset: block for offset, _, block in entries if isinstance(block, OutcomeBlock)}
    return _Stretch(judge_records(entries, table, from_start=start == first == 0), outcomes)


def _accepted(settings: CommonSettings, registry: Registry, logged: Logged, fingerprint: bytes) -> RowShown | None:
    """The row that every reader of the transitions accepts for the decision, None while there is none."""
    name = topic(settings.namespace, "transitions")
    first, end = reading.span_of(settings, name, logged.partition)
    start = max(first, reading.offset_at(settings, name, logged.partition, logged.time_ms - CLOCK_SLACK_MS))
    reader = ChainReader() if start == 0 else None
    waiting: list[tuple[int, TransitionBlock]] = []
    for offset, record in _records(settings, registry, name, logged.partition, start, end):
        if isinstance(record, Progress) and reader is None and record.transitions_offset >= start:
            reader = ChainReader()
            reader.adopt(record)
            waiting = [each for each in waiting if each[0] >= record.transitions_offset]
        if isinstance(record, TransitionBlock) and (record.fingerprint, record.kind) == (fingerprint, KIND_TRANSITION):
            waiting.append((offset, record))
        while reader is not None and waiting:
            row = _row(reader, *waiting.pop(0), logged.position)
            if row is not None:
                return _shown(name, logged.partition, *row)
    return None


def _records(
    settings: CommonSettings, registry: Registry, name: str, partition: int, start: int, stop: int
) -> Iterator[tuple[int, object]]:
    for entry in reading.read_span(settings, name, partition, start, stop):
        with contextlib.suppress(BadRecord):
            yield entry.offset, decode(entry.value, registry)


def _row(
    reader: ChainReader, offset: int, block: TransitionBlock, position: int
) -> tuple[int, int, TransitionBlock] | None:
    """(offset, row, block) when the block is accepted and the position is among its new rows."""
    before = reader.hwm.get((block.fingerprint, block.kind), START)
    verdict = reader.offer(block)
    if not isinstance(verdict, Accepted) or not before < position <= block.last:
        return None
    rows = (block.positions == position).nonzero()[0]
    return (offset, int(rows[0]), block) if len(rows) and int(rows[0]) >= verdict.start else None


def _shown(name: str, partition: int, offset: int, row: int, block: TransitionBlock) -> RowShown:
    return RowShown(
        where=f"{name}/{partition}/{offset} row {row}",
        offset=offset,
        bucket=DecisionBucket(int(block.buckets[row])).label,
        rewards=block.rewards[row].tolist(),
        num_outcomes=int(block.num_outcomes[row]),
        closed_at_ms=int(block.closed_at_ms[row]),
        is_cut=bool(int(block.flags[row]) & FLAG_CUT),
    )
