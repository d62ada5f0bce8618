"""Intake: what users send, from plain values to checked records.

A DecisionRequest or an Outcome arrives as Avro or as JSON; both become plain Python values first and pass through
here, so both are refused for the same reasons. Unknown fields are refused, not dropped: a misspelt `deadline_ms`
that is silently ignored costs a shop days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

import numba
import numpy as np
import orjson

from schemas.arrays import U8
from schemas.bounds import BadRecord, Limits, bad, too_large
from schemas.frozen import names_of
from schemas.records import Candidate, DecisionRequest, Features, FeatureValue, Outcome, Vector
from schemas.varints import BAD_UTF8, TOO_DEEP, utf8_end

_REQUEST = frozenset(names_of(DecisionRequest))
_USUAL = frozenset(("decision_id", "task", "subject", "context", "candidates"))
"""Of a request; the first ones of its fields."""
_CANDIDATE = frozenset(names_of(Candidate))
_OUTCOME = frozenset(names_of(Outcome))
_FLOAT, _STR = {float}, {str}
_action_id_of, _features_of = itemgetter("action_id"), itemgetter("features")
UTF8_BYTES_MAX = 4
"""Of one character: a text with a quarter of the limit's characters need not be encoded to be measured."""
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPEN = (ord("["), ord("{"))
_CLOSE = (ord("]"), ord("}"))


@numba.njit(cache=True, nogil=True)
def _json_depth(buffer: U8) -> int:
    """Deepest nesting of brackets outside strings. Runs before the parser, which would recurse."""
    depth = deepest = 0
    in_string = False
    index = 0
    while index < len(buffer):
        byte = buffer[index]
        if in_string:
            if byte == _BACKSLASH:
                index += 1
            elif byte == _QUOTE:
                in_string = False
        elif byte == _QUOTE:
            in_string = True
        elif byte in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif byte in _CLOSE:
            depth -= 1
        index += 1
    return deepest


def parse_json(view: U8, limits: Limits) -> Any:
    """Plain values of a JSON message; raises BadRecord: too-large, bad-utf8, too-deep, bad-json."""
    if len(view) > limits.message_bytes_max:
        raise too_large(len(view), limits)
    if utf8_end(view, 0, len(view)) < 0:
        raise bad(BAD_UTF8, "JSON", 0)
    if _json_depth(view) > limits.depth_max:
        raise bad(TOO_DEEP, "JSON", 0)
    try:
        return orjson.loads(view.data)
    except orjson.JSONDecodeError as error:
        reason = "not-finite" if "infinity" in str(error) else "bad-json"
        raise BadRecord(reason, str(error)) from error


def _wrong(path: str, expected: str, value: object) -> BadRecord:
    return BadRecord("wrong-type", f"{path} is {type(value).__name__}, expected {expected}")


def _fields(value: object, known: frozenset[str], path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, "an object", value)
    if not known.issuperset(value):
        raise BadRecord("unknown-field", f"{path} has no field {min(value.keys() - known)!r}")
    return value


def _text(fields: Mapping[str, Any], name: str, bytes_max: int) -> str:
    """A required string, not empty."""
    text = _optional_text(fields, name, bytes_max)
    if text is None:
        raise BadRecord("missing-field", f"{name} is missing")
    return text


def _optional_text(fields: Mapping[str, Any], name: str, bytes_max: int) -> str | None:
    text = fields.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise _wrong(name, "a string", text)
    if not text:
        raise BadRecord("missing-field", f"{name} is empty")
    if len(text) * UTF8_BYTES_MAX > bytes_max and len(text.encode()) > bytes_max:
        raise BadRecord("too-large", f"{name} has {len(text.encode())} bytes, at most {bytes_max} are read")
    return text


def _integer(fields: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    number = fields.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int):
        raise _wrong(name, "an integer", number)
    if not low <= number <= high:
        raise BadRecord("out-of-range", f"{name} is {number}, expected {low} to {high}")
    return number


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, "a number", value)
    number = float(value)
    if not math.isfinite(number):
        raise BadRecord("not-finite", f"{path} is {number}")
    return number


def _vector(values: list[Any], path: str, limits: Limits) -> Vector:
    if len(values) > limits.num_vector_max:
        raise BadRecord("too-many-items", f"{path} has {len(values)} numbers, at most {limits.num_vector_max} are read")
    if not all(type(value) is float or type(value) is int for value in values):
        raise BadRecord("wrong-type", f"{path}: a list holds strings only or numbers only")
    with np.errstate(over="ignore"):
        array = np.array(values, np.float64).astype(np.float32)
    if not np.isfinite(array).all():
        raise BadRecord("not-finite", f"{path}[{int(np.argmin(np.isfinite(array)))}] is not finite as a 32-bit float")
    return Vector(array)


def _feature(value: object, path: str, limits: Limits) -> FeatureValue:
    if isinstance(value, str):
        if len(value) * UTF8_BYTES_MAX > limits.text_bytes_max and len(value.encode()) > limits.text_bytes_max:
            raise BadRecord("too-large", f"{path} is longer than {limits.text_bytes_max} bytes")
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, float | int):
        return _number(value, path)
    if isinstance(value, dict) and value.keys() == {"values"} and isinstance(value["values"], list):
        return _vector(value["values"], path, limits)  # as Avro has it
    if not isinstance(value, list):
        raise _wrong(path, "a number, string, boolean or list", value)
    if value and not isinstance(value[0], str):
        return _vector(value, path, limits)
    if len(value) > limits.num_tokens_max:
        raise BadRecord("too-many-items", f"{path} has {len(value)} strings, at most {limits.num_tokens_max} are read")
    if not all(type(item) is str for item in value):
        raise BadRecord("wrong-type", f"{path}: a list holds strings only or numbers only")
    if max(map(len, value), default=0) > limits.name_bytes_max:
        raise BadRecord("too-large", f"{path}: a string is longer than {limits.name_bytes_max} characters")
    return value


