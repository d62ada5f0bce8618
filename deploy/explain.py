"""Why one decision came out as it did, and what became of it: lineage from the records of the log alone.

Pure: `deploy.explain_evidence` finds the records, this file recomputes what can be recomputed and says what agrees.
Nothing logged is taken on trust where it follows from something else that was logged: the draw comes from the key and
the ids, the choice from the draw and the integers, the scores from the snapshot's own bytes, the outcomes' buckets from
the journal by the audit's reading of the rules.

Exact: draw and choice. Within a tolerance: scores (`deploy.explain_scores`).

Shape legend: K candidates of the decision, E experts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.audit_records import Decided, Happened
from deploy.audit_rules import bucket_of
from deploy.explain_parts import (
    CandidateShown,
    DrawShown,
    OutcomeShown,
    RequestShown,
    RowShown,
    ScoresShown,
    SnapshotShown,
    TrainedShown,
)
from deploy.explain_records import Evidence
from deploy.explain_scores import scores_of
from learner.policy import explore
from schemas.arrays import F64, I32
from schemas.decision_columns import PROPENSITY_ONE, FeatureColumns
from schemas.frozen import names_of
from schemas.keys import DRAW_ACTION, draw
from streams.features import Encoder


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision from request to weights. Plain values: `as_json` is what ``--json`` prints."""

    decision_id: str
    task: str
    fingerprint: str
    subject: str
    reason: str
    snapshot_version: int
    journal: str
    """topic/partition/offset row r of the decision."""
    position: int
    time_ms: int
    """T at the decision: log time."""
    closes_at_ms: int
    duplicate_of: int | None
    """Position of the decision that this one repeats."""
    request: RequestShown
    context: dict[str, float]
    """Dense context features as encoded."""
    context_tokens: list[tuple[int, float]]
    """(hashed id, raw value); ids of text have `schemas.decision_columns.TEXT_TOKEN` set."""
    candidates: list[CandidateShown]
    draws: list[DrawShown]
    """Of every slot."""
    snapshot: SnapshotShown | None
    scores: ScoresShown
    outcomes: list[OutcomeShown]
    bucket: str
    """What the rules make of the decision now; "open" until its window ends."""
    transition: RowShown | None
    trained: TrainedShown | None
    faults: list[str]
    """What does not agree; empty is the only good answer."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def explain(evidence: Evidence) -> Explanation:
    """Everything about one decision. Raises nothing for records that contradict each other: see `faults`."""
    logged, task, block = evidence.logged, evidence.task, evidence.logged.block
    features = block.columns.rows(logged.row, logged.row + 1).features
    scores, by_expert, told = scores_of(evidence, features)
    draws = _draws(evidence)
    decided = next((each for each in evidence.judged.decided if each.position == logged.position), None)
    time_ms = decided.time_ms if decided else logged.time_ms
    closes_at_ms = time_ms + task.reward.window_ms
    bucket = _bucket(decided, evidence)
    explanation = Explanation(
        decision_id=evidence.decision_id,
        task=task.name,
        fingerprint=task.fingerprint.hex(),
        subject=block.subjects[logged.row],
        reason=logged.reason.label,
        snapshot_version=block.snapshot_version,
        journal=f"{logged.topic}/{logged.partition}/{logged.offset} row {logged.row}",
        position=logged.position,
        time_ms=time_ms,
        closes_at_ms=closes_at_ms,
        duplicate_of=decided.head.position if decided and decided.head else None,
        request=_request(evidence, features),
        context=dict(zip(task.context.columns(), features.context[0].tolist(), strict=True)),
        context_tokens=_tokens(features.context_tokens, features.context_token_values),
        candidates=_candidates(evidence, features, scores, by_expert),
        draws=draws,
        snapshot=evidence.snapshot,
        scores=told,
        outcomes=_outcomes(decided, evidence),
        bucket=bucket,
        transition=evidence.accepted,
        trained=evidence.trained,
        faults=[],
    )
    explanation.faults.extend(_faults(explanation, decided))
    return explanation


def _request(evidence: Evidence, features: FeatureColumns) -> RequestShown:
    """The request, and whether encoding it again gives what was logged."""
    request = evidence.request
    if request is None:
        return RequestShown(evidence.request_where, None, None, "")
    fields = asdict(request)
    again = Encoder(evidence.task).encode([request])
    if again.errors:
        return RequestShown(evidence.request_where, fields, False, again.errors[0].detail)
    names = [
        name
        for name in names_of(FeatureColumns)
        if not np.array_equal(getattr(again.columns, name), getattr(features, name))
    ]
    return RequestShown(evidence.request_where, fields, not names, ", ".join(names))


def _tokens(tokens: I32, values: npt.NDArray[Any]) -> list[tuple[int, float]]:
    return list(zip(tokens.tolist(), values.tolist(), strict=True))


def _candidates(
    evidence: Evidence, features: FeatureColumns, scores: F64 | None, by_expert: list[dict[str, float]]
) -> list[CandidateShown]:
    """All candidates with what was logged of them, and their scores where there are any."""
    task, logged = evidence.task, evidence.logged
    columns = logged.block.columns.rows(logged.row, logged.row + 1)
    size = int(features.num_candidates[0])
    action_ids = _action_ids(evidence, size)
    integers = columns.propensities.reshape(columns.num_slots, size)
    chosen = columns.chosen[0].tolist()
    side = features if task.catalogue_features is None else task.catalogue_features
    ends = np.cumsum(side.action_token_counts).tolist()
    shown = []
    for place, action_id in enumerate(action_ids):
        has_tokens = place < len(ends)
        span = slice(ends[place] - int(side.action_token_counts[place]), ends[place]) if has_tokens else slice(0, 0)
        each = integers[:, place].tolist()
        shown.append(
            CandidateShown(
                action_id=action_id,
                propensities=each,
                probabilities=[value / PROPENSITY_ONE for value in each],
                is_allowed=each[0] > 0,
                chosen_in=[slot for slot, index in enumerate(chosen) if index == place],
                features=dict(zip(task.action.columns(), side.actions[place].tolist(), strict=False)),
                tokens=_tokens(side.action_tokens[span], side.action_token_values[span]),
                score=None if scores is None else float(scores[place]),
                by_expert=by_expert[place] if by_expert else {},
            )
        )
    return shown


def _action_ids(evidence: Evidence, size: int) -> list[str]:
    """Ids of the row's candidates: the catalogue's, or those that came with the request."""
    block, row = evidence.logged.block, evidence.logged.row
    if evidence.task.actions:
        return list(evidence.task.actions)
    first = int(block.columns.features.num_candidates[:row].sum())
    return block.action_ids.slice(first, first + size).tolist()


def _draws(evidence: Evidence) -> list[DrawShown]:
    """The random numbers once more, and what they choose among the logged integers."""
    logged, task = evidence.logged, evidence.task
    columns = logged.block.columns.rows(logged.row, logged.row + 1)
    size, shown = columns.features.num_candidates, []
    for slot, integers in enumerate(columns.propensities.reshape(columns.num_slots, int(size[0]))):
        number = draw(evidence.draw_key, DRAW_ACTION, slot, task.name, evidence.decision_id)
        again = int(explore.choose(np.ascontiguousarray(integers), size, np.array([number], np.int32))[0])
        logged_index = int(columns.chosen[0, slot])
        total = int(integers.astype(np.int64).sum())
        shown.append(DrawShown(slot, number, again, logged_index, again == logged_index, total))
    return shown


def _bucket(decided: Decided | None, evidence: Evidence) -> str:
    """By the journal; "open" while log time has not passed the window's end."""
    if decided is None:
        return "unknown"
    return bucket_of(decided).label if decided.closed_at_ms < evidence.judged.time_ms else "open"


