"""Writes `cases.json`: run once when a case is added; existing cases keep their bytes.

python -m tests.schemas.bad_inputs.write_corpus
"""

from __future__ import annotations

import io
import json
import re
import struct
from dataclasses import replace
from typing import Any

import fastavro
import numpy as np

from schemas import codec
from schemas.arrays import Strings
from schemas.blocks import Tick
from schemas.records import Candidate, Decision, TaskRecord
from schemas.registry import FileRegistry
from tests.schemas.bad_inputs.corpus import PLACE
from tests.schemas.messages import (
    decision_block,
    decision_columns,
    example_outcome,
    example_request,
    outcome_block,
    transition_block,
)

REGISTRY = FileRegistry()
Piece = tuple[bytes, int]
NAN, INF = float("nan"), float("inf")
OUTCOME = codec.encode(example_outcome(), REGISTRY)
REQUEST = codec.encode(example_request(), REGISTRY)
TASK = codec.encode(TaskRecord(b"f" * 16, "support", "task", "{}"), REGISTRY)


def long(value: int) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, "long", value)
    return stream.getvalue()


def header(name: str) -> bytes:
    return b"\0" + REGISTRY.id_of(name).to_bytes(4, "big")


def body_of(name: str, fields: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, REGISTRY.reader_of(name).avro, fields)
    return header(name) + stream.getvalue()


def block_fields(block: Any) -> dict[str, Any]:
    message = codec.encode(block, REGISTRY)
    schema = REGISTRY.reader_of(type(block).__name__).avro
    return dict(fastavro.schemaless_reader(io.BytesIO(message[5:]), schema, None))


def block_with(block: Any, **changes: Any) -> bytes:
    """The block with fields as they never come out of our own encoder."""
    return body_of(type(block).__name__, {**block_fields(block), **changes})


def framing() -> list[tuple[str, str, str, Any]]:
    return [
        ("no bytes at all", "Outcome", "empty", b""),
        ("a first byte that is neither Avro nor JSON", "Outcome", "bad-magic", b"\x01" + OUTCOME[1:]),
        ("plain text", "DecisionRequest", "bad-magic", b"hello"),
        ("only half of the header", "Outcome", "truncated", b"\0\0\0"),
        ("the id of no schema", "Outcome", "unknown-schema", b"\0\xff\xff\xff\xff" + OUTCOME[5:]),
        ("an outcome in the requests topic", "DecisionRequest", "wrong-type", OUTCOME),
        ("a request in the journal", "DecisionBlock", "wrong-type", REQUEST),
        ("a tick in transitions", "TransitionBlock", "wrong-type", codec.encode(Tick(), REGISTRY)),
        ("ten megabytes behind a valid header", "Outcome", "too-large", [(header("Outcome"), 1), (b"\0", 10_000_000)]),
        ("ten megabytes of JSON", "DecisionRequest", "too-large", [(b'{"a":"', 1), (b"x", 10_000_000), (b'"}', 1)]),
        ("a byte too many", "Outcome", "trailing-bytes", OUTCOME + b"\0"),
        ("two messages in one", "DecisionRequest", "trailing-bytes", REQUEST + REQUEST),
        ("a tick with a body", "Tick", "trailing-bytes", header("Tick") + b"\0"),
    ]


