"""The decide role on a real broker: what a shop hears, and what the log holds."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from schemas.codec import decode, encode
from schemas.decision_columns import PROPENSITY_ONE
from schemas.keys import partition_of
from schemas.records import Candidate, Decision, DecisionRequest
from tests.kafka.decider_process import START, DeciderProcess, Shop, decider, journaled, project, route
from tests.kafka.workers import REGISTRY, read_all, set_up, until


def test_answers_come_in_the_format_of_the_request_and_agree_with_the_journal(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace))
    candidates = [Candidate(f"a{k}", {"price": float(k)}) for k in range(4)]
    with decider(settings, tmp_path):
        shop = Shop(settings)
        for number in range(20):
            shop.send(route(number))
            request = DecisionRequest(f"o-{number}", "offer", f"subject-{number}", {"age": 3.0}, candidates)
            shop.send(encode(request, REGISTRY), request.subject)
        answers = shop.collect(40)
        shop.close()
    heard = {}
    for key, value in answers:
        answer = decode(value, REGISTRY, expect=Decision) if value[:1] == b"\0" else json.loads(value)
        fields = answer if isinstance(answer, dict) else {name: getattr(answer, name) for name in Decision.__slots__}
        assert fields["decision_id"].startswith("r-") == isinstance(answer, dict)
        assert key == fields["subject"].encode()
        heard[fields["decision_id"]] = fields
    assert len(heard) == 40
    rows = journaled(settings)
    assert len(rows) == 40
    for partition, block, row in rows:
        fields = heard[block.decision_ids[row]]
        columns = block.columns.rows(row, row + 1)
        chosen = int(columns.chosen[0, 0])
        first = int(block.columns.features.num_candidates[:row].sum())
        action = ["card", "refund", "other"][chosen] if block.task == "route" else block.action_ids[first + chosen]
        assert fields["actions"] == [action]
        assert fields["propensities"] == [int(columns.propensities[chosen]) / PROPENSITY_ONE]
        assert fields["reason"] == "no-snapshot"
        assert partition == partition_of(fields["subject"], 4)


def _bad_avro(request: DecisionRequest, replace: tuple[bytes, bytes]) -> bytes:
    payload = encode(request, REGISTRY)
    assert replace[0] in payload
    return payload.replace(*replace)


def test_twelve_kinds_of_bad_requests_leave_exact_reasons_and_the_rest_goes_on(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace))
    avro = DecisionRequest("avro-nan", "offer", "s", {"age": 1.2345}, [Candidate("x", {"price": 1.0})])
    bad: list[tuple[bytes, str, str | None]] = [
        (b"", "empty", None),
        (b"hello", "bad-magic", None),
        (b"\0\0", "truncated", None),
        (b"\0\xff\xff\xff\xff123", "unknown-schema", None),
        (encode(avro, REGISTRY)[:-3], "truncated", None),
        (encode(avro, REGISTRY) + b"\0", "trailing-bytes", None),
        (_bad_avro(avro, (struct.pack("<d", 1.2345), struct.pack("<d", float("nan")))), "not-finite", "avro-nan"),
        (b'{"decision_id": "b8", "task": "route", "subject": "s", "context": {"text": NaN}}', "bad-json", "b8"),
        (b'{"decision_id": "b9", "task": "route", "subject": "s", "kontext": {}}', "unknown-field", "b9"),
        (b'{"decision_id": "b10", "task": "route"}', "missing-field", None),
        (b'{"decision_id": "b11", "task": "offer", "subject": "s", "candidates": []}', "empty-candidates", "b11"),
        (b'{"decision_id": "b12", "task": "nobody", "subject": "s"}', "unknown-task", "b12"),
        (b'{"decision_id": "b13", "task": "offer", "subject": "s", "context": {"age": "old"}, '
         b'"candidates": [{"action_id": "x"}]}', "wrong-type", "b13"),
        (b'{"decision_id": "b14", "task": "route", "subject": "s", "baseline": 9}', "bad-baseline", "b14"),
    ]  # fmt: skip
    with decider(settings, tmp_path) as process:
        shop = Shop(settings)
        for number, (payload, _, _) in enumerate(bad):
            shop.send(payload, f"subject-{number}")
            shop.send(route(number))
        answered = [decision_id for _, _, decision_id in bad if decision_id]
        shop.collect(len(bad) + len(answered))
        letters = read_all(settings, "dead-letters", len(bad))
        code, _ = process.stop()
        shop.poll(0.5)
        shop.close()
    assert code == 0
    assert sorted(letter.reason for *_, letter in letters) == sorted(reason for _, reason, _ in bad)
    by_bytes = {letter.first_bytes: letter.reason for *_, letter in letters if letter.first_bytes}
    for payload, reason, _ in bad:
        if payload[:256] in by_bytes:
            assert by_bytes[payload[:256]] == reason
    heard = [json.loads(value) for _, value in shop.answers if value[:1] == b"{"]
    fallbacks = {answer["decision_id"]: answer for answer in heard if not answer["decision_id"].startswith("r-")}
    assert set(fallbacks) == {decision_id for decision_id in answered if decision_id != "avro-nan"}
    assert {answer["reason"] for answer in fallbacks.values()} == {"invalid", "unknown-task"}
    assert fallbacks["b9"]["actions"] == ["refund"]
    assert len(journaled(settings)) == len(bad)


def test_an_immediate_task_is_answered_and_journaled(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace, "immediate"))
    with decider(settings, tmp_path) as process:
        shop = Shop(settings)
        for number in range(50):
            shop.send(route(number))
        shop.collect(50)
        shop.close()
        assert process.stop()[0] == 0
    assert len(journaled(settings)) == 50


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_takeover_answers_every_request_and_journals_each_once(
    broker: str, namespace: str, tmp_path: Path, how: str
) -> None:
    settings = set_up(broker, project(namespace))
    num = 600
    shop = Shop(settings)
    with decider(settings, tmp_path, decide_commit_s=30) as first:
        for number in range(num):
            shop.send(route(number))
            if number == num // 2:
                shop.flush()
                shop.collect(num // 4)
                if how == "kill":
                    first.kill()
                else:
                    code, seconds = first.stop()
                    assert (code, seconds < 10) == (0, True)
        shop.flush()
    with decider(settings, tmp_path) as second:
        end = time.monotonic() + 30
        while len(shop.decided()) < num and time.monotonic() < end:
            shop.poll(0.2)
        redelivered = second.metric("headrace_decide_redelivered_total")
        assert second.stop()[0] == 0
    shop.poll(0.5)
    shop.close()
    decided = shop.decided()
    assert len(decided) == num
    assert (redelivered > 0) == (how == "kill")
    for answers in decided.values():
        assert len({(answer["actions"][0], answer["propensities"][0]) for answer in answers}) == 1
    ids = [block.decision_ids[row] for _, block, row in journaled(settings)]
    assert sorted(ids) == sorted(decided)


def test_a_second_worker_shares_the_partitions(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace))
    shop = Shop(settings)
    with decider(settings, tmp_path), decider(settings, tmp_path) as second:
        end = time.monotonic() + 40
        number = 0
        while second.metric("headrace_decide_decisions_total") < 50 and time.monotonic() < end:
            shop.send(route(number))
            number += 1
            shop.poll(0.01)
        shop.flush()
        shop.collect(number)
        assert second.metric("headrace_decide_decisions_total") >= 50
        assert second.stop()[0] == 0
    shop.close()
    assert len(journaled(settings)) == number


POISON = (
    """
