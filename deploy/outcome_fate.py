"""Why an outcome that stands in the journal counts for nothing, as far as the log tells: for `headrace tell`.

Deliberate simplification: what two clocks a moment apart would tell otherwise, and copies, are the join's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.definitions import read_definitions
from deploy.explain_evidence import logged
from deploy.explain_records import Logged
from schemas.registry import Registry
from schemas.settings import CommonSettings
from schemas.task import Task
from schemas.topics import topic


def why_nothing(
    settings: CommonSettings, registry: Registry, outcome: Mapping[str, Any], journaled_ms: int
) -> str | None:
    """A sentence, or None when the outcome may count. `journaled_ms`: append time of its journal record.

    Reads the journal whole. Raises `UserError` when broker or topics are missing.
    """
    decision_id = str(outcome["decision_id"])
    found = logged(settings, registry, decision_id, None)
    if not found:
        return (
            f"no decision {decision_id!r} stands in {topic(settings.namespace, 'journal')}: the outcome counts for "
            "none (orphan). Answers with the reasons expired, too-large, invalid and unknown-task are never journaled"
        )
    table = read_definitions(settings, registry).table
    reasons = [_why_not_for(each, table.get(each.block.fingerprint), outcome, journaled_ms) for each in found]
    return None if None in reasons else reasons[-1]


def _why_not_for(decision: Logged, task: Task | None, outcome: Mapping[str, Any], journaled_ms: int) -> str | None:
    """Why it does not count for this decision, None where it may."""
    subject, name = str(decision.block.subjects[decision.row]), decision.block.task
    if subject != outcome["subject"]:
        return f"the decision is of subject {subject!r}, the outcome of {outcome['subject']!r}: it counts for none"
    if task is None:
        return None
    types = [kind.name for kind in task.reward.types]
    if outcome["type"] not in types:
        return f"the decision is of task {name}, which counts {', '.join(types)} and not {outcome['type']}"
    late_ms = journaled_ms - (decision.time_ms + task.reward.window_ms)
    if late_ms < 0:
        return None
    window_s = task.reward.window_ms / 1000
    return (
        f"the reward window of {window_s:g} s had closed {late_ms / 1000:.1f} s before: it is late, and changes nothing"
    )
