"""Decide: a micro-batch of requests becomes answers and journal blocks.

Pure: reads no clock, no broker, no random state. The shell (`streams.decider`) says what time it is, which policy
serves and whether it is overloaded; the draw is a keyed hash of task and decision id. The same request under the same
policy gets the same answer, in any batch and on any worker (`learner.policy.serving_kernels`; of features with `log`
the last bit is libm's). What is logged is what was drawn from, exactly.

Theory of operation. Each readable request ends in exactly one of two ways:
    journaled       policy, no-snapshot, snapshot-refused, deadline, overload: one row of a DecisionBlock with the true
                    propensity of every candidate; learnt from like any other
    answered only   expired, too-large, invalid, unknown-task (`streams.fallback`); the last three are dead letters too
Rows of one batch are grouped by task and by whether the policy decides them; a group is encoded, scored and sampled in
one go, in order of journal partition, so that its blocks are slices.

Shape legend: N rows of a group, M candidates of all rows, K candidates of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np

from learner.policy import explore
from schemas.arrays import F64, I32, empty
from schemas.blocks import DecisionBlock
from schemas.decision_columns import PROPENSITY_ONE, DecisionColumns, FeatureColumns
from schemas.frozen import frozen
from schemas.keys import DRAW_ACTION, draw, partition_of
from schemas.records import Decision, DecisionRequest, Reason
from schemas.task import DEDUPE_MS_MIN, Namespace, Task, TaskTable
from streams.decision_blocks import Row, block_of, bytes_ceiling_of, bytes_max_of
from streams.fallback import Refusal, action_places, baseline_of, fallback, problem_of
from streams.features import Encoder
from streams.guardrails import mask
from streams.policy import Policy

DECISION_BYTES_MAX = 256 * 1024
"""One decision encoded (join.md rule 14): the join keeps its features in memory for a whole reward window."""

EXPIRY_SLACK_MS = 60_000
"""Requests older than D − this are not decided any more: no id comes back after its dedupe horizon (join.md)."""

_NO_VALUES = empty(np.float64, 0, 1)
_NO_BOUNDS = empty(np.float64, 0, 2)
_NO_BYTES = empty(np.uint8)
_NO_STEPS = empty(np.int32)
_NO_EPISODES = empty(np.uint64)

_ALLOWED = np.ones(4096, np.bool_)
"""Of a micro-batch as most are: never written to."""

_by_partition = attrgetter("journal_partition", "index")
Mask = explore.Mask


@frozen
class Asked:
    """A readable request and where it stood."""

    request: DecisionRequest
    partition: int
    """Of the requests topic."""
    offset: int
    append_time_ms: int
    """Broker's append time."""


@frozen
class Situation:
    """What the shell knows at the moment of deciding."""

    now_ms: int
    """Wall clock; compared with append times for deadlines and expiry only."""
    policy: Policy | None = None
    snapshot_refused: bool = False
    """The newest snapshot was refused and none serves."""
    overloaded: bool = False
    """More requests wait than can be scored in time."""


@frozen
class Unjournaled:
    """A request that is answered but leaves no decision in the log."""

    index: int
    """Place in the batch."""
    decision: Decision
    refusal: Refusal


@frozen
class Group:
    """Decisions of one task, all by one policy version or all without one."""

    task: Task
    version: int
    """Snapshot that decided, 0 for none."""
    rows: list[Row]
    """In order of journal partition."""
    columns: DecisionColumns
    decisions: list[Decision]
    """Answer of each row."""


@frozen
class Decided:
    """Everything that follows from one batch: every request stands in exactly one of the two lists."""

    groups: list[Group]
    unjournaled: list[Unjournaled]


