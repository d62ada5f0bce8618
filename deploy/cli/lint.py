"""`headrace lint`: what headrace would make of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import UserError
from schemas.task import load


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("lint")(lint_)


def lint_(
    file: Annotated[Path, typer.Argument(help="JSON lines: requests, outcomes, or both.", readable=False)],
    project: Annotated[Path, typer.Option(help="The headrace.toml to read them by.", readable=False)] = Path(
        "headrace.toml"
    ),
    show: Annotated[int, typer.Option(help="Show features and reward of the first N requests.", min=0)] = 3,
) -> None:
    """Validate requests and outcomes without a broker, and show what would be learnt from them.

    Each line is read as the workers would read it; a bad one is named with its reason and the exit code is 1. For good
    requests it shows the features as encoded and the reward that the outcomes of the same file give.

    Examples:

        headrace lint events.jsonl

        kcat -C -t headrace.outcomes -e | headrace lint /dev/stdin
    """
    from deploy.lint import lint

    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "name a file of JSON lines") from error
    found = lint(lines, load(project))
    shown = 0
    for line in found:
        if line.error:
            print(f"line {line.number}: {line.kind}: {line.error}")
        for warning in line.warnings:
            print(f"line {line.number}: {line.kind}: warning: {warning}")
        if line.kind == "request" and not line.error and shown < show:
            shown += 1
            print(f"line {line.number}: request {line.identity}")
            print("".join(f"    {feature}\n" for feature in line.features), end="")
            print(f"    reward {line.reward}")
    num_bad = sum(line.error is not None for line in found)
    kinds = {kind: sum(line.kind == kind for line in found) for kind in ("request", "outcome")}
    print(f"{kinds['request']} requests, {kinds['outcome']} outcomes, {num_bad} of them refused.")
    raise typer.Exit(1 if num_bad else 0)
