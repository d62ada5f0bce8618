"""A registry that is away for some schemas, and comes back; and messages that wait for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from schemas.registered import RegisteredSchema
from schemas.registry import FileRegistry, RegistryUnavailable


class AwayRegistry(FileRegistry):
    """The file registry; while `away`, it gives no schema but those of the records named `known`."""

    def __init__(self, *known: str) -> None:
        super().__init__()
        self.away = True
        self.num_asked = 0
        self._known = set(known)

    def schema_of(self, schema_id: int) -> RegisteredSchema:
        found = self._schemas.get(schema_id)
        if self.away and (found is None or found.name not in self._known):
            self.num_asked += 1
            raise RegistryUnavailable("the schema registry did not answer: refused", "check that it runs")
        return super().schema_of(schema_id)


def message(payload: bytes | None, offset: int = 0) -> Any:
    """As librdkafka gives it."""
    return SimpleNamespace(
        value=lambda: payload,
        offset=lambda: offset,
        topic=lambda: "unit.tasks",
        partition=lambda: 0,
        timestamp=lambda: (1, 0),
        error=lambda: None,
    )
