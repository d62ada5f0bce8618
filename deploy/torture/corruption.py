"""Messages that a careless or hostile producer sends, each with the reason for which it must be refused.

Pure. Every kind is made from a good message, so that nothing but the planted mistake is wrong with it. The reasons are
written down here and not asked of the decoder: it is the decoder that is being tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

JsonObject = dict[str, Any]
OVERSIZED = "oversized"
TEXT_BYTES_TOO_MANY = 80_000
"""More than `schemas.limits` lets one string have, less than Kafka lets a message have."""
NESTING = 5_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be wrong."""

    name: str
    reason: str
    """Code that its dead letter must carry."""
    make: Callable[[JsonObject, bytes], bytes]
    """(fields of a good message, the same message in Avro) → the bad one."""


def _json(fields: JsonObject, **changes: Any) -> bytes:
    return json.dumps({**fields, **changes}).encode()


def _without(fields: JsonObject, name: str) -> bytes:
    return json.dumps({key: value for key, value in fields.items() if key != name}).encode()


_FRAMING: Final = (
    Kind("empty", "empty", lambda fields, avro: b""),
    Kind("plain-text", "bad-magic", lambda fields, avro: b"please route this"),
    Kind("cut-json", "bad-json", lambda fields, avro: _json(fields)[:-3]),
    Kind("array-bomb", "bad-magic", lambda fields, avro: b"[" * NESTING),
    Kind("nested-json", "too-deep", lambda fields, avro: b'{"subject":' + b'{"a":' * NESTING + b"1" + b"}" * NESTING),
    Kind("no-subject", "missing-field", lambda fields, avro: _without(fields, "subject")),
    Kind("subject-number", "wrong-type", lambda fields, avro: _json(fields, subject=7)),
    Kind("not-utf8", "bad-utf8", lambda fields, avro: _json(fields, subject="@").replace(b'"@"', b'"\xff\xfe"')),
    Kind("half-a-header", "truncated", lambda fields, avro: avro[:3]),
    Kind("cut-avro", "truncated", lambda fields, avro: avro[:-1]),
    Kind("trailing-byte", "trailing-bytes", lambda fields, avro: avro + b"\0"),
    Kind("foreign-schema", "unknown-schema", lambda fields, avro: b"\0\x7f\xff\xff\xff" + avro[5:]),
)

REQUESTS: Final = (
    *_FRAMING,
    Kind("nan-feature", "bad-json", lambda fields, avro: _json(fields, context={"price": float("nan")})),
    Kind("context-is-text", "wrong-type", lambda fields, avro: _json(fields, context="price: 3")),
    Kind("no-such-task", "unknown-task", lambda fields, avro: _json(fields, task="no-such-task")),
)

OUTCOMES: Final = (
    *_FRAMING,
    Kind("nan-value", "bad-json", lambda fields, avro: _json(fields, value=float("nan"))),
    Kind("value-is-text", "wrong-type", lambda fields, avro: _json(fields, value="much")),
    Kind("no-type", "missing-field", lambda fields, avro: _without(fields, "type")),
)

_OVERSIZED_REQUEST: Final = Kind(
    OVERSIZED, "too-large", lambda fields, avro: _json(fields, context={"note": "x" * TEXT_BYTES_TOO_MANY})
)
_OVERSIZED_OUTCOME: Final = Kind(
    OVERSIZED, "too-large", lambda fields, avro: _json(fields, outcome_id="x" * TEXT_BYTES_TOO_MANY)
)

KINDS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "requests": {kind.name: kind for kind in (*REQUESTS, _OVERSIZED_REQUEST)},
    "outcomes": {kind.name: kind for kind in (*OUTCOMES, _OVERSIZED_OUTCOME)},
}
"""By topic and name."""

KEY_PREFIX = "spoilt:"
"""Kafka key of a planted message: ``spoilt:<kind>``. Whoever judges the run knows it by that, not by decoding it."""


def key_of(kind: Kind) -> bytes:
    """Message key of a planted message."""
    return f"{KEY_PREFIX}{kind.name}".encode()


def kind_of(topic: str, key: bytes) -> Kind | None:
    """The kind of a planted message of a topic (without namespace), None for an honest one."""
    text = key.decode(errors="replace")
    return KINDS[topic][text.removeprefix(KEY_PREFIX)] if text.startswith(KEY_PREFIX) else None