import streams.decide as decide
sound = decide.problem_of
def poisoned(request, task):
    if request.decision_id == "r-13":
        raise ZeroDivisionError("poison")
    return sound(request, task)
decide.problem_of = poisoned
"""
    + START
)


def test_a_request_that_our_own_code_fails_on_harms_only_itself(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace))
    shop = Shop(settings)
    for number in range(40):
        shop.send(route(number))
    shop.flush()
    with decider(settings, tmp_path, start=POISON) as process:
        shop.collect(40)
        until(lambda: process.metric("headrace_decide_internal_errors_total") == 1, 10)
        assert process.stop()[0] == 0
    shop.close()
    answers = shop.decided()
    assert {decision_id for decision_id, (answer,) in answers.items() if answer["reason"] == "invalid"} == {"r-13"}
    assert answers["r-13"][0]["actions"] == ["refund"]
    (letter,) = [letter for *_, letter in read_all(settings, "dead-letters", 1)]
    assert (letter.reason, b'"r-13"' in letter.first_bytes) == ("internal-error", True)
    assert len(journaled(settings)) == 39


def test_a_backlog_is_answered_with_baselines_and_says_so(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = set_up(broker, project(namespace))
    shop = Shop(settings)
    for number in range(800):
        shop.send(route(number))
    shop.flush()
    with decider(settings, tmp_path, decide_batch_max=16, decide_backlog_max=100) as process:
        shop.collect(800)
        assert process.stop()[0] == 0
    shop.close()
    reasons = [answers[0]["reason"] for answers in shop.decided().values()]
    assert set(reasons) == {"overload", "no-snapshot"}
    assert len(journaled(settings)) == 800


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bootstrap": "127.0.0.1:1"}, "no Kafka broker answers at 127.0.0.1:1"),
        ({"namespace": "nobody-made-this"}, "missing at"),
        ({"insecure_dev": "false"}, "no public key to check snapshots with"),
        ({"state_dir": "/proc/nowhere"}, "cannot write the state folder"),
        ({"public_key": "/nowhere/key.pem"}, "cannot be read"),
    ],
)
def test_what_is_missing_at_start_is_said_in_one_line_with_the_remedy(
    broker: str, namespace: str, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    settings = set_up(broker, project(namespace))
    process = DeciderProcess(settings, tmp_path, **change)
    try:
        assert process.process.wait(60) == 1
    finally:
        process.end()
    last = process.said().strip().splitlines()[-1]
    assert said in last
    assert "Remedy: " in last
    assert "Traceback" not in process.said()
