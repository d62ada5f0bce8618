"""An explanation as people read it: from the request down to the weights, what does not agree in red."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.explain import Explanation
from deploy.explain_parts import CandidateShown, TrainedShown
from schemas.decision_columns import TEXT_TOKEN

SHOWN_MAX = 12
"""Candidates, features and tokens shown of each kind; ``--json`` has them all."""


def view(shown: Explanation) -> RenderableType:
    """Everything about one decision."""
    parts: list[RenderableType] = [Text(f"decision {shown.decision_id}", style="bold"), _facts(shown)]
    parts += [_candidates(shown), _outcomes(shown)]
    parts += [Text(f"does not agree: {fault}", style="bold red") for fault in shown.faults]
    if not shown.faults:
        parts.append(Text("everything that can be recomputed agrees", style="green"))
    return Group(*parts)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _facts(shown: Explanation) -> Table:
    grid = _grid()
    for name, text in _lines(shown):
        grid.add_row(name, text)
    return grid


def _lines(shown: Explanation) -> Iterator[tuple[str, str]]:
    yield "task", f"{shown.task}, definition {shown.fingerprint[:16]}…"
    yield "subject", shown.subject
    yield "journal", f"{shown.journal}, position {shown.position}, at {_time(shown.time_ms)}"
    if shown.duplicate_of is not None:
        yield "", f"repeats the decision at position {shown.duplicate_of}: the first in the log counts"
    yield "request", _request(shown)
    yield "features", _named(shown.context) or "no dense ones"
    if shown.context_tokens:
        yield "tokens", _tokens(shown.context_tokens)
    yield "decided by", _policy(shown)
    if shown.snapshot is not None:
        yield "snapshot", f"sha256 {shown.snapshot.sha256}, {shown.snapshot.where}, cut {shown.snapshot.cut_number}"
        yield "signature", f"{shown.snapshot.signature}: {shown.snapshot.signature_hex[:32]}…"
    yield "scores", _scores(shown)
    for each in shown.draws:
        agrees = "as logged" if each.agrees else f"but {each.logged} was logged"
        yield f"draw, slot {each.slot}", f"{each.number} of 2^24 chooses candidate {each.chosen}, {agrees}"
    yield "bucket", _bucket(shown)
    row = shown.transition
    yield (
        "transition",
        f"{row.where}: {row.bucket}, reward {_numbers(row.rewards)}, {row.num_outcomes} outcomes"
        if row
        else "none yet",
    )
    yield "first trained", _trained(shown, shown.trained)


def _request(shown: Explanation) -> str:
    request = shown.request
    if request.fields is None:
        return f"{request.where} is gone (requests are kept a day); the features below are as logged"
    again = "encoded again it gives the logged columns" if request.encodes_equal else f"DIFFERS: {request.difference}"
    context = ", ".join(f"{name} = {_value(value)}" for name, value in request.fields["context"].items())
    return f"{request.where}: {context or 'no context'}; {again}"


def _policy(shown: Explanation) -> str:
    if shown.snapshot_version == 0:
        return f"no policy: {shown.reason}"
    where = "" if shown.snapshot is not None else ", of which no manifest is left"
    return f"version {shown.snapshot_version}{where} ({shown.reason})"


def _scores(shown: Explanation) -> str:
    told = shown.scores
    counted = "" if told.num_equal is None else f"; {told.num_equal} of {told.num_integers} integers equal"
    detail = f": {told.detail}" if told.detail else ""
    return f"{told.state}{detail}{counted}"


def _bucket(shown: Explanation) -> str:
    if shown.bucket == "open":
        return f"open until {_time(shown.closes_at_ms)}"
    return f"{shown.bucket}, closed at {_time(shown.closes_at_ms)}"


def _trained(shown: Explanation, trained: TrainedShown | None) -> str:
    if trained is None:
        if shown.transition is None:
            return "none yet"
        learnt = shown.transition.bucket in ("joined", "defaulted")
        return "none published yet" if learnt else f"none: {shown.transition.bucket} rows are never learnt from"
    doubt = "" if trained.is_certain else "; its history may have begun after this decision"
    return f"version {trained.version}, sha256 {trained.sha256[:16]}…, {trained.where}{doubt}"


def _candidates(shown: Explanation) -> Table:
    table = Table(title="candidates", title_justify="left", show_edge=False)
    experts = next((tuple(each.by_expert) for each in shown.candidates if each.by_expert), ())
    for name in ("", "action", "probability", "of 2^24", "score", *experts, "features"):
        right = name not in ("", "action", "features")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    ranked = sorted(shown.candidates, key=lambda each: (not each.chosen_in, -each.propensities[0]))
    for each in ranked[:SHOWN_MAX]:
        table.add_row(*_cells(each, experts), style="bold" if each.chosen_in else "" if each.is_allowed else "dim")
    if len(ranked) > SHOWN_MAX:
        table.add_row("", f"and {len(ranked) - SHOWN_MAX} more")
    return table


def _cells(each: CandidateShown, experts: tuple[str, ...]) -> list[str]:
    score = "" if each.score is None else f"{each.score:.4f}"
    parts = [f"{each.by_expert[name]:+.4f}" if each.by_expert else "" for name in experts]
    features = ", ".join(part for part in (_named(each.features), _tokens(each.tokens) if each.tokens else "") if part)
    mark = "→" if each.chosen_in else "" if each.is_allowed else "masked"
    return [mark, each.action_id, f"{each.probabilities[0]:.4%}", str(each.propensities[0]), score, *parts, features]


def _outcomes(shown: Explanation) -> RenderableType:
    if not shown.outcomes:
        return Text("no outcomes", style="dim")
    table = Table(title="outcomes", title_justify="left", show_edge=False)
    for name in ("bucket", "type", "value", "id", "after", "source"):
        table.add_column(name, overflow="fold")
    for each in shown.outcomes:
        bucket = each.bucket if each.counts_here or each.bucket != "used" else "used by another decision"
        after = f"{(each.time_ms - shown.time_ms) / 1000:+.1f} s"
        table.add_row(bucket, each.type, f"{each.value:g}", each.outcome_id or "none", after, each.source)
    return table


def _named(values: dict[str, float]) -> str:
    told = [f"{name} = {value:g}" for name, value in list(values.items())[:SHOWN_MAX]]
    more = [f"and {len(values) - SHOWN_MAX} more"] if len(values) > SHOWN_MAX else []
    return ", ".join(told + more)


def _tokens(tokens: list[tuple[int, float]]) -> str:
    told = [
        f"{'text' if token & TEXT_TOKEN else 'category'}#{token & ~TEXT_TOKEN:08x} × {value:g}"
        for token, value in tokens[:SHOWN_MAX]
    ]
    more = [f"and {len(tokens) - SHOWN_MAX} more"] if len(tokens) > SHOWN_MAX else []
    return ", ".join(told + more)


def _value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _time(time_ms: int) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(time_ms / 1000))}.{time_ms % 1000:03d} UTC"
