from __future__ import annotations

import numpy as np
import pytest

from schemas import task as tasks
from schemas.errors import UserError
from schemas.file_values import duration_ms
from schemas.keys import action_key
from schemas.task import Namespace, Source, Task, TaskTable

TASK = """
[namespace]
name = "shop"
partitions = 4

[[tasks]]
name = "support"
actions = ["card", "refund", "other"]
[tasks.context]
text = { kind = "text" }
[tasks.reward]
window = "2s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
"""

RICH = """
[[tasks]]
name = "offer"
baseline = "b"
guardrails = [{ name = "stock", allow_if = "action.stock > 0" }]
actions = [
  { id = "a", features = { price = 9, kind = "toy", stock = 1, title = "Red car" } },
  { id = "b", features = { price = 99, kind = "book", stock = 0 } },
]
[tasks.context]
member = { kind = "boolean" }
age = { kind = "number" }
country = { kind = "category", values = ["de", "fr"] }
sku = { kind = "category" }
embedding = { kind = "vector", size = 3 }
[tasks.action]
price = { kind = "number", log = true, scale = 10.0 }
kind = { kind = "category", values = ["toy", "book"] }
title = { kind = "text", count = true }
[tasks.reward]
window = "1h"
min = -5.0
max = 100
default = -1.0
[tasks.reward.outcomes.order]
aggregate = "sum"
weight = 0.1
[tasks.reward.outcomes.click]
aggregate = "count"
window = "2h"
"""


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        tasks.parse(text)
    return caught.value.message


def changed(old: str, new: str, text: str = TASK) -> str:
    assert old in text
    return text.replace(old, new, 1)


def test_defaults_are_filled_in_and_part_of_the_canonical_definition() -> None:
    task = tasks.parse(TASK).task("support")
    assert '"epsilon":0.1' in task.canonical
    assert '"window":"2000ms"' in task.canonical
    assert " " not in task.canonical.replace("headrace", "")


def test_fingerprint_is_pinned() -> None:
    assert tasks.parse(TASK).task("support").fingerprint.hex() == "873cd353e8ce0a8a65fd0ac96bc91428"


def test_writing_a_default_or_another_order_or_unit_is_the_same_task() -> None:
    plain = tasks.parse(TASK).task("support")
    spelled = changed('window = "2s"', 'default = 0\nwindow = "2000ms"')
    spelled = changed('kind = "text"', 'count = false, kind = "text"', spelled)
    assert tasks.parse(spelled).task("support") == plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"2s"', '"3s"'),
        ('"other"]', '"another"]'),
        ('name = "support"', 'name = "support"\nlearner = { seed = 1 }'),
        ('name = "support"', 'name = "support"\nexploration = { gamma = 5.0 }'),
        ('name = "support"', 'name = "support"\nreply = "immediate"'),
    ],
)
def test_whatever_changes_what_is_decided_or_learnt_changes_the_fingerprint(old: str, new: str) -> None:
    assert tasks.parse(changed(old, new)).task("support") != tasks.parse(TASK).task("support")


def test_a_task_survives_its_canonical_definition() -> None:
    for task in tasks.parse(TASK + RICH).tasks:
        again = Task.from_canonical(task.canonical)
        assert (again, again.reward, again.context, again.action) == (task, task.reward, task.context, task.action)


def test_an_older_definition_keeps_its_fingerprint_though_newer_defaults_are_missing_in_it() -> None:
    task = tasks.parse(TASK).task("support")
    older = task.canonical.replace('"cross":true,', "")
    assert Task.from_canonical(older).fingerprint == tasks.fingerprint_of(older) != task.fingerprint
    assert Task.from_canonical(older).learner == task.learner


def test_namespace_and_sources_survive_their_canonical_definitions() -> None:
    source = '[[sources]]\ntopic = "shop.orders"\nsubject = { path = "customer.id" }\ntype = "order"\nvalue = 2\n'
    project = tasks.parse(TASK + source + "where = \"status == 'paid'\"")
    assert Namespace.from_canonical(project.namespace.canonical) == project.namespace
    assert Source.from_canonical(project.sources[0].canonical) == project.sources[0]
    assert project.sources[0].value.constant == 2.0
    assert [record.kind for record in project.records()] == ["namespace", "task", "source"]


