"""`headrace apply`, as far as it needs no broker: what it writes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy import definitions, reading
from deploy.applying import wanted_records
from deploy.definitions import Definitions, read_definitions
from schemas.codec import encode
from schemas.errors import UserError
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.task import NUM_NAMES_MAX, Project, parse
from tests.oracle.join_world import make_task

NAMES = [f"exp-{number}" for number in range(NUM_NAMES_MAX + 1)]


def project(*names: str) -> Project:
    tasks = [f'[[tasks]]\nname = "{name}"\nactions = ["a", "b"]\n[tasks.reward]\nwindow = "2s"\n' for name in names]
    click = '[tasks.reward.outcomes.click]\naggregate = "max"\nbinary = true\n'
    return parse('[namespace]\nname = "t"\npartitions = 1\n' + "".join(task + click for task in tasks))


def test_one_task_name_too_many_is_refused_before_it_is_written_retired_ones_count() -> None:
    """Found by review: it was written, and every join worker of the namespace ended at it for good."""
    standing = Definitions()
    for name in NAMES[:-1]:
        standing.table.add(task := make_task(name))
        standing.table.retire(task.fingerprint)
    with pytest.raises(UserError, match=r"'exp-128' would be one of 129 task names .* 128 are used") as refused:
        wanted_records(standing, project(NAMES[-1]))
    assert "another namespace" in refused.value.remedy
    assert wanted_records(standing, project(NAMES[0]))[1].task == "exp-0", "a name that was used takes no other place"


def test_what_is_no_definition_is_passed_over_with_a_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by review: one stray record ended apply, audit and explain, while every worker passed it over."""
    registry, task = FileRegistry(), make_task("a")
    values = [
        b"",  # a tombstone
        b"hello",
        encode(replace(task.record(), kind="unheard of"), registry),
        encode(replace(task.record(), definition="{}"), registry),
        encode(task.record(), registry),
    ]
    log = [reading.Entry("t.tasks", 0, offset, 0, b"", value) for offset, value in enumerate(values)]
    monkeypatch.setattr(reading, "read_all", lambda *_: iter(log))
    definitions._say_once.cache_clear()
    for _ in range(2):
        found = read_definitions(CommonSettings(namespace="t"), registry)
        assert (found.table.tasks, set(found.records)) == ((task,), {task.fingerprint})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["t.tasks/0/1", "t.tasks/0/2", "t.tasks/0/3"]
