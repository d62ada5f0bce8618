"""`headrace audit`: does the log prove the promises?"""

from __future__ import annotations

import json

import typer

from deploy.cli.options import Bootstrap, Json, Namespace, common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit_)


def audit_(bootstrap: Bootstrap = None, namespace: Namespace = None, json_: Json = False) -> None:
    """Recompute the join from the topics, by other code, and compare. Exit code 1 unless clean.

    Reads journal and transitions whole: every closed decision must stand in exactly one accepted row with the reward
    that the rules give it, the chains must have neither hole nor fork, and both sums of Progress must agree.

    Examples:

        headrace audit

        headrace audit --json | jq .decisions
    """
    from deploy.audit import audit

    report = audit(common(bootstrap, namespace))
    if json_:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print("clean" if report.is_clean else "\n".join(report.reasons))
        counts = (*report.counts("decision_counts").items(), *report.counts("outcome_counts").items())
        print(", ".join(f"{name} {count}" for name, count in counts))
        print("\n".join(note for each in report.partitions for note in each.notes), end="")
    raise typer.Exit(0 if report.is_clean else 1)