def test_binary_outcomes_bound_the_reward() -> None:
    reward = tasks.parse(TASK).task("support").reward
    assert (reward.min, reward.max, reward.binary) == (0.0, 1.0, True)


def test_two_binary_outcomes_bound_the_reward_by_their_weights_but_make_it_no_binary_one() -> None:
    both = TASK + 'weight = 2.0\n[tasks.reward.outcomes.angry]\naggregate = "max"\nweight = -1.0\nbinary = true\n'
    reward = tasks.parse(both).task("support").reward
    assert (reward.min, reward.max, reward.binary) == (-1.0, 2.0, False)


@pytest.mark.parametrize("aggregate", ["sum", "count"])
def test_a_sum_of_binary_outcomes_needs_declared_bounds(aggregate: str) -> None:
    assert "reward.min and reward.max are required" in refusal(changed('"max"', f'"{aggregate}"'))


def test_declared_bounds_and_windows_are_taken() -> None:
    reward = tasks.parse(RICH).task("offer").reward
    assert (reward.min, reward.max, reward.default, reward.window_ms) == (-5.0, 100.0, -1.0, 7_200_000)
    assert [(kind.name, kind.window_ms) for kind in reward.types] == [("click", 7_200_000), ("order", 3_600_000)]


def test_an_immediate_reply_lets_outcomes_come_first_unless_told_otherwise() -> None:
    immediate = changed('name = "support"', 'name = "support"\nreply = "immediate"')
    assert tasks.parse(immediate).task("support").reward.backward_ms == 1000
    strict = changed('window = "2s"', 'window = "2s"\nbackward_window = "0s"', immediate)
    assert tasks.parse(strict).task("support").reward.backward_ms == 0


def test_dense_columns_stand_in_order_of_name() -> None:
    task = tasks.parse(RICH).task("offer")
    expected = ("age", "country=de", "country=fr", "embedding[0]", "embedding[1]", "embedding[2]", "member")
    assert task.context.columns() == expected
    assert task.context.width == len(expected)
    assert task.action.columns() == ("kind=toy", "kind=book", "price")
    assert (task.context.has_tokens, task.context.has_text, task.action.has_text) == (True, False, True)


def test_crosses_of_a_task_with_tokens_on_both_sides_stay_within_their_bound() -> None:
    task = tasks.parse(RICH).task("offer")
    assert task.context.num_tokens_max * (task.action.num_tokens_max + 1) <= 4096


def test_a_declared_catalogue_is_encoded_with_the_task() -> None:
    task = tasks.parse(RICH).task("offer")
    columns = task.catalogue_features
    assert columns is not None
    assert columns.actions[:, :2].tolist() == [[1, 0], [0, 1]]
    assert columns.actions[:, 2] == pytest.approx(np.log1p([0.9, 9.9]))
    assert columns.action_keys.tolist() == [action_key("a"), action_key("b")]
    assert columns.action_token_counts.tolist() == [9, 0]
    assert len(task.catalogue) == 16
    assert task.baseline_index == 1


