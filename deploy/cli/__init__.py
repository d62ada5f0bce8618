"""The `headrace` command. One module per group of commands; each says in its `--help` how it is used."""

from __future__ import annotations

from deploy.cli.entry import app, main

__all__ = ["app", "main"]
