"""`headrace topics`: create them, check them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Namespace, common
from schemas.errors import UserError
from schemas.task import Project, load

Partitions = Annotated[
    int | None, typer.Option(help="Without a file: partitions of a new namespace.", min=1, max=1024, show_default=False)
]
File = Annotated[
    Path | None, typer.Argument(help="headrace.toml; ./headrace.toml when it is there.", show_default=False)
]
DEFAULT_FILE = Path("headrace.toml")
DEFAULT_PARTITIONS = 4

group = typer.Typer(
    help="The topics of a namespace; never auto-created, because the broker must stamp their time.\n\n"
    "    headrace topics apply headrace.toml\n\n    headrace topics check headrace.toml",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group, name="topics")


def project_of(file: Path | None, namespace: str | None, partitions: int | None) -> Project:
    """The file's project, or one without tasks when there is no file. Raises UserError where flags contradict it."""
    from deploy import topics

    if file is not None:
        declared = load(file).namespace
        for flag, given, says in (
            ("namespace", namespace, declared.name),
            ("partitions", partitions, declared.partitions),
        ):
            if given is not None and given != says:
                raise UserError(
                    f"--{flag} {given}, but {file} says {flag} {says}", f"leave --{flag} away, or change the file"
                )
    if file is not None or (DEFAULT_FILE.exists() and partitions is None and namespace is None):
        return load(file or DEFAULT_FILE)
    return topics.empty_project(common(namespace=namespace).namespace, partitions or DEFAULT_PARTITIONS)


@group.command("apply")
def apply_(
    file: File = None, bootstrap: Bootstrap = None, namespace: Namespace = None, partitions: Partitions = None
) -> None:
    """Create what is missing and lengthen what is kept too short. Safe to repeat.

    Examples:

        headrace topics apply headrace.toml

        headrace topics apply --namespace trial --partitions 4
    """
    from deploy import topics

    project = project_of(file, namespace, partitions)
    settings = common(bootstrap, project.namespace.name)
    changes = topics.apply(settings, project)
    print("\n".join(changes) or f"All topics of {project.namespace.name} stand as they should.")
    for fault in topics.missing_sources(settings, project):
        print(f"headrace: {fault.message}.\n  Before `headrace apply`: {fault.remedy}.", file=sys.stderr)


@group.command()
def check(
    file: File = None, bootstrap: Bootstrap = None, namespace: Namespace = None, partitions: Partitions = None
) -> None:
    """Say what is wrong with the topics, and the remedy; exit code 1 when anything is.

    Example:  headrace topics check headrace.toml
    """
    from deploy import topics

    project = project_of(file, namespace, partitions)
    settings = common(bootstrap, project.namespace.name)
    faults = topics.check(settings, project) + topics.missing_sources(settings, project)
    for fault in faults:
        print(f"{fault.message}\n  {fault.remedy}")
    if faults:
        wrong = "1 thing is" if len(faults) == 1 else f"{len(faults)} things are"
        raise UserError(f"{wrong} wrong with the topics of {project.namespace.name}", faults[0].remedy)
    print(f"All topics of {project.namespace.name} stand as they should.")
