"""From what happened and what the log says to a verdict: one line per sentence of the promise."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from deploy.audit import AuditReport
from deploy.torture.drain import Drained
from deploy.torture.history import History
from deploy.torture.judge import EXAMPLES, Findings, Log
from deploy.torture.members import USER_ERROR
from deploy.torture.plan import Kind

LAG_S_MAX = 60.0
RECOVERY_S_MAX = 10.0
"""Beside the longest reward window, whose decisions are folded again."""


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the promise."""

    name: str
    holds: bool
    figure: str
    is_timing: bool = False
    """Seconds on this machine, which may have other things to do; the other checks hold on any."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a verdict is made of."""

    history: History
    shop: Mapping[str, Any]
    log: Log
    findings: Findings
    audit: AuditReport
    drained: Drained
    replayed: Mapping[str, Any]
    """What `headrace replay --json` said, or its error."""
    codes: Mapping[str, int]
    """Exit codes at the end."""
    window_s: float
    """Longest reward window."""


def checks(evidence: Evidence) -> list[Check]:
    """Every check."""
    found, log = evidence.findings, evidence.log
    return [
        _none("every request that the broker took is journaled", found.lost_requests, len(log.requests)),
        _none("and answered", found.unanswered, len(log.requests)),
        _none("every outcome that the broker took is in the journal", found.lost_outcomes, len(log.outcomes)),
        _none("nothing is there that was not sent", found.strangers, len(log.journaled) + len(log.copied)),
        _none("answers and journal agree on the action", found.disagreements, len(log.answers)),
        _none("dead letters are the spoilt messages, for their reasons", found.wrong_dead_letters, len(log.spoilt)),
        _none("every message of ours can be read", found.unreadable, len(log.journaled)),
        Check("the shop heard of everything", not _count(evidence, "unanswered", "not_delivered"), _shop(evidence)),
        _audit(evidence.audit),
        _replay(evidence),
        _drain(evidence.drained),
        _recovery(evidence),
        _ends(evidence),
    ]  # fmt: skip


def _none(name: str, examples: list[str], total: int) -> Check:
    shown = f"{len(examples)} of {total:,} are not: {', '.join(examples[:EXAMPLES])}" if examples else f"all {total:,}"
    return Check(name, not examples and total > 0, shown)


def _count(evidence: Evidence, *names: str) -> int:
    return sum(int(evidence.shop["counts"].get(name, 0)) for name in names)


def _shop(evidence: Evidence) -> str:
    answers, again = _count(evidence, "answers"), _count(evidence, "answers_again")
    return f"{answers:,} answers, {again:,} of them again, {_count(evidence, 'unanswered')} missing"


def _audit(audit: AuditReport) -> Check:
    numbers = ("num_missing", "num_accepted_twice")
    missing, twice = (audit.total(name) for name in numbers)
    figure = f"{audit.total('num_accepted'):,} rows accepted, {missing} lost, {twice} twice, both sums exact"
    reasons = "" if audit.is_clean else f"; {'; '.join(audit.reasons[:EXAMPLES])}"
    repeated = audit.total("num_repeated_rows")
    return Check(
        "audit", audit.is_clean, f"{figure if audit.is_clean else 'NOT clean'}, {repeated:,} repeated{reasons}"
    )


def _replay(evidence: Evidence) -> Check:
    done = evidence.replayed
    if not done.get("equal"):
        return Check("the learner's state is that of a replay without faults", False, json.dumps(done)[:400])
    figure = f"version {done['version']}, {done['num_records']:,} records from {done['start']}, sha256 and chain equal"
    return Check("the learner's state is that of a replay without faults", True, figure)


def _drain(drained: Drained) -> Check:
    name = f"every reader's lag went to 0 within {LAG_S_MAX:.0f} s of healing"
    if drained.seconds is None:
        return Check(name, False, "; ".join(drained.stuck))
    return Check(name, drained.seconds <= LAG_S_MAX, f"{drained.seconds:.1f} s", is_timing=True)


