"""A foreign event becomes an outcome: the field paths of a `[[sources]]` entry, compiled once.

Pure. A shop's existing order or click topic works unchanged: ids may be numbers there, a flag may be the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jmespath

from schemas.bounds import LIMITS, BadRecord, Limits
from schemas.expressions import FAILURES
from schemas.intake import outcome_of
from schemas.records import Outcome
from schemas.task import FieldRule, Source

_TEXTS = ("subject", "type", "decision_id", "action_id", "outcome_id")


class SourceMapping:
    """`Source` with its paths compiled."""

    def __init__(self, source: Source) -> None:
        """Raises jmespath's ParseError for a path that is none; `headrace apply` has refused those."""
        self.source = source
        rules: Mapping[str, FieldRule | None] = {
            "subject": source.subject,
            "type": source.type,
            "value": source.value,
            "decision_id": source.decision_id,
            "action_id": source.action_id,
            "outcome_id": source.outcome_id,
            "slot": source.slot,
            "time_ms": source.time,
        }
        self._constants = {name: rule.constant for name, rule in rules.items() if rule and rule.path is None}
        self._paths = {name: jmespath.compile(rule.path) for name, rule in rules.items() if rule and rule.path}
        self._where = jmespath.compile(source.where) if source.where else None

    def outcome(self, event: Any, limits: Limits = LIMITS) -> Outcome | None:
        """The outcome of one event, None when `where` leaves it out.

        Raises BadRecord: missing-field, wrong-type, not-finite, out-of-range, too-large.
        """
        if self._where is not None and self._found("where", self._where, event) is not True:
            return None
        fields: dict[str, Any] = dict(self._constants)
        for name, path in self._paths.items():
            found = self._found(name, path, event)
            if found is not None:
                fields[name] = _converted(name, found)
        if "value" in self._paths and "value" not in fields:
            raise BadRecord("missing-field", f"value: {self.source.value.path} finds nothing")
        return outcome_of(fields, limits)

    def _found(self, name: str, path: Any, event: Any) -> Any:
        try:
            return path.search(event)
        except FAILURES as error:
            raise BadRecord("wrong-type", f"{name}: {error}") from error


def _converted(name: str, found: Any) -> Any:
    """What people's topics hold where we hold text or a number: whole numbers as ids, flags and decimals as values."""
    if name in _TEXTS and isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if name == "value" and isinstance(found, bool | Decimal):
        return float(found)
    if name == "time_ms" and not isinstance(found, int):
        return None  # informative only: a date as text is no reason to lose an outcome
    return found
