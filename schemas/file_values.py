"""Values of `headrace.toml`: what a key may hold, whatever table it stands in, and what every table refuses.

Owns the words of an error that one value causes; which keys there are is `schemas.task_file`'s.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from schemas.expressions import check_expression
from schemas.file_errors import did_you_mean
from schemas.limits import LIMITS

AMOUNT_MAX = 1e18
"""Bounds and weights: their squares, and sums of those, are far from the largest float32 (3.4e38), in which rewards
are written. Exploration's own numbers stay as far from infinity."""
DURATION_MS_MAX = 400 * 86_400_000
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)")
_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$"


def duration_ms(value: object) -> int:
    """Milliseconds of a duration with its unit: 500ms, 2s, 5m, 1h, 7d. Raises ValueError.

    >>> duration_ms("1.5s"), duration_ms("1h")
    (1500, 3600000)
    """
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError('expected a duration with its unit, such as "500ms", "2s", "5m", "1h" or "7d"')
    milliseconds = float(found[1]) * _UNITS_MS[found[2]]
    if not milliseconds.is_integer() or milliseconds > DURATION_MS_MAX:
        raise ValueError('expected whole milliseconds, at most "400d"')
    return int(milliseconds)


def jmespath_text(value: object) -> str:
    """A jmespath expression. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("expected a jmespath expression as text")
    check_expression(value)
    return value


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # a number here


def _feature_value(value: object) -> object:
    """A feature value as JSON has it; whole numbers become floats so that 1 and 1.0 are one definition."""
    if isinstance(value, bool | str):
        return value
    if _is_finite(value):
        return float(value)  # type: ignore[arg-type]  # checked in the line above
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, list) and all(map(_is_finite, value)):
        return [float(item) for item in value]
    raise ValueError("expected a finite number, text, true or false, a list of texts or a list of numbers")


def _action_id(value: str) -> str:
    size, limit = len(value.encode()), LIMITS.name_bytes_max  # requests and outcomes count bytes as well
    if size > limit:
        raise ValueError(f"expected at most {limit} bytes of UTF-8, it has {size}: give the action a shorter id")
    return value


def _bound(value: float) -> float:
    if abs(value) > AMOUNT_MAX:
        raise ValueError(
            f"expected a number from -{AMOUNT_MAX:g} to {AMOUNT_MAX:g}, near what rewards really reach: what lies "
            "beyond is clipped there, and exploration grows with the bounds"
        )
    return value


Duration = Annotated[int, BeforeValidator(duration_ms), PlainSerializer(lambda ms: f"{ms}ms")]
Expression = Annotated[str, BeforeValidator(jmespath_text)]
RewardBound = Annotated[float, AfterValidator(_bound)]
Name = Annotated[str, Field(pattern=_NAME)]
ActionId = Annotated[str, Field(min_length=1), AfterValidator(_action_id)]
Identifier = Annotated[str, Field(min_length=1, max_length=256)]
FeatureName = Annotated[str, Field(min_length=1, max_length=64)]
AnyValue = Annotated[Any, BeforeValidator(_feature_value)]


class Table(BaseModel):
    """A table of the file: unknown keys are refused, with the nearest known one."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in value if isinstance(value, dict) else ():
            if key not in known:
                raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), known)}")
        return value
