"""docs/reference.md, generated from the code: commands, `headrace.toml`, topics, records, settings, metrics, reasons.

``python -m deploy.reference`` writes it, ``--check`` says whether it is what the code says (part of `make check`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic_settings import BaseSettings

from deploy import demo_report, reference_file
from deploy.cli.entry import app
from learner.metrics import CATALOGUE as LEARNER_METRICS
from learner.settings import LearnerSettings
from schemas.compatibility import current
from schemas.records import Reason
from schemas.telemetry import Metric
from schemas.topics import DAY_MS, TOPICS
from streams.decider_settings import DeciderSettings
from streams.metrics import CATALOGUE as WORKER_METRICS
from streams.policy import REFUSALS
from streams.refusal_reasons import CATALOGUE as DEAD_LETTERS

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
CATALOGUES = {"workers": WORKER_METRICS, "learner": LEARNER_METRICS}
"""Of every process that counts: one name means one thing, whoever shows it."""
HEAD = """# Reference

Generated from the code by `make docs`; `make check` fails when it is out of date.
"""


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def commands(command: Any, path: str) -> Iterator[str]:
    """One section per command, groups first. By what commands can do, not by class: typer brings its own click."""
    context = command.context_class(command, info_name=path)
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if not child.hidden:
                yield from commands(child, f"{path} {name}")
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([path, *(f"[{a.name.upper()}]" if not a.required else a.name.upper() for a in arguments)])
    yield f"### `{usage}`\n\n{(command.help or '').split(chr(12))[0].strip()}\n"
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if options:
        yield table(
            ("option", "default", "meaning"),
            ((f"`{' '.join(o.opts)}`", _default(o.default), o.help or "") for o in options),
        )


def _default(value: object) -> str:
    """A default as the page shows it; a path of this checkout from its root, so that every checkout says the same."""
    if value is None or value is False or callable(value):
        return ""
    return f"`{str(value).removeprefix(f'{PAGE.parents[1]}/')}`"


def settings(kind: type[BaseSettings]) -> str:
    """Every setting of a process: the variable, what it is, its default."""
    rows = []
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append((f"`HEADRACE_{name.upper()}`", f"`{default}`" if default is not None else "", field.description))
    return table(("variable", "default", "meaning"), rows)


def metrics(catalogue: Iterable[Metric]) -> str:
    """A catalogue of metrics."""
    return table(
        ("metric", "kind", "unit", "labels", "meaning", "what to do"),
        ((f"`{m.name}`", m.kind, m.unit, ", ".join(m.labels), m.meaning, m.remedy) for m in catalogue),
    )


def topics() -> str:
    """The table of topics."""
    rows = []
    for spec in TOPICS:
        kept = f"{spec.retention_ms // DAY_MS} d" if spec.retention_ms else "3·Wmax + bw + D + 7 d"
        rows.append(
            (
                f"`<namespace>.{spec.name}`",
                f"{spec.written_by} → {spec.read_by}",
                spec.record,
                spec.key,
                spec.partitions,
                "compact" if spec.cleanup == "compact" else kept,
            )
        )
    return table(("topic", "who writes → reads", "record", "key", "partitions", "kept"), rows)


def records() -> Iterator[str]:
    """The current version of every Avro schema with the documentation of its fields."""
    for name in sorted(current()):
        schema = current()[name].schema
        yield f"### {schema['name']}\n\n{schema['doc']}\n"
        if schema["fields"]:
            yield table(
                ("field", "type", "default", "meaning"),
                ((f["name"], _type(f["type"]), _json_default(f), f["doc"]) for f in schema["fields"]),
            )


def _json_default(field: Any) -> str:
    """What a field is where it is left out; "required" where it may not be."""
    return f"`{json.dumps(field['default'])}`" if "default" in field else "required"


def _type(avro: Any) -> str:
    if isinstance(avro, list):
        return " or ".join(_type(part) for part in avro)
    if isinstance(avro, dict):
        inner = avro.get("items") or avro.get("values")
        return f"{avro['type']}<{_type(inner)}>" if inner else str(avro.get("name", avro["type"]))
    return str(avro)


def task_file() -> Iterator[str]:
    """One section per table of `headrace.toml`."""
    for header, told, rows in reference_file.tables():
        yield f"### `{header}`\n\n{told}\n"
        yield table(("key", "type", "default", "range", "meaning"), rows)


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            "## Commands\n",
            *commands(typer.main.get_command(app), "headrace"),
            "## headrace.toml\n",
            "`[tasks.context]` and `[tasks.action]` take a table per feature, `[tasks.reward.outcomes]` one per type "
            "of outcome, each by its name. A duration is text with its unit: `500ms`, `2s`, `5m`, `1h`, `7d`. A key "
            "that does not stand here is refused.\n",
            *task_file(),
            "## Topics\n",
            topics(),
            "## Records\n",
            *records(),
            "## Settings of the workers\n",
            settings(DeciderSettings),
            "## Settings of the learner\n",
            settings(LearnerSettings),
            *(f"## Metrics of the {who}\n\n{metrics(catalogue)}" for who, catalogue in CATALOGUES.items()),
            "## The demo's report\n",
            "`demo-report.json`; a dot stands for an object within an object.\n",
            table(("key", "meaning"), ((f"`{key}`", meaning) for key, meaning in demo_report.KEYS)),
            "## Reasons of a decision\n",
            table(("reason", "meaning"), ((f"`{r.label}`", _meaning(Reason, r.name)) for r in Reason)),
            "## Reasons of a dead letter\n",
            table(("reason", "meaning"), ((f"`{code}`", meaning) for code, meaning in DEAD_LETTERS.items())),
            "## Reasons why a snapshot is refused\n",
            "Label of `headrace_decide_snapshots_refused`, and reason of the dead letter of its manifest. Chunks are "
            "raw bytes: what is wrong with one is told of the manifest that names it.\n",
            table(("reason", "meaning"), ((f"`{code}`", meaning) for code, meaning in REFUSALS.items())),
        ]
    )


def _meaning(kind: type, name: str) -> str:
    """The docstring under an enum's member, read from its source."""
    import inspect

    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} ="))
    return lines[at + 1].strip('"')


def main() -> int:
    """Write the page, or with --check compare it."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print(f"{PAGE.name} is not what the code says: run `make docs` and commit it", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