def cut() -> list[tuple[str, str, str, Any]]:
    """Truncated at every kind of field."""
    at = {
        "in a union's branch": OUTCOME[:5],
        "in a string": OUTCOME[:8],
        "before a string": OUTCOME[:10],
        "in a double": OUTCOME[: OUTCOME.index(b"click") + 9],
        "in a long": OUTCOME[:-1],
    }
    cases = [(f"an outcome cut {where}", "Outcome", "truncated", part) for where, part in at.items()]
    blocks = {
        "DecisionBlock": decision_block(decision_columns(1, 3)),
        "TransitionBlock": transition_block(decision_columns(1, 3)),
        "OutcomeBlock": outcome_block(3),
    }
    for name, block in blocks.items():
        message = codec.encode(block, REGISTRY)
        for share in (1, 5, 9):
            part = message[: 5 + (len(message) - 5) * share // 10]
            cases.append((f"a {name} cut at {share}0 %", name, "truncated", part))
        cases.append((f"a {name} without its last byte", name, "truncated", message[:-1]))
        cases.append((f"a {name} with a byte too many", name, "trailing-bytes", message + b"\0"))
    return [
        *cases,
        ("a task record cut in its fixed fingerprint", "TaskRecord", "truncated", TASK[:12]),
        ("a task record cut before its boolean", "TaskRecord", "truncated", TASK[:-1]),
        ("a request cut in a map", "DecisionRequest", "truncated", REQUEST[: REQUEST.index(b"where")]),
        ("a request cut in a vector", "DecisionRequest", "truncated", REQUEST[: REQUEST.index(b"face") + 9]),
    ]


def numbers() -> list[tuple[str, str, str, Any]]:
    head = header("Outcome")
    ids = head + b"\0" + b"\2s"
    type_and_value = b"\x0aclick" + struct.pack("<d", 1)
    context = header("DecisionRequest") + b"\2d\2t\2s"
    vector = b"\2\2v\x08\2" + struct.pack("<f", NAN) + b"\0\0" + b"\0" * 9
    return [
        ("a value that is NaN", "Outcome", "not-finite", codec.encode(example_outcome(value=NAN), REGISTRY)),
        ("a value that is infinite", "Outcome", "not-finite", codec.encode(example_outcome(value=INF), REGISTRY)),
        (
            "a value that is minus infinity",
            "Outcome",
            "not-finite",
            codec.encode(example_outcome(value=-INF), REGISTRY),
        ),
        (
            "a feature that is NaN",
            "DecisionRequest",
            "not-finite",
            codec.encode(example_request(context={"age": NAN}), REGISTRY),
        ),
        (
            "a candidate's feature that is infinite",
            "DecisionRequest",
            "not-finite",
            codec.encode(example_request(candidates=[Candidate("a", {"x": INF})], baseline=None), REGISTRY),
        ),
        ("a vector with NaN", "DecisionRequest", "not-finite", context + vector),
        (
            "bounds that are NaN",
            "DecisionRequest",
            "not-finite",
            codec.encode(example_request(bounds=(0.0, NAN)), REGISTRY),
        ),
        (
            "a decision with a propensity that is NaN",
            "Decision",
            "not-finite",
            codec.encode(Decision("d", "t", "s", ["a"], [NAN], 1, "policy"), REGISTRY),
        ),
        ("a string of negative length", "Outcome", "negative-length", head + b"\0" + b"\1"),
        ("a string of a terabyte", "Outcome", "too-large", head + b"\0" + long(2**40)),
        ("a string longer than the message", "Outcome", "truncated", head + b"\0" + long(100) + b"s"),
        ("a varint of eleven bytes", "Outcome", "bad-varint", head + b"\0" + b"\xff" * 10 + b"\1"),
        ("a varint of more than 64 bits", "Outcome", "bad-varint", head + b"\0" + b"\xff" * 9 + b"\2"),
        ("a slot of 33 bits", "Outcome", "out-of-range", ids + b"\0\0\2" + long(2**32) + type_and_value + b"\0"),
        ("a union's branch that does not exist", "Outcome", "bad-union", head + b"\4"),
        ("a union's branch below zero", "Outcome", "bad-union", head + b"\1"),
        ("a boolean of 2", "TaskRecord", "bad-boolean", TASK[:-1] + b"\2"),
        ("a subject in Latin-1", "Outcome", "bad-utf8", head + b"\0" + b"\x08M\xfcll" + OUTCOME[16:]),
        (
            "a subject with half a surrogate pair",
            "Outcome",
            "bad-utf8",
            head + b"\0" + b"\6\xed\xa0\x80" + OUTCOME[16:],
        ),
        ("a map of two billion features", "DecisionRequest", "too-many-items", context + long(2**31)),
        (
            "a block of the smallest count there is",
            "DecisionRequest",
            "too-many-items",
            context + long(-(2**63)) + b"\0",
        ),
        (
            "a map whose block size is wrong",
            "DecisionRequest",
            "bad-block",
            context + b"\1" + long(5) + b"\2a\4\0\0" + b"\0" * 9,
        ),
        ("more features than bytes", "DecisionRequest", "truncated", context + long(1000) + b"\2a"),
    ]


def limits() -> list[tuple[str, str, str, Any]]:
    request, outcome = example_request(), example_outcome()
    many = [Candidate("a")] * 65_537
    encoded = [
        ("a decision id of 65 bytes", "DecisionRequest", "too-large", replace(request, decision_id="d" * 65)),
        ("a subject of 257 bytes", "Outcome", "too-large", replace(outcome, subject="s" * 257)),
        ("a text of 100 kB", "DecisionRequest", "too-large", replace(request, context={"t": "x" * 100_000})),
        (
            "a name of a feature of 300 bytes",
            "DecisionRequest",
            "too-large",
            replace(request, context={"x" * 300: 1.0}),
        ),
        (
            "two thousand features",
            "DecisionRequest",
            "too-many-items",
            replace(request, context={f"{index:04}": 1.0 for index in range(2000)}),
        ),
        (
            "ten thousand strings in one feature",
            "DecisionRequest",
            "too-many-items",
            replace(request, context={"tags": ["x"] * 10_000}),
        ),
        ("65,537 candidates", "DecisionRequest", "too-many-items", replace(request, candidates=many)),
        ("no candidates", "DecisionRequest", "empty-candidates", replace(request, candidates=[])),
        ("a baseline that is no candidate", "DecisionRequest", "out-of-range", replace(request, baseline=2)),
        ("no slots", "DecisionRequest", "out-of-range", replace(request, slots=0)),
        ("bounds the wrong way round", "DecisionRequest", "out-of-range", replace(request, bounds=(2.0, 1.0))),
        ("a step below zero", "DecisionRequest", "out-of-range", replace(request, step=-1)),
        ("an empty decision id", "DecisionRequest", "missing-field", replace(request, decision_id="")),
        (
            "a candidate without an id",
            "DecisionRequest",
            "missing-field",
            replace(request, candidates=[Candidate("")], baseline=None),
        ),
        ("an empty subject", "Outcome", "missing-field", replace(outcome, subject="")),
        ("an empty type", "Outcome", "missing-field", replace(outcome, type="")),
        ("a slot below zero", "Outcome", "out-of-range", replace(outcome, slot=-1)),
    ]
    return [(name, expect, reason, codec.encode(record, REGISTRY)) for name, expect, reason, record in encoded]


def json_inputs() -> list[tuple[str, str, str, Any]]:
    start = b'{"decision_id":"d","task":"t","subject":"s",'
    return [
        ("JSON that ends too early", "Outcome", "bad-json", b'{"subject":"s","type":'),
        ("JSON with a comma too many", "Outcome", "bad-json", b'{"subject":"s","type":"click",}'),
        ("JSON with something behind it", "Outcome", "bad-json", b'{"subject":"s","type":"click"} {}'),
        ("JSON with NaN", "Outcome", "bad-json", b'{"subject":"s","type":"click","value":NaN}'),
        (
            "JSON with a number beyond 64 bits of float",
            "Outcome",
            "not-finite",
            b'{"subject":"s","type":"click","value":1e999}',
        ),
        ("JSON in Latin-1", "Outcome", "bad-utf8", b'{"subject":"M\xfcller","type":"click"}'),
        ("JSON with half a surrogate pair", "Outcome", "bad-json", b'{"subject":"\\ud800","type":"click"}'),
        (
            "JSON lists nested 100,000 times",
            "DecisionRequest",
            "too-deep",
            [(start + b'"context":', 1), (b"[", 100_000), (b"]", 100_000), (b"}", 1)],
        ),
        ("JSON objects nested 50,000 times and never closed", "Outcome", "too-deep", [(b'{"a":', 50_000)]),
        ("JSON without a subject", "Outcome", "missing-field", b'{"type":"click"}'),
        ("JSON without a type", "Outcome", "missing-field", b'{"subject":"s"}'),
        ("JSON without a decision id", "DecisionRequest", "missing-field", b'{"task":"t","subject":"s"}'),
        ("JSON with a subject that is a number", "Outcome", "wrong-type", b'{"subject":7,"type":"click"}'),
        ("JSON with a value that is a string", "Outcome", "wrong-type", b'{"subject":"s","type":"click","value":"1"}'),
        ("JSON with a value that is true", "Outcome", "wrong-type", b'{"subject":"s","type":"click","value":true}'),
        ("JSON with a slot that is a fraction", "Outcome", "wrong-type", b'{"subject":"s","type":"click","slot":1.5}'),
        (
            "JSON with a time beyond 64 bits",
            "Outcome",
            "out-of-range",
            b'{"subject":"s","type":"click","time_ms":18446744073709551615}',
        ),
        ("JSON with a misspelt field", "DecisionRequest", "unknown-field", start + b'"deadline":5}'),
        ("JSON with a context that is a list", "DecisionRequest", "wrong-type", start + b'"context":["a"]}'),
        ("JSON with a feature that is null", "DecisionRequest", "wrong-type", start + b'"context":{"a":null}}'),
        ("JSON with a feature that is an object", "DecisionRequest", "wrong-type", start + b'"context":{"a":{"b":1}}}'),
        (
            "JSON with a list of numbers and strings",
            "DecisionRequest",
            "wrong-type",
            start + b'"context":{"a":[1,"b"]}}',
        ),
        (
            "JSON with a vector too large for 32 bits",
            "DecisionRequest",
            "not-finite",
            start + b'"context":{"v":[1e39]}}',
        ),
        ("JSON with no candidates", "DecisionRequest", "empty-candidates", start + b'"candidates":[]}'),
        ("JSON with candidates that are strings", "DecisionRequest", "wrong-type", start + b'"candidates":["a","b"]}'),
        ("JSON with bounds of three numbers", "DecisionRequest", "wrong-type", start + b'"bounds":[1,2,3]}'),
    ]


def columns() -> list[tuple[str, str, str, Any]]:
    """Blocks whose columns do not fit together."""
    decisions = decision_block(decision_columns(1, 3))
    transitions, outcomes = transition_block(decision_columns(2, 3)), outcome_block(3)
    fields = block_fields(decisions)
    counts = fields["num_candidates"]
    empty_block = {key: [] if isinstance(value, list) else value for key, value in block_fields(outcomes).items()}
    return [
        (
            "a block without rows",
            "OutcomeBlock",
            "empty-block",
            body_of("OutcomeBlock", {**empty_block, "num_rows": 0}),
        ),
        ("a block of 65,536 rows", "OutcomeBlock", "out-of-range", block_with(outcomes, num_rows=65_536)),
        ("a block of minus one rows", "DecisionBlock", "out-of-range", block_with(decisions, num_rows=-1)),
        (
            "a context a number short",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, context=fields["context"][:-1]),
        ),
        (
            "keys that are no multiple of 8 bytes",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, subject_keys=fields["subject_keys"][:-1]),
        ),
        (
            "keys of fewer rows",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, subject_keys=fields["subject_keys"][:-8]),
        ),
        (
            "a row without candidates",
            "DecisionBlock",
            "out-of-range",
            block_with(decisions, num_candidates=[0, counts[0] + counts[1], counts[2]]),
        ),
        (
            "a row of minus one candidates",
            "DecisionBlock",
            "out-of-range",
            block_with(decisions, num_candidates=[-1, *counts[1:]]),
        ),
        (
            "candidates beyond their columns",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, num_candidates=[counts[0] + 1, *counts[1:]]),
        ),
        (
            "a propensity too few",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, propensities=fields["propensities"][:-1]),
        ),
        (
            "more tokens counted than there are",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, context_token_counts=[9, 9, 9]),
        ),
        (
            "a token count below zero",
            "DecisionBlock",
            "out-of-range",
            block_with(decisions, context_token_counts=[-1, 1, 0]),
        ),
        (
            "token values without tokens",
            "DecisionBlock",
            "bad-columns",
            block_with(decisions, context_token_values=[1.0] * 99),
        ),
        ("a catalogue of 15 bytes", "DecisionBlock", "bad-columns", block_with(decisions, catalogue=b"c" * 15)),
        ("subjects of fewer rows", "DecisionBlock", "bad-columns", block_with(decisions, subjects=["a"])),
        ("no slots in a block", "DecisionBlock", "out-of-range", block_with(decisions, num_slots=0)),
        ("a width below zero", "DecisionBlock", "out-of-range", block_with(decisions, action_width=-1)),
        (
            "positions that fall",
            "TransitionBlock",
            "out-of-range",
            block_with(transitions, positions=[9, 8, 10], prev=1),
        ),
        ("positions at prev", "TransitionBlock", "out-of-range", block_with(transitions, positions=[1, 8, 10], prev=1)),
        ("closing times that fall", "TransitionBlock", "out-of-range", block_with(transitions, closed_at_ms=[3, 2, 4])),
        ("a bucket of nobody", "TransitionBlock", "out-of-range", block_with(transitions, buckets=b"\0\1\5")),
        ("a reward that is NaN", "TransitionBlock", "not-finite", block_with(transitions, rewards=[0.0, NAN, 1.0])),
        (
            "a learnt row with NaN",
            "TransitionBlock",
            "bad-row",
            block_with(transitions, buckets=b"\4\0\4", context=[0.0] * 3 + [NAN] * 3 + [0.0] * 3),
        ),
        ("an outcome that is infinite", "OutcomeBlock", "not-finite", block_with(outcomes, values=[0.0, INF, 1.0])),
        ("offsets that stand still", "OutcomeBlock", "out-of-range", block_with(outcomes, source_offsets=[5, 5, 6])),
        ("a type of no name", "OutcomeBlock", "out-of-range", block_with(outcomes, types=[0, 3, 1])),
        (
            "an outcome id in Latin-1",
            "OutcomeBlock",
            "bad-utf8",
            codec.encode(
                replace(
                    outcomes,
                    outcome_ids=Strings(np.frombuffer(b"M\xfcl", np.uint8), np.arange(3), np.ones(3, np.int32)),
                ),
                REGISTRY,
            ),
        ),
    ]