def _is_plain(value: Mapping[str, Any], limits: Limits) -> bool:
    """Whether all are finite floats with short names, which nearly all there is: a few calls for all features.

    A sum is finite only if every float in it is; one that overflows has its features looked at one by one.
    """
    return (
        set(map(type, value.values())) == _FLOAT
        and math.isfinite(sum(value.values()))
        and len(value) <= limits.num_features_max
        and max(map(len, value)) <= limits.name_bytes_max
    )


def _features(value: object, path: str, limits: Limits) -> Features:
    """The checked features; `value` itself where nothing had to be converted, because the parser made it for us."""
    if type(value) is dict and _is_plain(value, limits):
        return value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(path, "an object of named features", value)
    if len(value) > limits.num_features_max:
        raise BadRecord("too-many-items", f"{path} has {len(value)} features, at most {limits.num_features_max}")
    checked: Features = {}
    for name, item in value.items():
        if len(name) > limits.name_bytes_max:
            raise BadRecord("too-large", f"{path}: a name has {len(name)} characters, at most {limits.name_bytes_max}")
        checked[name] = _feature(item, f"{path}.{name}", limits)
    return checked


def _candidates(value: object, limits: Limits) -> list[Candidate] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _wrong("candidates", "a list", value)
    if not value:
        raise BadRecord("empty-candidates", "candidates is empty; leave it out when the task declares its catalogue")
    if len(value) > limits.num_candidates_max:
        raise BadRecord("too-many-items", f"{len(value)} candidates, at most {limits.num_candidates_max} are scored")
    candidates = _plain_candidates(value, limits)
    if candidates is not None:
        return candidates
    candidates = []
    for index, item in enumerate(value):
        fields = _fields(item, _CANDIDATE, f"candidates[{index}]")
        features = _features(fields.get("features"), f"candidates[{index}].features", limits)
        candidates.append(Candidate(_text(fields, "action_id", limits.name_bytes_max), features))
    return candidates


def _plain_candidates(items: list[Any], limits: Limits) -> list[Candidate] | None:
    """The candidates if each has a short id and finite floats only; None if any must be looked at by itself.

    Nearly all requests are like this, and most of a request is candidates: here a few calls check all of them.
    """
    try:
        ids, features = list(map(_action_id_of, items)), list(map(_features_of, items))
        values = list(chain.from_iterable(map(dict.values, features)))
        sizes = set(map(len, ids))
    except (KeyError, TypeError):
        return None
    if set(map(type, values)) != _FLOAT or not math.isfinite(sum(values)) or set(map(type, ids)) != _STR:
        return None
    if min(sizes) == 0 or max(sizes) > limits.name_bytes_max // UTF8_BYTES_MAX or set(map(len, items)) != {2}:
        return None
    names = set().union(*features)
    if max(map(len, names)) > limits.name_bytes_max or max(map(len, features)) > limits.num_features_max:
        return None
    return list(map(Candidate, ids, features))


def _bounds(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    if isinstance(value, dict) and value.keys() == {"low", "high"}:
        value = [value["low"], value["high"]]
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong("bounds", "[low, high]", value)
    low, high = _number(value[0], "bounds[0]"), _number(value[1], "bounds[1]")
    if not low < high:
        raise BadRecord("out-of-range", f"bounds are {low} and {high}, expected the lower one first")
    return low, high


_LONG_MAX = 2**63 - 1
_INT_MAX = 2**31 - 1


def request_of(value: object, limits: Limits) -> DecisionRequest:
    """The request in plain values; raises BadRecord with the field that is wrong."""
    fields = _fields(value, _REQUEST, "DecisionRequest")
    candidates = _candidates(fields.get("candidates"), limits)
    num_actions = len(candidates) if candidates is not None else limits.num_candidates_max
    usual = (
        _text(fields, "decision_id", limits.id_bytes_max),
        _text(fields, "task", limits.name_bytes_max),
        _text(fields, "subject", limits.name_bytes_max),
        _features(fields.get("context"), "context", limits),
        candidates,
    )
    if _USUAL.issuperset(fields):
        return DecisionRequest(*usual)
    return DecisionRequest(
        *usual,
        slots=_integer(fields, "slots", 1, limits.num_slots_max),
        bounds=_bounds(fields.get("bounds")),
        episode_id=_optional_text(fields, "episode_id", limits.name_bytes_max),
        step=_integer(fields, "step", 0, _INT_MAX),
        baseline=_integer(fields, "baseline", 0, num_actions - 1),
        deadline_ms=_integer(fields, "deadline_ms", 0, _LONG_MAX),
        time_ms=_integer(fields, "time_ms", -_LONG_MAX - 1, _LONG_MAX),
    )


def outcome_of(value: object, limits: Limits) -> Outcome:
    """The outcome in plain values; raises BadRecord with the field that is wrong."""
    fields = _fields(value, _OUTCOME, "Outcome")
    return Outcome(
        outcome_id=_optional_text(fields, "outcome_id", limits.name_bytes_max),
        subject=_text(fields, "subject", limits.name_bytes_max),
        decision_id=_optional_text(fields, "decision_id", limits.id_bytes_max),
        action_id=_optional_text(fields, "action_id", limits.name_bytes_max),
        slot=_integer(fields, "slot", 0, limits.num_slots_max - 1),
        type=_text(fields, "type", limits.id_bytes_max),
        value=_number(fields.get("value", 1.0), "value"),
        time_ms=_integer(fields, "time_ms", -_LONG_MAX - 1, _LONG_MAX),
    )
