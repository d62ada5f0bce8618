"""`headrace worker`, `headrace learn` and `headrace up`: the processes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Bootstrap, Namespace, ProjectFile, StateDir, common
from schemas.collector import uncollected
from schemas.errors import UserError
from schemas.last_resort import end
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project

ROLES = ("ingest", "decide", "join")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("worker")(worker)
    app.command("learn")(learn)
    app.command("up")(up)


def _log_to_stderr() -> None:
    level = os.environ.get("HEADRACE_LOG_LEVEL", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UserError(f"setting HEADRACE_LOG_LEVEL: no level {level!r}", "use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


def worker(
    roles: Annotated[
        list[str] | None, typer.Argument(help="Any of ingest, decide, join; all without one.", show_default=False)
    ] = None,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
    state_dir: StateDir = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Key that snapshots must be signed with. Else HEADRACE_PUBLIC_KEY.", show_default=False),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port of /metrics, /live, /ready. Else HEADRACE_METRICS_PORT, else any.", show_default=False),
    ] = None,
    insecure_dev: Annotated[
        bool, typer.Option("--insecure-dev", help="decide: take snapshots without checking a signature.")
    ] = False,
    declare_gap: Annotated[
        bool, typer.Option("--declare-gap", help="join: go on although the journal lost records; audit counts them.")
    ] = False,
) -> None:
    """Serve: users' events into the journal (ingest), decisions (decide), transitions (join).

    Every role scales by starting more processes. SIGTERM finishes the batch and ends within 10 s.

    Examples:

        headrace worker decide --public-key headrace.public.pem

        headrace worker ingest join
    """
    wanted = tuple(dict.fromkeys(roles or ROLES))
    for role in wanted:
        if role not in ROLES:
            raise UserError(f"no role {role!r}", f"name any of {', '.join(ROLES)}")
    flags: dict[str, object] = {
        "bootstrap": bootstrap,
        "namespace": namespace,
        "state_dir": state_dir,
        "public_key": public_key,
        "metrics_port": metrics_port,
    }
    if "decide" in wanted and len(wanted) > 1:
        raise typer.Exit(_apart(wanted, flags, insecure_dev, declare_gap))
    _log_to_stderr()
    if wanted == ("decide",):
        with uncollected():
            from streams import decider
            from streams.decider_settings import DeciderSettings

        settings = load_settings(DeciderSettings, **flags, insecure_dev=insecure_dev or None)
        end(decider.run(settings))
    with uncollected():
        from streams import app
        from streams.settings import WorkerSettings

    end(app.run(set(wanted), load_settings(WorkerSettings, **flags, declare_gap=declare_gap or None)))


def _apart(wanted: tuple[str, ...], flags: dict[str, object], insecure_dev: bool, declare_gap: bool) -> int:
    """decide answers people who wait: it never shares a process with the others."""
    from deploy.supervisor import Supervisor
    from streams.settings import WorkerSettings

    if port := load_settings(WorkerSettings, **flags).metrics_port:
        raise UserError(
            f"{port} is one metrics port, but decide runs in a process of its own",
            "start decide and the other roles one by one, or let HEADRACE_METRICS_PORT be 0, any free port",
        )
    given = [
        text
        for name, value in flags.items()
        if value is not None
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    others = [role for role in wanted if role != "decide"]
    with Supervisor() as supervisor:
        supervisor.start("+".join(others), ["worker", *others, *given, *(["--declare-gap"] if declare_gap else [])])
        supervisor.start("decide", ["worker", "decide", *given, *(["--insecure-dev"] if insecure_dev else [])])
        return supervisor.wait()


def learn(
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
    state_dir: StateDir = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="Private key that signs snapshots. Else HEADRACE_SIGNING_KEY.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda. Else HEADRACE_DEVICE, else auto.", show_default=False)
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port of /metrics, /live, /ready. Else HEADRACE_METRICS_PORT, else any.", show_default=False),
    ] = None,
    allow_lineage_break: Annotated[
        bool,
        typer.Option(
            "--allow-lineage-break",
            help="Go on although libraries, processor or settings changed and bits may differ; manifests say so.",
        ),
    ] = False,
) -> None:
    """Learn from the transitions and publish signed snapshots. One process per namespace.

    Needs torch: `pip install '.[learner]'` in headrace's source tree.

    Example:  headrace learn --signing-key headrace.private.pem
    """
    _log_to_stderr()
    from learner.__main__ import main
    from learner.settings import LearnerSettings

    settings = load_settings(
        LearnerSettings,
        bootstrap=bootstrap,
        namespace=namespace,
        state_dir=state_dir,
        signing_key=signing_key,
        device=device,
        metrics_port=metrics_port,
        allow_lineage_break=allow_lineage_break or None,
    )
    end(main(settings))


def _say(text: str) -> None:
    """A line of our own among those of the processes."""
    print(f"headrace | {text}", file=sys.stderr, flush=True)


def _tell_ready(project: Project, settings: CommonSettings) -> None:
    """What may be done from now on, and what a second terminal needs for it."""
    name = settings.namespace
    tasks = ", ".join(task.name for task in project.tasks) or "none yet (`headrace apply`)"
    _say(f"ready: {name}.requests are answered in {name}.decisions; tasks: {tasks}.")
    _say("For `headrace ask`, `headrace status` and the others, in another terminal:")
    print(f"  export HEADRACE_BOOTSTRAP={settings.bootstrap}", file=sys.stderr)
    print(f"  export HEADRACE_NAMESPACE={name}", file=sys.stderr, flush=True)


def up(
    file: ProjectFile = Path("headrace.toml"),
    port: Annotated[int, typer.Option(help="Port of our own broker; 0 takes a free one.", min=0, max=65535)] = 9092,
    bootstrap: Annotated[
        str | None, typer.Option(help="Use this cluster instead. Else HEADRACE_BOOTSTRAP.", show_default=False)
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Everything for development in one terminal: broker, topics, keys, definitions, workers, learner. Ctrl-C ends it.

    Says when all of it is ready, and what other terminals need to reach it.

    Examples:

        headrace up headrace.toml

        headrace up examples/support/headrace.toml --port 0
    """
    from deploy import stack
    from deploy.outputs import require_folder
    from deploy.supervisor import EARLY_STOP_S, Supervisor
    from schemas.task import load

    project = load(file)
    settings = common(bootstrap, project.namespace.name, state_dir=state_dir)
    require_folder(settings.state_dir, "the folder of broker, caches, keys and checkpoints", "--state-dir")
    existing = bootstrap or os.environ.get("HEADRACE_BOOTSTRAP") or None
    is_served = False
    with Supervisor() as supervisor:
        ready = stack.prepare(project, settings.state_dir, existing, port, settings.kafka_options)
        try:
            _say(f"namespace {project.namespace.name}, broker at {ready.settings.bootstrap}. Ctrl-C ends everything.")
            _say(f"starting {', '.join(stack.ROLES.values())}; the first start on a machine compiles, for minutes.")
            ready.start(supervisor)
            is_served = ready.wait_ready(supervisor, _say)
            if is_served:
                _tell_ready(project, ready.settings)
            elif supervisor.is_stopping:
                raise KeyboardInterrupt  # not by `wait`, which gives each the time to end in order
            code = supervisor.wait()
        finally:
            limits = (EARLY_STOP_S,) if supervisor.is_stopping and not is_served else ()
            supervisor.end(*limits)
            ready.close(*limits)
    raise typer.Exit(code)
