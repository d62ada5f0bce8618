"""What is applied to a namespace: read the `tasks` topic once, to its end."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import lru_cache

from deploy import reading
from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.records import TaskRecord
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.task import Namespace, Source, Task, TaskTable
from schemas.topics import topic


@dataclass(slots=True)
class Definitions:
    """Everything that `headrace apply` has written."""

    table: TaskTable = field(default_factory=TaskTable)
    namespace: Namespace | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    """Live source mappings by topic."""
    records: dict[bytes, TaskRecord] = field(default_factory=dict)
    """Newest record per fingerprint."""

    @property
    def look_back_ms(self) -> int:
        """L = D + Wmax + bwmax (join.md)."""
        return self.table.dedupe_ms + self.table.max_window_ms + self.table.max_backward_ms

    def live(self, name: str) -> Task | None:
        """The task that decides under this name."""
        return self.table.named(name)

    def require_task(self, name: str | None) -> Task:
        """The task called `name`, or the only one. Raises `UserError` that lists what there is."""
        names = [task.name for task in self.table.current]
        if name is None and len(names) == 1:
            name = names[0]
        task = self.table.named(name) if name else None
        if task is None:
            if name is None and names:
                raise UserError(f"{len(names)} tasks are applied ({', '.join(names)})", "say which with --task")
            raise UserError(
                f"{f'no task {name!r}' if name else 'no task'} is applied (applied: {', '.join(names) or 'none'})",
                "apply it with `headrace apply headrace.toml`, or correct --task",
            )
        return task


def read_definitions(settings: CommonSettings, registry: Registry | None = None) -> Definitions:
    """Everything applied so far. Raises `UserError` when broker or topic is missing.

    What is no definition is passed over, as every worker does (`streams.tasks`), and told in a line on stderr.
    """
    registry = registry or open_registry(settings.schema_registry_url)
    found = Definitions()
    for entry in reading.read_all(settings, topic(settings.namespace, "tasks"), [0]):
        if not entry.value:
            continue  # a tombstone: only allowed once no journal record refers to it
        try:
            _take(found, decode(entry.value, registry, expect=TaskRecord))
        except (BadRecord, UserError) as error:
            why = " ".join(str(error).split())
            _say_once(
                f"{entry.where} is passed over: not a definition that this version reads ({why}); if it was written "
                "by `headrace apply`, apply it again with this version, or upgrade"
            )
    return found


@lru_cache(maxsize=1000)
def _say_once(line: str) -> None:
    """`headrace apply` reads the topic twice."""
    print(line, file=sys.stderr)


def _take(found: Definitions, record: TaskRecord) -> None:
    """Later records win; a definition is never forgotten, decisions made under it may still be open.

    Raises `BadRecord` or `UserError`, and takes nothing, when it is none.
    """
    if record.kind == "namespace":
        found.namespace = Namespace.from_canonical(record.definition)
    elif record.kind == "source":
        source = Source.from_canonical(record.definition)
        if record.retired:
            found.sources.pop(source.topic, None)
        else:
            found.sources[source.topic] = source
    elif record.kind == "task":
        found.table.apply(record)
    else:
        raise BadRecord("wrong-type", f"kind {record.kind!r}, expected task, namespace or source")
    found.records[record.fingerprint] = record
