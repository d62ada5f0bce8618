"""`headrace replay`: a published snapshot once more, from the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Json, Namespace, StateDir
from schemas.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(replay_)


def replay_(
    to: Annotated[int, typer.Option("--to", help="Version to rebuild.", min=1)],
    from_earliest: Annotated[
        bool, typer.Option("--from-earliest", help="Begin at the earliest state there is, not at the nearest one.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the rebuilt snapshot (safetensors) there.", show_default=False)
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of checkpoints to start from. Else HEADRACE_CHECKPOINT_DIR, else <state_dir>/learner/<name>.",
            show_default=False,
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Key that the manifest must be signed with. Else HEADRACE_PUBLIC_KEY.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
    state_dir: StateDir = None,
    json_: Json = False,
) -> None:
    """Rebuild a published snapshot from a checkpoint before it (or from nothing) and the log, and compare the bytes.

    Exit code 0 when sha256 and hash chain are those of the manifest, 1 when they are not. Publishes nothing and may run
    beside the learner. Where the log before the version is gone, the earliest version within reach is named. Bits are
    promised within one environment: what differs from the recorded one is told. Needs torch, as the learner does.

    Examples:

        headrace replay --to 1234

        headrace replay --to 1234 --from-earliest --out snapshot.safetensors
    """
    from learner import environment
    from learner.settings import LearnerSettings

    settings = load_settings(
        LearnerSettings,
        bootstrap=bootstrap,
        namespace=namespace,
        state_dir=state_dir,
        checkpoint_dir=checkpoint_dir,
        public_key=public_key,
    )
    environment.pin(settings.threads)
    from deploy import outputs
    from deploy.replay import replay  # after the pins: this loads the numeric libraries

    if out is not None:
        outputs.require_folder(out.parent, "the folder of the snapshot", "--out")
    done = replay(settings, to, from_earliest)
    if out is not None:
        outputs.write_whole(out, done.payload, "--out")
    if json_:
        print(json.dumps(done.as_json(), indent=1))
    else:
        verdict = "equal, bit for bit" if done.is_equal else "DIFFERENT"
        print(f"version {done.version}: {verdict}")
        print(f"  published  sha256 {done.published_sha256}  chain {done.published_chain[:16]}…")
        print(f"  rebuilt    sha256 {done.rebuilt_sha256}  chain {done.rebuilt_chain[:16]}…")
        print(f"  from {done.start} (version {done.start_version}), {done.num_records} records, {done.seconds:.1f} s")
        for change in done.changed:
            print(f"  the environment differs: {change}", file=sys.stderr)
    raise typer.Exit(0 if done.is_equal else 1)
