"""What the judge of `headrace torture` takes for an answer without a record."""

from __future__ import annotations

import pytest

from deploy.torture import judge
from deploy.torture.run import TASKS
from schemas.keys import decision_key
from schemas.records import Decision, Reason
from schemas.task import load

PROJECT = load(TASKS)
TASK = next(task for task in PROJECT.tasks if task.reply == "journal-first")


def findings(*answers: tuple[Reason, str]) -> judge.Findings:
    """Of one request that is journaled with the first action and was answered like this."""
    log = judge.Log(requests={"one": (TASK.name, (0, 7))}, num_requests=1)
    log.journaled[decision_key("one")].append(0)
    for reason, action in answers:
        log.answers["one"].append(Decision("one", TASK.name, "someone", [action], [1.0], 1, reason.label, [], b"", 1))
    return judge.judge(log, PROJECT)


def test_answers_with_the_journaled_action_agree() -> None:
    assert not findings((Reason.POLICY, TASK.actions[0]), (Reason.POLICY, TASK.actions[0])).disagreements


@pytest.mark.parametrize("reason", [Reason.POLICY, Reason.OVERLOAD, Reason.NO_SNAPSHOT])
def test_one_answer_with_another_action_is_found(reason: Reason) -> None:
    found = findings((Reason.POLICY, TASK.actions[0]), (reason, TASK.actions[1]))
    assert found.disagreements == ["one: journal 1 records, answers 2"]


def test_an_answer_after_the_dedupe_horizon_says_itself_that_it_is_not_journaled() -> None:
    assert not findings((Reason.POLICY, TASK.actions[0]), (Reason.EXPIRED, TASK.actions[1])).disagreements
