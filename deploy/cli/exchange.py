"""`headrace ask` and `headrace tell`: the shop's side of the conversation, from the shell."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deploy.cli.options import Bootstrap, Namespace, common
from schemas.errors import UserError

TaskName = Annotated[
    str | None, typer.Option("--task", help="Which task; not needed when one is applied.", show_default=False)
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait.", min=0.1)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ask")(ask)
    app.command("tell")(tell)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{what} is no JSON: {error}", 'quote it for the shell: \'{"text": "my card is lost"}\''
        ) from error


def ask(
    context: Annotated[str, typer.Argument(help="Named features of the situation, as JSON.")] = "{}",
    task: TaskName = None,
    subject: Annotated[str | None, typer.Option(help="Who is decided about; else made up.", show_default=False)] = None,
    decision_id: Annotated[str | None, typer.Option("--id", help="Else made up.", show_default=False)] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help="JSON list of {action_id, features}; not with a declared catalogue.", show_default=False),
    ] = None,
    timeout: Timeout = 10.0,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
) -> None:
    """Ask for one decision and print it. Exit code 1 when the request was refused; `refused` says why.

    Examples:

        headrace ask '{"text": "my card has not arrived"}'

        headrace ask '{}' --candidates '[{"action_id":"a"}, {"action_id":"b"}]'
    """
    from deploy.definitions import read_definitions
    from deploy.exchange import CORRECT_IT
    from deploy.exchange import ask as send

    settings = common(bootstrap, namespace)
    request: dict[str, Any] = {"task": read_definitions(settings).require_task(task).name}
    request["context"] = _json(context, "the context")
    optional = {"subject": subject, "decision_id": decision_id}
    request |= {name: value for name, value in optional.items() if value is not None}
    if candidates is not None:
        request["candidates"] = _json(candidates, "--candidates")
    decision = send(settings, request, timeout)
    print(json.dumps(decision, indent=1, ensure_ascii=False), flush=True)
    if decision["refused"] is not None:
        raise UserError(f"the request was refused, {decision['refused']}", CORRECT_IT)


def tell(
    decision_id: Annotated[str, typer.Argument(help="The decision it belongs to; '' to attribute it by subject.")],
    type_: Annotated[
        str | None, typer.Option("--type", help="Outcome type; not needed when the task has one.", show_default=False)
    ] = None,
    value: Annotated[float, typer.Option(help="Size of the outcome.")] = 1.0,
    subject: Annotated[str | None, typer.Option(help="Else the decision's.", show_default=False)] = None,
    task: TaskName = None,
    timeout: Timeout = 10.0,
    bootstrap: Bootstrap = None,
    namespace: Namespace = None,
) -> None:
    """Tell how a decision went and print what became of it; waits for the reward when the window ends within a minute.

    Examples:

        headrace tell ask-1f2e3d --value 1

        headrace tell '' --subject customer-7 --type order --value 59.90
    """
    from deploy.definitions import read_definitions
    from deploy.exchange import tell as send

    settings = common(bootstrap, namespace)
    wanted = read_definitions(settings).require_task(task)
    names = [kind.name for kind in wanted.reward.types]
    if type_ is None and len(names) != 1:
        raise UserError(f"task {wanted.name} counts {', '.join(names)}", "say which with --type")
    outcome: dict[str, Any] = {"type": type_ or names[0], "value": value}
    outcome |= {"decision_id": decision_id} if decision_id else {}
    outcome |= {"subject": subject} if subject else {}
    print(
        json.dumps(send(settings, outcome, timeout, wanted.reward.window_ms / 1000 + 2), indent=1, ensure_ascii=False)
    )
