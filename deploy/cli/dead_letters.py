"""`headrace dead-letters`: the records that could not be used, each with its reason."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Namespace, common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dead-letters")(dead_letters)


def dead_letters(
    follow: Annotated[bool, typer.Option("--follow", help="Go on with those that come, until Ctrl-C.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.", show_default=False)] = None,
    last: Annotated[int, typer.Option(help="Begin with the newest N.", min=1, max=100_000)] = 20,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
) -> None:
    """Show what could not be used: when, which record, the reason, the detail and its first bytes.

    The reasons are explained in docs/reference.md. `headrace lint` says of a file of requests and outcomes beforehand
    which of them would end here.

    Examples:

        headrace dead-letters

        headrace dead-letters --follow --reason unknown-action

        headrace dead-letters --json | jq -r .reason | sort | uniq -c
    """
    from deploy import dead_letters as letters
    from schemas.topics import topic

    settings = common(bootstrap, namespace)

    def show(letter: letters.Letter) -> None:
        print(json.dumps(letter.as_json(), ensure_ascii=False) if json_ else letter.as_row(), flush=follow)

    found, following = letters.newest(settings, last, reason)
    if not json_ and (found or follow):
        print(letters.row(*letters.HEADER), flush=follow)
    for each in found:
        show(each)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            for each in letters.follow(settings, following, reason):
                show(each)
    elif not found and not json_:
        which = "" if reason is None else f" with the reason {reason}"
        print(f"No dead letter{which} in {topic(settings.namespace, 'dead-letters')}.")
