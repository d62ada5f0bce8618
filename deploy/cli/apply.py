"""`headrace apply`: publish what a headrace.toml declares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, ProjectFile, common
from schemas.task import load

Retire = Annotated[
    list[str] | None, typer.Option(help="Task or source that shall go out of force (repeatable).", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("apply")(apply_)


def apply_(file: ProjectFile = Path("headrace.toml"), bootstrap: Bootstrap = None, retire: Retire = None) -> None:
    """Publish tasks, sources and namespace settings. Every process takes tasks and sources up within a second.

    Settings of the namespace count for processes that start from now on. A changed task is a new definition:
    decisions already made keep theirs. Safe to repeat.

    Examples:

        headrace apply headrace.toml

        headrace apply headrace.toml --retire old-task
    """
    from deploy import applying

    project = load(file)
    settings = common(bootstrap, project.namespace.name)
    names = tuple(retire or ())
    applying.require_sources(settings, project, names)
    changes = applying.apply(settings, project, names)
    print("\n".join(changes) or "Everything in the file is applied already.")
