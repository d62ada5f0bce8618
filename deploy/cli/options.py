"""Options that many commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.settings import CommonSettings, load_settings

Bootstrap = Annotated[
    str | None,
    typer.Option(help="Kafka bootstrap servers. Else HEADRACE_BOOTSTRAP, else 127.0.0.1:9092.", show_default=False),
]
Namespace = Annotated[
    str | None, typer.Option(help="Prefix of the topics. Else HEADRACE_NAMESPACE, else headrace.", show_default=False)
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of caches, keys and checkpoints. Else HEADRACE_STATE_DIR, else .headrace.", show_default=False
    ),
]
ProjectFile = Annotated[Path, typer.Argument(help="What to decide: a headrace.toml.", readable=False)]
"""`readable=False`: whoever reads it says what is wrong in a sentence; typer would show how the command is used."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def common(bootstrap: str | None = None, namespace: str | None = None, **others: Any) -> CommonSettings:
    """Settings from the flags given, the environment for the rest."""
    return load_settings(CommonSettings, bootstrap=bootstrap, namespace=namespace, **others)
