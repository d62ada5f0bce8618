"""`headrace explain`: one decision, from the request to the weights that learnt from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.options import Bootstrap, Json, Namespace, common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain_)


def explain_(
    decision_id: Annotated[str, typer.Argument(help="Id of the decision: that of its request.")],
    task: Annotated[
        str | None, typer.Option("--task", help="When several tasks decided under this id.", show_default=False)
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Whom it was about: one partition is searched instead of all.", show_default=False),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Key that snapshots must be signed with. Else HEADRACE_PUBLIC_KEY.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
    json_: Json = False,
) -> None:
    """Why a decision came out as it did, and what became of it. Exit code 1 when something does not agree.

    Shows the request, the features as encoded, the snapshot with hash and signature, all probabilities, the draw
    recomputed from its key, the scores recomputed from the snapshot while its chunks last, the outcomes with their
    buckets, the transition, and the first snapshot that learnt from it. Any decision that the journal still holds will
    do, explored ones and those of the baseline too.

    Examples:

        headrace explain ask-1f2e3d4c5b6a

        headrace explain order-17 --subject customer-7 --json | jq '.[0].draws'
    """
    from deploy.explain_evidence import explain_decision

    found = explain_decision(common(bootstrap, namespace, public_key=public_key), decision_id, task, subject)
    if json_:
        _print_json([each.as_json() for each in found])
    else:
        from rich.console import Console

        from deploy.explain_view import view

        console = Console(soft_wrap=False)
        for each in found:
            console.print(view(each))
    raise typer.Exit(1 if any(each.faults for each in found) else 0)


def _print_json(found: list[dict[str, Any]]) -> None:
    """A request may hold numpy columns (vectors): they become lists."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    print(orjson.dumps(found, option=options).decode())
