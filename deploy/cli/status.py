"""`headrace status`: how the loop is doing."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Namespace, common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    partitions: Annotated[bool, typer.Option("--partitions", help="Both sums for each partition too.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.5)] = 2.0,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
) -> None:
    """Show lag, both sums of buckets, reward and snapshot versions, from the topics. Ctrl-C ends it.

    Examples:

        headrace status

        headrace status --once --partitions
    """
    from rich.console import Console
    from rich.live import Live

    from deploy.status import look, table

    settings = common(bootstrap, namespace)
    if once:
        Console().print(table(look(settings), partitions))
        return
    with Live(table(look(settings), partitions), refresh_per_second=2) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(every)
            live.update(table(look(settings), partitions))
