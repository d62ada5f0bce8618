"""Spoilt bytes raise BadRecord and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import codec
from schemas.arrays import Strings
from schemas.bounds import BadRecord
from schemas.columns import sound_rows
from schemas.registry import FileRegistry
from tests.schemas.messages import BLOCKS, RECORDS

REGISTRY = FileRegistry()
DECODERS: list[Callable[..., Any]] = [
    codec.decode,
    codec.decode_request,
    codec.decode_outcome,
    codec.decode_foreign,
]


def survives(payload: bytes) -> None:
    """Every decoder answers or refuses; what it answers can be used."""
    for decoder in DECODERS:
        try:
            message = decoder(payload, REGISTRY)
        except BadRecord:
            continue
        else:
            if hasattr(message, "columns"):
                sound_rows(message)
            for name in getattr(message, "__slots__", ()):
                if isinstance(column := getattr(message, name), Strings):
                    column.tolist()


@settings(max_examples=200)
@given(BLOCKS | RECORDS, st.data())
def test_a_valid_message_with_spoilt_bytes(message: Any, data: st.DataObject) -> None:
    payload = bytearray(codec.encode(message, REGISTRY))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        match data.draw(st.sampled_from(["replace", "remove", "insert", "cut", "repeat"])):
            case "replace":
                payload[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
            case "remove":
                del payload[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                payload[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "cut":
                del payload[at:]
            case _:
                payload[at:at] = payload[: data.draw(st.integers(1, 64))]
        if not payload:
            break
    survives(bytes(payload))


@given(st.sampled_from(["TaskRecord", "DecisionBlock", "TransitionBlock", "OutcomeBlock", "Progress"]), st.binary())
def test_rubbish_after_a_valid_header(name: str, rubbish: bytes) -> None:
    survives(b"\0" + REGISTRY.id_of(name).to_bytes(4, "big") + rubbish)


@given(st.binary(max_size=200))
def test_rubbish(rubbish: bytes) -> None:
    survives(rubbish)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["decision_id", "task", "subject", "type", "context", "candidates", "features", "bounds"])
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["decision_id", "task", "subject", "type", "context", "candidates", "value",
                                        "action_id", "slot", "bounds", "step", "time_ms"]), JSON))  # fmt: skip
def test_json_of_any_shape(fields: dict[str, Any]) -> None:
    survives(orjson.dumps(fields))


@given(st.text(alphabet='{}[]",:0123456789.eE-\\unlltrefas', max_size=80))
def test_what_looks_like_json(text: str) -> None:
    survives(b"{" + text.encode())