def spoilt_rows() -> list[tuple[str, str, str, Any, list[int]]]:
    """Sound blocks in which single rows are quarantined."""

    def spoilt(change: Any) -> bytes:
        block = decision_block(decision_columns(7, 4, num_slots=1, continuous=True))
        change(block.columns)
        return codec.encode(block, REGISTRY)

    def put(name: str, index: Any, value: Any) -> Any:
        def change(columns: Any) -> None:
            array = getattr(columns, name, None)
            (getattr(columns.features, name) if array is None else array)[index] = value

        return change

    block = decision_columns(7, 4, continuous=True)
    second = int(block.features.num_candidates[0])
    token_row = int(np.argmax(block.features.context_token_counts > 0))
    cases = [
        ("a context with NaN", put("context", (1, 0), NAN), [1]),
        ("a context with infinity", put("context", (3, 2), INF), [3]),
        ("a candidate with NaN", put("actions", (second, 1), NAN), [1]),
        ("a token value that is infinite", put("context_token_values", 0, INF), [token_row]),
        ("a token out of range", put("context_tokens", 0, -5), [token_row]),
        ("a drawn value that is NaN", put("values", (2, 0), NAN), [2]),
        ("bounds that are infinite", put("bounds", (2, 1), INF), [2]),
        ("propensities that do not sum to one", put("propensities", second, 2**23), [1]),
        ("a propensity below zero", put("propensities", second, -1), [1]),
        ("a choice beyond the candidates", put("chosen", (1, 0), 99), [1]),
        ("no choice at all", put("chosen", (0, 0), -1), [0]),
    ]
    return [(f"a row with {name}", "DecisionBlock", "", spoilt(change), rows) for name, change, rows in cases]