def _outcomes(decided: Decided | None, evidence: Evidence) -> list[OutcomeShown]:
    """Outcomes that counted for the decision, named it, or came from its subject in its time."""
    if decided is None:
        return []
    used = {happened.position: slots for happened, slots in decided.used}
    shown = []
    for happened in evidence.judged.happened:
        if happened.position not in used and not _concerns(happened, decided):
            continue
        block = evidence.outcome_blocks[happened.position >> 16]
        row = happened.position & 0xFFFF
        shown.append(
            OutcomeShown(
                outcome_id=block.outcome_ids[row] if len(block.outcome_ids) else "",
                type=happened.type,
                value=happened.value,
                source=f"{block.source_topic}/{block.source_partition}/{int(block.source_offsets[row])}",
                position=happened.position,
                time_ms=happened.time_ms,
                bucket=happened.bucket,
                counts_here=happened.position in used,
                slots=list(used.get(happened.position, ())),
            )
        )
    return shown


def _concerns(happened: Happened, decided: Decided) -> bool:
    """Whether the outcome could be thought to belong to the decision."""
    if happened.decision != (0, 0):
        return happened.decision == decided.key
    after_ms = happened.time_ms - decided.time_ms
    reward = decided.task.reward
    near = -reward.backward_ms <= after_ms <= 2 * reward.window_ms
    return near and happened.subject == decided.subject and any(each.name == happened.type for each in reward.types)


def _faults(shown: Explanation, decided: Decided | None) -> list[str]:
    """Everything that contradicts itself."""
    faults = []
    for each in shown.draws:
        if each.total != PROPENSITY_ONE:
            faults.append(f"slot {each.slot}: the integers sum to {each.total}, expected {PROPENSITY_ONE}")
        if not each.agrees:
            faults.append(f"slot {each.slot}: the draw chooses candidate {each.chosen}, {each.logged} was logged")
    if shown.request.encodes_equal is False:
        faults.append(f"the request encodes to other features than were logged: {shown.request.difference}")
    if shown.scores.state == "outside":
        faults.append(f"the logged integers do not follow from the policy: {shown.scores.detail}")
    if shown.snapshot is not None and shown.snapshot.signature == "wrong":
        faults.append(f"the signature of version {shown.snapshot.version} does not belong to the public key")
    if shown.snapshot is not None and shown.snapshot.other_sha256:
        faults.append(f"version {shown.snapshot.version} was published with other bytes too (equivocation)")
    row = shown.transition
    if row is not None and decided is not None and not row.is_cut:
        if row.bucket != shown.bucket and shown.bucket != "open":
            faults.append(f"the transition says {row.bucket}, the journal {shown.bucket}")
        if row.num_outcomes != len(decided.used):
            faults.append(f"the transition counts {row.num_outcomes} outcomes, the journal {len(decided.used)}")
    return faults
