"""Group commit: nothing is lost, nothing overtakes, and few blocks hold it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import task as tasks
from schemas.codec import decode, encode
from schemas.decision_columns import FeatureColumns
from schemas.frozen import names_of
from schemas.keys import partition_of
from schemas.records import Candidate, DecisionRequest, Features
from schemas.registry import FileRegistry
from schemas.task import TaskTable
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import BLOCK_BYTES_MAX, Part, parts_of
from streams.group_commit import ROWS_ENOUGH, WAIT_S, GroupCommit

PARTITIONS = 3
TASK = """
[[tasks]]
name = "{name}"
reply = "immediate"
[tasks.context]
age = {{ kind = "number" }}
text = {{ kind = "text" }}
[tasks.action]
price = {{ kind = "number" }}
embedding = {{ kind = "vector", size = 500 }}
[tasks.reward]
window = "1h"
[tasks.reward.outcomes.order]
aggregate = "max"
binary = true
"""
PROJECT = tasks.parse(
    f'[namespace]\nname = "shop"\npartitions = {PARTITIONS}\n' + TASK.format(name="a") + TASK.format(name="b")
)
REGISTRY = FileRegistry()


def parts(requests: Sequence[DecisionRequest]) -> list[Part]:
    """One part per task and partition of a batch."""
    decide = Decide(PROJECT.namespace, TaskTable(PROJECT.tasks), lambda block: len(encode(block, REGISTRY)))
    batch = [Asked(request, 0, offset, 0) for offset, request in enumerate(requests)]
    return [
        part
        for group in decide.batch(batch, Situation(0)).groups
        for _, part in parts_of(group.task, group.version, group.rows, group.columns, "shop.requests")
    ]


def request(number: int, task: str = "a", subject: str = "s", size: int = 2) -> DecisionRequest:
    candidates = [Candidate(f"c{k}", {"price": float(k)}) for k in range(size)]
    context: Features = {"age": float(number), "text": f"word{number % 3} and more"}
    return DecisionRequest(f"d{number}", task, subject, context, candidates)


BATCHES = st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=1, max_size=5), max_size=12)


@given(BATCHES)
def test_every_row_is_in_one_block_in_the_order_of_its_partition(batches: list[list[tuple[str, int]]]) -> None:
    waiting: GroupCommit[list[str]] = GroupCommit()
    came: dict[int, list[str]] = {}
    number = 0
    for batch in batches:
        asked = []
        for task, subject in batch:
            number += 1
            asked.append(request(number, task, f"s{subject}"))
        for part in parts(asked):
            ids = [row.request.decision_id for row in part.rows]
            came.setdefault(part.partition, []).extend(ids)
            waiting.add(part, ids, 0.0)
    assert len(waiting) == number
    written: dict[int, list[str]] = {}
    for part, owners in waiting.all():
        block = decode(encode(part.block(), REGISTRY), REGISTRY)
        ids = [block.decision_ids[row] for row in range(len(block))]
        assert ids == [name for owner in owners for name in owner]
        assert {partition_of(block.subjects[row], PARTITIONS) for row in range(len(block))} == {part.partition}
        written.setdefault(part.partition, []).extend(ids)
    assert written == came
    assert len(waiting) == 0
    assert list(waiting.all()) == []


def test_a_block_of_many_parts_is_the_block_of_all_their_rows_at_once() -> None:
    requests = [request(number) for number in range(10)]
    (whole,) = parts(requests)
    waiting: GroupCommit[None] = GroupCommit()
    for each in requests:
        (part,) = parts([each])
        waiting.add(part, None, 0.0)
    ((part, owners),) = waiting.all()
    assert len(owners) == 10
    together, at_once = part.block(), whole.block()
    for name in ("decision_keys", "subject_keys"):
        assert getattr(together, name).tolist() == getattr(at_once, name).tolist()
    assert together.columns.propensities.tolist() == at_once.columns.propensities.tolist()
    features, same = together.columns.features, at_once.columns.features
    for name in names_of(FeatureColumns):
        assert getattr(features, name).tolist() == getattr(same, name).tolist()


def test_parts_that_do_not_fit_into_one_message_leave_in_several() -> None:
    waiting: GroupCommit[int] = GroupCommit()
    for number in range(30):
        (part,) = parts([request(number, size=20)])
        waiting.add(part, number, 0.0)
    sizes, owners = [], []
    for part, who in waiting.all():
        sizes.append(len(encode(part.block(), REGISTRY)))
        owners += who
    assert owners == list(range(30))
    assert len(sizes) > 1
    assert max(sizes) <= BLOCK_BYTES_MAX


def test_what_could_not_be_written_is_the_oldest_again() -> None:
    waiting: GroupCommit[int] = GroupCommit()
    for number in range(3):
        waiting.add(parts([request(number, subject=f"s{number}")])[0], number, 0.0)
        waiting.add(parts([request(10 + number, "b", f"s{number}")])[0], 10 + number, 0.0)
    before = len(waiting)
    part, owners = next(iter(waiting.all()))
    waiting.put_back(part, owners)
    assert len(waiting) == before
    assert waiting.wait_s(0.0, 1.0) == 0.0
    again = list(waiting.all())
    assert again[0] == (part, owners)
    assert sorted(owner for _, each in again for owner in each) == [0, 1, 2, 10, 11, 12]
    assert len(waiting) == 0


def test_one_block_between_two_requests_but_none_waits_twice_as_long() -> None:
    waiting: GroupCommit[int] = GroupCommit()
    for number in range(6):
        waiting.add(parts([request(number, "ab"[number % 2])])[0], number, 0.0)
    assert [owners for _, owners in waiting.due(1.5 * WAIT_S)] == [[0]]
    assert [owners for _, owners in waiting.due(2 * WAIT_S)] == [[1], [2], [3], [4], [5]]


def test_the_first_row_says_until_when_and_many_rows_wait_no_longer() -> None:
    waiting: GroupCommit[None] = GroupCommit()
    assert waiting.wait_s(5.0, 0.1) == 0.1
    for number in range(ROWS_ENOUGH - 1):
        (part,) = parts([request(number)])
        waiting.add(part, None, 10.0 + WAIT_S * number / ROWS_ENOUGH)
    assert waiting.wait_s(10.0, 0.1) == pytest.approx(WAIT_S)
    assert waiting.wait_s(10.0, WAIT_S / 4) == WAIT_S / 4
    assert waiting.wait_s(10.0 + 2 * WAIT_S, 0.1) == 0.0
    waiting.add(part, None, 10.0)
    assert waiting.wait_s(10.0, 0.1) == 0.0
    assert len(list(waiting.due(10.0))) == 1
    assert waiting.wait_s(10.0, 0.1) == 0.1