def test_more_than_64_declared_values_are_hashed() -> None:
    values = ", ".join(f'"{i}"' for i in range(65))
    task = tasks.parse(changed('{ kind = "text" }', f'{{ kind = "category", values = [{values}] }}')).task("support")
    assert (task.context.width, task.context.has_tokens) == (0, True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"2s"', "2", 'tasks[0].reward.window (task "support"): expected a duration with its unit'),
        ('"2s"', '"0s"', "tasks[0].reward.window"),
        ('"2s"', '"500d"', 'at most "400d"'),
        ('window = "2s"', 'windw = "2s"', "unknown key 'windw'; did you mean \"window\"?"),
        ('window = "2s"', "", 'tasks[0].reward.window (task "support"): is required and missing'),
        ('{ kind = "text" }', '{ kind = "txt" }', "tasks[0].context.text (task \"support\"): expected kind 'number'"),
        ('{ kind = "text" }', '{ kind = "text", sise = 3 }', "tasks[0].context.text"),
        ('{ kind = "text" }', "{ size = 3 }", 'expected kind = "number"'),
        ('{ kind = "text" }', '{ kind = "vector", size = 0 }', "tasks[0].context.text.size"),
        ('{ kind = "text" }', '{ kind = "number", scale = 0 }', "tasks[0].context.text.scale"),
        ('{ kind = "text" }', '{ kind = "number", scale = nan }', "tasks[0].context.text.scale"),
        ('"max"', '"maxx"', 'did you mean "max"?'),
        ("partitions = 4", 'partitions = "4"', "namespace.partitions: expected a valid integer, got '4' (str)"),
        ("partitions = 4", "partitions = 0", "namespace.partitions"),
        ('name = "shop"', 'name = "sh op"', "namespace.name"),
        ('name = "shop"', 'name = "shop"\ndraw_key = "xyz"', "namespace.draw_key"),
        ('"refund"', '"card"', "action id 'card' is declared twice"),
        ('name = "support"', 'name = "support"\nkind = "slate"', 'expected "choice", the only kind of task'),
        ('name = "support"', 'name = "support"\nbaseline = "refnd"', 'did you mean "refund"?'),
        ('actions = ["card", "refund", "other"]', "", "expected a catalogue"),
        ('"other"]', "7]", "tasks[0].actions[2]"),
        ('name = "support"', 'name = "support"\nepsilon = 2', "tasks[0].epsilon"),
        ('name = "support"', 'name = "support"\nexploration = { kind = "ucb" }', "tasks[0].exploration.kind"),
        ("binary = true", 'binary = "yes"', "tasks[0].reward.outcomes.resolved.binary"),
        ('"2s"', '"2s"\nbackward_window = "3s"', "reward.backward_window is 3000 ms, expected at most the window"),
        ('"2s"', '"2s"\ndefault = 7.0\nmax = 1.0', "expected reward.min < reward.max with reward.default between"),
        ('"2s"', '"2s"\nmax = 1e200', 'reward.max (task "support"): expected a number from -1e+18 to 1e+18, near what'),
        ('"2s"', '"2s"\nmin = -1.1e18', 'tasks[0].reward.min (task "support"): expected a number from -1e+18'),
        ('"2s"', '"2s"\nmax = "9"', 'tasks[0].reward.max (task "support"): expected a valid number'),
        ("binary = true", "weight = -1e19", "tasks[0].reward.outcomes.resolved.weight"),
        ('name = "support"', 'name = "support"\nexploration = { gamma = 1e19 }', "tasks[0].exploration.gamma"),
        ('name = "support"', 'name = "support"\nexploration = { temperature = 1e-308 }', "exploration.temperature"),
        ("binary = true", 'window = "0s"', "tasks[0].reward.outcomes.resolved.window"),
        ("[[tasks]]", "[[taks]]", "unknown key 'taks'; did you mean \"tasks\"?"),
        ("[[tasks]]", "[[tasks]", "is no TOML"),
    ],
)
def test_a_mistake_is_named_by_its_key_with_what_was_expected(old: str, new: str, expected: str) -> None:
    assert expected in refusal(changed(old, new))


@pytest.mark.parametrize(
    ("guardrail", "expected"),
    [("action.stock >", "expected a jmespath expression"), ("", "expected a jmespath expression")],
)
def test_a_guardrail_must_be_a_comparison_or_a_jmespath(guardrail: str, expected: str) -> None:
    assert expected in refusal(changed("action.stock > 0", guardrail, RICH))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a" * 1001, "expected a jmespath expression of at most 1000 characters, it has 1001"),
        ("(" * 65 + "a" + ")" * 65, "expected a jmespath expression nested at most 64 deep"),
        ("!" * 900 + "a", "expected a jmespath expression nested at most 64 deep"),
    ],
)
def test_an_expression_that_is_too_large_is_named_by_its_key(expression: str, expected: str) -> None:
    found = refusal(changed("action.stock > 0", expression, RICH))
    assert expected in found
    assert "tasks[0].guardrails[0].allow_if" in found
    source = f'[[sources]]\ntopic = "t"\ntype = "order"\nsubject = {{ path = "{expression}" }}\n'
    assert f"sources[0].subject.path: {expected}" in refusal(TASK + source)


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = 1" + "0" * 5000])
def test_a_file_that_the_reader_of_toml_gives_up_on_is_a_user_error(text: str) -> None:
    assert "headrace.toml is no TOML" in refusal(text)