class Decide:
    """Decides for one namespace. Its only state is a cache: one encoder per task definition."""

    def __init__(self, namespace: Namespace, table: TaskTable, encoded_size: Callable[[DecisionBlock], int]) -> None:
        """`encoded_size`: exact bytes of a block; asked only about decisions whose upper bound is over the limit."""
        self._table = table
        self._num_partitions = namespace.partitions
        self._draw_key = bytes.fromhex(namespace.draw_key)
        self._encoded_size = encoded_size
        self._encoders: dict[bytes, Encoder] = {}

    def batch(self, batch: Sequence[Asked], situation: Situation) -> Decided:
        """Answer every request of the batch. Raises nothing for bad requests: that is what reasons are for."""
        decided = Decided([], [])
        members: dict[tuple[bytes, bool], list[Row]] = {}
        for index, asked in enumerate(batch):
            request = asked.request
            task = self._table.named(request.task)
            if task is None:
                refusal = Refusal(Reason.UNKNOWN_TASK, "unknown-task", f"no task {request.task!r} is applied")
                self._refuse(decided, index, request, None, refusal, situation)
                continue
            expired = self._is_expired(situation.now_ms - asked.append_time_ms)
            problem = Refusal(Reason.EXPIRED) if expired else problem_of(request, task)
            if problem is not None:
                self._refuse(decided, index, request, task, problem, situation)
                continue
            reason = _reason(asked, task, situation)
            partition = partition_of(request.subject, self._num_partitions)
            row = Row(index, request, asked.partition, asked.offset, partition, reason)
            members.setdefault((task.fingerprint, reason is Reason.POLICY), []).append(row)
        for (fingerprint, by_policy), rows in members.items():
            if len(rows) > 1:
                rows.sort(key=_by_partition)
            policy = situation.policy if by_policy else None
            self._decide(decided, self._table[fingerprint], policy, rows, situation)
        return decided

    def _is_expired(self, age_ms: int) -> bool:
        """Whether a request is about to leave the dedupe horizon; the horizon is looked up for old ones only."""
        return age_ms > DEDUPE_MS_MIN - EXPIRY_SLACK_MS and age_ms > self._table.dedupe_ms - EXPIRY_SLACK_MS

    def _decide(
        self, decided: Decided, task: Task, policy: Policy | None, rows: list[Row], situation: Situation
    ) -> None:
        """Put the decisions of one group into `decided`; rows that prove undecidable are refused, the rest goes on."""
        encoder = self._encoders.get(task.fingerprint)
        if encoder is None:
            encoder = self._encoders[task.fingerprint] = Encoder(task)
        encoded = encoder.encode([row.request for row in rows])
        for error in encoded.errors:
            row = rows[error.index]
            refusal = Refusal(Reason.INVALID, error.reason, error.detail)
            self._refuse(decided, row.index, row.request, task, refusal, situation)
        if encoded.errors:
            rows = [rows[place] for place in encoded.rows.tolist()]
        if not rows:
            return
        features = encoded.columns
        allowed, is_restricted = _allowed(task, rows, features)
        problems = _all_masked(features.num_candidates, allowed) if is_restricted else {}
        if not problems:
            propensities, problems = self._propensities(task, policy, rows, features, allowed)
        if not problems:
            group = self._sampled(task, policy, rows, features, propensities, situation.now_ms)
            problems = self._too_large(group)
            if not problems:
                decided.groups.append(group)
                return
        for place, refusal in problems.items():
            self._refuse(decided, rows[place].index, rows[place].request, task, refusal, situation)
        rest = [row for place, row in enumerate(rows) if place not in problems]
        if rest:
            self._decide(decided, task, policy, rest, situation)

    def _propensities(
        self, task: Task, policy: Policy | None, rows: list[Row], features: FeatureColumns, allowed: Mask
    ) -> tuple[I32, dict[int, Refusal]]:
        """Integers (M,) of the policy's exploration, or of the baseline mix without one; or why some row has none."""
        num_candidates = features.num_candidates
        if policy is None:
            baselines = np.array([baseline_of(row.request, task) for row in rows], np.int32)
            return explore.baseline_integers(num_candidates, allowed, baselines, task.epsilon), {}
        loaded = policy.tasks[task.fingerprint]
        scores = loaded.forward.scores(features)
        try:
            return loaded.explorer.integers(scores, num_candidates, allowed), {}
        except ValueError:
            problems = _not_finite(num_candidates, scores)
            if not problems:
                raise
            return empty(np.int32), problems

    def _sampled(
        self,
        task: Task,
        policy: Policy | None,
        rows: list[Row],
        features: FeatureColumns,
        propensities: I32,
        now_ms: int,
    ) -> Group:
        """Draw, choose, and write down what was chosen with which probability."""
        version = 0 if policy is None else policy.version
        draws = [draw(self._draw_key, DRAW_ACTION, 0, task.name, row.request.decision_id) for row in rows]
        chosen = explore.choose(propensities, features.num_candidates, np.array(draws, np.int32))
        columns = DecisionColumns(
            features=features,
            catalogue=task.catalogue,
            chosen=chosen.reshape(-1, 1),
            propensities=propensities,
            reasons=np.frombuffer(bytes([row.reason for row in rows]), np.uint8),
            values=_NO_VALUES,
            bounds=_NO_BOUNDS,
            terminal=_NO_BYTES,
            steps=_NO_STEPS,
            episode_keys=_NO_EPISODES,
        )
        decisions = []
        start = 0
        for row, size, index in zip(rows, features.num_candidates.tolist(), chosen.tolist(), strict=True):
            offered = row.request.candidates
            action_id = task.actions[index] if task.actions or offered is None else offered[index].action_id
            propensity = int(propensities[start + index]) / PROPENSITY_ONE
            decisions.append(_answer(row, task, action_id, propensity, version, now_ms))
            start += size
        return Group(task, version, rows, columns, decisions)

    def _too_large(self, group: Group) -> dict[int, Refusal]:
        """Rows whose decision would be over the limit; one sum over the group, or over its halves, settles most."""
        problems = {}
        spans = [range(len(group.rows))]
        while spans:
            span = spans.pop()
            is_whole = len(span) == len(group.rows)
            columns = group.columns if is_whole else group.columns.rows(span.start, span.stop)
            if bytes_ceiling_of(columns) <= DECISION_BYTES_MAX:
                continue
            if len(span) > 1:
                middle = len(span) // 2
                spans += (span[middle:], span[:middle])
                continue
            row = group.rows[span.start]
            if bytes_max_of([row], columns) <= DECISION_BYTES_MAX:
                continue
            size = self._encoded_size(block_of(group.task, group.version, [row], columns, ""))
            if size > DECISION_BYTES_MAX:
                detail = f"{size} bytes encoded, at most {DECISION_BYTES_MAX}: fewer candidates, or fewer features each"
                problems[span.start] = Refusal(Reason.TOO_LARGE, "too-large", detail)
        return problems

    def _refuse(
        self,
        decided: Decided,
        index: int,
        request: DecisionRequest,
        task: Task | None,
        refusal: Refusal,
        situation: Situation,
    ) -> None:
        decision = fallback(request, task, refusal.reason, self._draw_key, situation.now_ms)
        decided.unjournaled.append(Unjournaled(index, decision, refusal))


