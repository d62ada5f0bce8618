"""`headrace torture`: break everything, then prove that nothing was lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from schemas.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("torture")(torture)


def torture(
    minutes: Annotated[float, typer.Option(help="How long faults are planted.", min=0.1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Fixes what the shop sends and which fault comes when.")] = 1,
    decisions: Annotated[int, typer.Option(help="Requests sent over that time.", min=1)] = 200_000,
    brokers: Annotated[int, typer.Option(help="1, or 3 with replication 3 and min.insync 2.")] = 1,
    every: Annotated[tuple[float, float], typer.Option(help="Shortest and longest time between two faults, s.")] = (
        1.0,
        5.0,
    ),
    kills: Annotated[
        int,
        typer.Option(
            help="Kills alone, till each of join, decide, learner and broker died so often. 0: all kinds.", min=0
        ),
    ] = 0,
    of: Annotated[
        str, typer.Option(help="With --kills: what is killed, separated by commas.")
    ] = "join,decide,learn,broker",
    out: Annotated[Path, typer.Option(help="Folder of torture-history.jsonl and torture-report.json.")] = Path(),
    folder: Annotated[
        Path | None, typer.Option(help="Keep state and logs here; else a temporary folder.", show_default=False)
    ] = None,
) -> None:
    """Run the real processes on a real broker of their own, break them in every way known, heal, drain and judge.

    A shop sends requests and outcomes, 2 % of them twice, 2 % late, 1 % spoilt, 0.5 % oversized, while workers, learner
    and brokers are killed (anywhere, and at named points of the code), paused past their session, cut off, slowed down,
    deprived of acks and of disk space. Then every message that the broker took is accounted for from the topics, and
    the learner's last snapshot is compared with a replay without faults. Exit code 0 when every check held.

    Examples:

        headrace torture --minutes 2 --decisions 20000

        headrace torture --brokers 3 --seed 7 --out report

        headrace torture --kills 200 --of join,decide,learn --minutes 40
    """
    from deploy.torture import run, verdict
    from deploy.torture.plan import COMPONENTS

    if brokers not in (1, 3):
        raise UserError(f"--brokers {brokers}", "1 or 3: replication by two proves nothing more")
    if not 0 < every[0] <= every[1]:
        raise UserError(f"--every {every[0]} {every[1]}", "the shortest time first, both above 0")
    components = tuple(part.strip() for part in of.split(","))
    if not set(components) <= set(COMPONENTS):
        raise UserError(f"--of {of}", f"name some of {','.join(COMPONENTS)}")
    wanted = run.Torture(minutes, seed, decisions, brokers, every, out, kills, components, folder)
    reported = run.run(wanted, lambda line: print(f"headrace torture | {line}", file=sys.stderr, flush=True))
    Console().print(verdict.tables(reported))
    raise typer.Exit(0 if reported["verdict"] == "held" else 1)
