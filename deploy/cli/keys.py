"""`headrace keys`: what snapshots are signed with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import UserError

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
    made = make(folder)
    print("\n".join(f"{name}  {path}" for name, path in made.items()))


def make(folder: Path) -> dict[str, Path]:
    """Create the pair unless one lies there already. Raises `UserError` when the folder cannot be written."""
    from schemas import weights

    try:
        weights.create_keys(folder)
    except OSError as error:
        raise UserError(
            f"cannot write keys to {folder}: {error.strerror or error}", "name a folder you can write with --folder"
        ) from error
    return {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