def test_a_feature_of_an_action_that_nothing_knows_is_refused() -> None:
    assert "has the feature 'prce'" in refusal(changed("price = 99", "prce = 99", RICH))


def test_ids_of_actions_are_counted_in_bytes_as_they_are_in_every_message() -> None:
    fits, too_long = "ß" * 128, "ß" * 129
    assert tasks.parse(changed("refund", fits)).task("support").actions[1] == fits
    found = refusal(changed("refund", too_long))
    assert 'tasks[0].actions[1] (task "support"): expected at most 256 bytes of UTF-8, it has 258' in found
    assert "tasks[0].baseline" in refusal(changed('name = "support"', f'name = "support"\nbaseline = "{too_long}"'))


def test_a_constant_type_of_outcomes_is_as_long_as_a_message_may_have_it() -> None:
    source = '[[sources]]\ntopic = "t"\nsubject = { path = "a" }\ntype = "%s"\n'
    assert tasks.parse(TASK + source % ("ß" * 32)).sources[0].type.constant == "ß" * 32
    assert "sources[0].type: expected a constant text of at most 64 bytes or" in refusal(TASK + source % ("ß" * 33))


def test_a_feature_of_an_action_of_the_wrong_type_is_refused() -> None:
    assert "action 'b': feature 'price': expected a number, got str 'x'" in refusal(changed("99", '"x"', RICH))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('subject = "x"', 'sources[0].subject: expected { path = "a.jmespath" }'),
        ('subject = { path = "a[" }', "sources[0].subject.path: expected a jmespath expression"),
        ('subject = { path = "a" }\nvalue = "x"', "sources[0].value: expected a constant number or"),
        ('subject = { path = "a" }\nformat = "xml"', "sources[0].format"),
        ("", "sources[0].subject: is required and missing"),
    ],
)
def test_a_mistake_in_a_source_is_named_by_its_key(line: str, expected: str) -> None:
    assert expected in refusal(TASK + f'[[sources]]\ntopic = "t"\ntype = "order"\n{line}\n')


def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="cannot be read: No such file"):
        tasks.load(tmp_path / "headrace.toml")
    (tmp_path / "headrace.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no UTF-8"):
        tasks.load(tmp_path / "headrace.toml")


@pytest.mark.parametrize("canonical", ["", "{", "[]", "{}", '{"name":"x"}', "[" * 100_000])
def test_a_definition_from_the_topic_that_is_no_task_is_a_user_error(canonical: str) -> None:
    with pytest.raises(UserError):
        Task.from_canonical(canonical)


def test_durations_have_units() -> None:
    assert [duration_ms(text) for text in ("500ms", "2s", "1.5s", "5m", "5 min", "1h", "7d")] == [
        500, 2000, 1500, 300_000, 300_000, 3_600_000, 604_800_000,
    ]  # fmt: skip
    for bad in ("2", "s", "-2s", "1.5ms", "2 weeks", 2, None):
        with pytest.raises(ValueError, match="expected"):
            duration_ms(bad)


def test_the_newest_definition_of_a_name_decides_and_older_ones_are_still_joined() -> None:
    old, new = tasks.parse(TASK).task("support"), tasks.parse(changed('"2s"', '"3h"')).task("support")
    table = TaskTable([old])
    table.apply(new.record())
    assert table.named("support") == new
    assert table[old.fingerprint] == old
    assert (table.max_window_ms, table.dedupe_ms) == (10_800_000, 10_800_000)
    table.apply(new.record(retired=True))
    assert table.named("support") is None
    assert new.fingerprint in table


def test_dedupe_horizon_is_at_least_ten_minutes() -> None:
    assert TaskTable(tasks.parse(TASK).tasks).dedupe_ms == 600_000


def test_a_retirement_after_its_successor_leaves_the_name_to_the_successor() -> None:
    old, new = tasks.parse(TASK).tasks[0], tasks.parse(TASK.replace('"2s"', '"3s"')).tasks[0]
    table = TaskTable()
    for record in (old.record(), new.record(), old.record(retired=True)):
        table.apply(record)
    assert table.named("support") == new
    assert table.get(old.fingerprint) == old