def pieces(payload: bytes | list[Piece]) -> list[list[Any]]:
    """The payload as [hex, repetitions], runs of up to eight bytes folded."""
    if not isinstance(payload, bytes):
        return [[part.hex(), times] for part, times in payload]
    parts, first = [], 0
    for run in re.finditer(rb"(.{1,8}?)\1{63,}", payload, re.DOTALL):
        parts.append([payload[first : run.start()].hex(), 1])
        parts.append([run[1].hex(), len(run[0]) // len(run[1])])
        first = run.end()
    return [*parts, [payload[first:].hex(), 1]]


def main() -> None:
    known = {entry["name"]: entry for entry in json.loads(PLACE.read_text())} if PLACE.exists() else {}
    entries = []
    for name, expect, reason, payload, *rows in (
        *framing(),
        *cut(),
        *numbers(),
        *limits(),
        *json_inputs(),
        *columns(),
        *spoilt_rows(),
    ):
        entry: dict[str, Any] = {"name": name, "expect": expect, "reason": reason, "pieces": pieces(payload)}
        if rows:
            entry["unsound"] = rows[0]
        entries.append(json.dumps(known.get(name, entry)))
    PLACE.write_text("[\n" + ",\n".join(entries) + "\n]\n")


if __name__ == "__main__":
    main()
