"""`headrace demo`: see it learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="Print lines instead of a live screen.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the shop: order of messages, delays, duplicates.")] = 1,
    messages: Annotated[
        int | None, typer.Option(help="Only the first N messages; all 10,003 without it.", min=1, show_default=False)
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests per second.", min=0.1)] = 100.0,
    out: Annotated[Path, typer.Option(help="Folder of demo-report.json and demo-report.png.")] = Path(),
    folder: Annotated[
        Path | None, typer.Option(help="Keep state and logs here; else a temporary folder.", show_default=False)
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option(help="Use this cluster instead of a broker of its own.", show_default=False)
    ] = None,
    example: Annotated[Path, typer.Option(help="Folder with headrace.toml, shop.py and train.csv.")] = EXAMPLE,
) -> None:
    """Route 10,003 real customer messages to 77 support routes, learning from outcomes alone.

    Starts a broker, the workers, the learner and a shop that knows nothing of headrace but its topics; ends by itself
    after about two minutes, audits the log and leaves demo-report.json and demo-report.png. Ctrl-C leaves no process
    behind.

    Examples:

        headrace demo

        headrace demo --headless --seed 2 --messages 3000
    """
    from deploy import demo as demonstration

    wanted = demonstration.Demo(example, out, seed, rate, messages, headless, bootstrap, folder)
    raise typer.Exit(demonstration.run(wanted))
