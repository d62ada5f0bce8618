"""`headrace keys`: what snapshots are signed with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_FOLDER = Path(".headrace/keys")

group = typer.Typer(help="Keys that the learner signs snapshots with and the workers verify.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group, name="keys")


@group.command()
def create(
    folder: Annotated[Path, typer.Option(help="Where to write the pair.")] = DEFAULT_FOLDER,
) -> None:
    """Make a pair: the private key for the learner, the public key for every worker.

    Example:

        headrace keys create --folder /etc/headrace

        export HEADRACE_PUBLIC_KEY=/etc/headrace/headrace.public.pem
    """
    from schemas.signing_keys import create_keys

    private, public = create_keys(folder)
    print(f"export HEADRACE_SIGNING_KEY={private}   # for the learner, and for nobody else")
    print(f"export HEADRACE_PUBLIC_KEY={public}    # for every worker")
