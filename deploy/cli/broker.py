"""`headrace broker`: a real local Kafka."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Json, common
from schemas.errors import UserError

Folder = Annotated[Path, typer.Option(help="Where its data, log and process ids lie.")]
DEFAULT_FOLDER = Path(".headrace/broker")

group = typer.Typer(
    help="A real Apache Kafka on this machine, without docker or Java.\n\n"
    "    headrace broker start\n\n    headrace broker start --port 0 --brokers 3 --secure\n\n    headrace broker stop",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group, name="broker")


@group.command()
def start(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 9092,
    brokers: Annotated[int, typer.Option(help="How many, to try replication and failover.", min=1, max=9)] = 1,
    secure: Annotated[bool, typer.Option("--secure", help="TLS and a password (SASL/SCRAM).")] = False,
    folder: Folder = DEFAULT_FOLDER,
    json_: Json = False,
) -> None:
    """Start it and wait until it answers. Its data outlive a stop.

    The first start downloads Kafka's jars (45 MB) and checks each against its committed hash.

    Examples:

        headrace broker start

        headrace broker start --port 19092 --folder /tmp/kafka
    """
    from deploy import broker

    running = broker.start(folder, port, brokers, secure=secure)
    if json_:
        options = {"bootstrap": running.bootstrap, "kafka_options": running.kafka_options, "folder": running.folder}
        print(json.dumps(options))
        return
    print(f"A broker answers at {running.bootstrap} (process {', '.join(str(node.pid) for node in running.nodes)}).")
    if running.bootstrap != "127.0.0.1:9092":
        print(f"  export HEADRACE_BOOTSTRAP={running.bootstrap}")
    if running.kafka_options:
        print(f"  export HEADRACE_KAFKA_OPTIONS='{json.dumps(running.kafka_options)}'")
    print(f"  headrace broker stop{'' if folder == DEFAULT_FOLDER else f' --folder {folder}'}   # ends it")


@group.command()
def prepare() -> None:
    """Make brokers of this machine start in half the time, from now on.

    Starts one of its own and keeps what Java has loaded by then (25 s, 70 MB in ~/.cache/headrace). Worth it where
    brokers start often, as in tests; needs Java 25, which `pip install '.[broker]'` brings.

    Example:  headrace broker prepare
    """
    from deploy import broker_training

    cache = broker_training.prepare()
    print(f"Brokers start from {cache}." if cache else "This Java is older than 25: brokers start as they did.")


@group.command()
def stop(folder: Folder = DEFAULT_FOLDER) -> None:
    """End the broker of a folder; its data stay.

    Example:  headrace broker stop
    """
    from deploy import broker

    print("Stopped." if broker.stop(folder) else f"No broker runs in {folder}.")


@group.command()
def status(folder: Folder = DEFAULT_FOLDER, bootstrap: Bootstrap = None) -> None:
    """Say whether a broker answers; exit code 1 when none does.

    Without a broker of ours in the folder it asks HEADRACE_BOOTSTRAP.
    """
    from deploy import broker

    running = broker.status(folder) if bootstrap is None else None
    settings = common(bootstrap)
    address = running.bootstrap if running else settings.bootstrap
    options = running.kafka_options if running else settings.kafka_options
    count = broker.answers(address, options, timeout_s=3.0)
    if not count:
        raise UserError(
            f"no Kafka broker answers at {address}",
            f"start one with `headrace broker start`; an earlier one's log is {folder}/broker.log"
            if running
            else "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
        )
    print(f"{count} broker{'s' if count > 1 else ''} at {address}.")