def _answer(row: Row, task: Task, action_id: str, propensity: float, version: int, now_ms: int) -> Decision:
    return Decision(
        decision_id=row.request.decision_id,
        task=task.name,
        subject=row.request.subject,
        actions=[action_id],
        propensities=[propensity],
        snapshot_version=version,
        reason=row.reason.label,
        time_ms=now_ms,
    )


def _reason(asked: Asked, task: Task, situation: Situation) -> Reason:
    """How this request is decided; anything but POLICY means the baseline mix."""
    deadline_ms = asked.request.deadline_ms
    if deadline_ms is not None and situation.now_ms - asked.append_time_ms > deadline_ms:
        return Reason.DEADLINE
    if situation.overloaded:
        return Reason.OVERLOAD
    if situation.policy is not None and situation.policy.serves(task):
        return Reason.POLICY
    return Reason.SNAPSHOT_REFUSED if situation.snapshot_refused else Reason.NO_SNAPSHOT


def _allowed(task: Task, rows: list[Row], features: FeatureColumns) -> tuple[Mask, bool]:
    """(M,) what the guardrails leave, and of a declared catalogue only what the request offers; whether any is masked.

    Whether any *may* be masked, to be exact: nearly every request has no such rule, and then nothing is computed.
    """
    size = len(task.actions)
    is_part = size > 0 and any(row.request.candidates is not None for row in rows)
    if not task.guardrails and not is_part:
        num = size * len(rows) if size else len(features.action_keys)
        return _ALLOWED[:num] if num <= len(_ALLOWED) else np.ones(num, np.bool_), False
    allowed = mask(task, [row.request for row in rows], features)
    if is_part:
        places = action_places(task)
        for place, row in enumerate(rows):
            if row.request.candidates is not None:
                offered = np.zeros(size, np.bool_)
                offered[[places[candidate.action_id] for candidate in row.request.candidates]] = True
                allowed[place * size : (place + 1) * size] &= offered
    return allowed, True


def _all_masked(num_candidates: I32, allowed: Mask) -> dict[int, Refusal]:
    """Rows in which nothing is left to choose."""
    left = np.logical_or.reduceat(allowed, np.cumsum(num_candidates) - num_candidates)
    refusal = Refusal(Reason.INVALID, "all-masked", "the guardrails leave no candidate")
    return {int(place): refusal for place in np.flatnonzero(~left)}


def _not_finite(num_candidates: I32, scores: F64) -> dict[int, Refusal]:
    """Rows whose scores are no numbers: features so large that the forward pass overflows."""
    fine = np.logical_and.reduceat(np.isfinite(scores), np.cumsum(num_candidates) - num_candidates)
    refusal = Refusal(Reason.INVALID, "not-finite", "the features drive the policy's score out of range")
    return {int(place): refusal for place in np.flatnonzero(~fine)}