def _recovery(evidence: Evidence) -> Check:
    limit_s = RECOVERY_S_MAX + evidence.window_s
    hits = [hit for hit in evidence.history.hits if not hit.passed_over]
    times = sorted(hit.recovery_s for hit in hits if hit.recovery_s is not None)
    never = len(hits) - len(times)
    late = sum(each > limit_s for each in times)
    longest, middle = (times[-1], times[len(times) // 2]) if times else (0.0, 0.0)
    figure = f"median {middle:.1f} s, longest {longest:.1f} s, {late} later, {never} never"
    holds = not late and not never and bool(times)
    return Check(f"recovery within {limit_s:g} s of healing", holds, figure, is_timing=True)


def _ends(evidence: Evidence) -> Check:
    """No process ended by a mistake of its own, all ended in order when told to."""
    by_code = Counter(end.code for end in evidence.history.ends)
    wrong = [end for end in evidence.history.ends if end.code != USER_ERROR]
    last = {name: code for name, code in evidence.codes.items() if code}
    words = "; ".join(f"{end.name} {end.code}: {end.last_words}" for end in wrong[:EXAMPLES])
    figure = f"{by_code[USER_ERROR]} gave up with a sentence and were started again, {len(wrong)} otherwise {words}"
    if last:
        figure += f"; at the end {last}"
    return Check(
        "no process ended but by the fault or with a reason, and all end in order", not wrong and not last, figure
    )


def faults_table(history: History) -> list[dict[str, Any]]:
    """What was done to whom how often, and how long it took to come back."""
    rows: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for hit in history.hits:
        rows[hit.planned.kind.value, hit.planned.component].append(hit)
    table = []
    for (kind, component), hits in sorted(rows.items()):
        done = [hit for hit in hits if not hit.passed_over]
        times = sorted(hit.recovery_s for hit in done if hit.recovery_s is not None)
        table.append(
            {
                "fault": kind,
                "component": component,
                "done": len(done),
                "passed over": len(hits) - len(done),
                "kills": sum(hit.num_kills for hit in done),
                "frames": sum(hit.bites for hit in done),
                "recovered": len(times),
                "median_s": round(times[len(times) // 2], 2) if times else None,
                "longest_s": round(times[-1], 2) if times else None,
            }
        )
    return table


def kills(history: History) -> dict[str, dict[str, int]]:
    """SIGKILLs by component: how many really ended a process, how many of those came back."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"killed": 0, "recovered": 0})
    for hit in history.hits:
        if hit.num_kills:
            each = found[hit.planned.component]
            each["killed"] += hit.num_kills
            each["recovered"] += hit.num_kills if hit.recovered_s is not None else 0
    return dict(found)


def points(history: History) -> dict[str, int]:
    """Kills at named points of the code, by point."""
    aimed = [hit for hit in history.hits if hit.planned.kind is Kind.AIMED_KILL and hit.num_kills]
    return dict(sorted(Counter(hit.planned.point.partition("=")[0] for hit in aimed).items()))


def report(evidence: Evidence, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs."""
    verdict = checks(evidence)
    return {
        "verdict": "held" if all(check.holds for check in verdict) else "BROKEN",
        "parameters": dict(parameters),
        "checks": [asdict(check) for check in verdict],
        "kills": kills(evidence.history),
        "points": points(evidence.history),
        "faults": faults_table(evidence.history),
        "shop": dict(evidence.shop["counts"]),
        "spoilt": dict(evidence.shop["spoilt"]),
        "audit": evidence.audit.as_json(),
        "replay": dict(evidence.replayed),
        "ended_by_themselves": [asdict(end) for end in evidence.history.ends],
    }


def tables(reported: Mapping[str, Any]) -> Group:
    """The same for people."""
    faults = Table(title="faults and recoveries", title_justify="left")
    rows = reported["faults"]
    for name in ("fault", "of", "done", "not", "kills", "frames", "back", "median s", "longest s"):
        faults.add_column(name, justify="left" if name in ("fault", "of") else "right", no_wrap=True)
    for row in rows:
        faults.add_row(*("–" if value is None else str(value) for value in row.values()))
    verdict = Table(title="verdict", title_justify="left")
    for name in ("", "what", "figure"):
        verdict.add_column(name, overflow="fold")
    for check in reported["checks"]:
        verdict.add_row("held" if check["holds"] else "BROKEN", check["name"], check["figure"])
    killed = ", ".join(f"{name} {each['recovered']} of {each['killed']}" for name, each in reported["kills"].items())
    line = f"{reported['verdict']}. Killed and back: {killed or 'none'}; at {len(reported['points'])} named points."
    return Group(faults, verdict, line)
