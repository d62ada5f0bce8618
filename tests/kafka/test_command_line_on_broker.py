"""`headrace apply, ask, tell, status, audit` against a broker and real workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import applying, processes, topics
from deploy.audit import audit
from deploy.cli.entry import run
from deploy.definitions import read_definitions
from deploy.probes import is_ready
from deploy.supervisor import Supervisor
from schemas.errors import UserError
from schemas.settings import CommonSettings, load_settings
from schemas.task import Project, parse

TOML = """
[namespace]
name = "{name}"
partitions = {partitions}
tick = "100ms"
[[tasks]]
name = "support"
actions = ["a", "b", "c"]
[tasks.context]
price = {{ kind = "number" }}
[tasks.reward]
window = "{window}"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
"""
SOURCE = '[[sources]]\ntopic = "shop.orders"\nformat = "json"\ntype = "resolved"\nsubject = { path = "who" }\n'


def project(name: str, partitions: int = 2, window: str = "1s", more: str = "") -> Project:
    return parse(TOML.format(name=name, partitions=partitions, window=window) + more)


def applied(broker: str, wanted: Project) -> CommonSettings:
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=wanted.namespace.name)
    topics.apply(settings, wanted)
    applying.apply(settings, wanted)
    return settings


@pytest.fixture(scope="module")
def served(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Flags that lead to a namespace with workers."""
    state = tmp_path_factory.mktemp("state")
    settings = applied(broker, project("served"))
    ports = processes.free_ports(2)
    flags = ["--bootstrap", broker, "--namespace", settings.namespace]
    with Supervisor() as supervisor:
        for name, port, more in (
            ("join", ports[0], ["ingest", "join"]),
            ("decide", ports[1], ["decide", "--insecure-dev"]),
        ):
            arguments = ["worker", *more, *flags, "--state-dir", str(state / name), "--metrics-port", str(port)]
            supervisor.start(name, arguments, {"OMP_NUM_THREADS": "1"})
        assert processes.wait_until(lambda: all(map(is_ready, ports)), 120, 0.2), supervisor.children[0].tail
        yield flags


def test_ask_prints_the_decision_and_tell_prints_its_reward(
    served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", '{"price": 3}', "--subject", "customer-1", "--timeout", "30", *served]) == 0
    decision = json.loads(capsys.readouterr().out)
    assert decision["task"] == "support"
    assert decision["actions"][0] in "abc"
    assert decision["reason"] == "no-snapshot"
    assert decision["refused"] is None
    assert 0 < decision["propensities"][0] < 1

    assert run(["tell", decision["decision_id"], "--value", "1", "--timeout", "30", *served]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["outcome"]["subject"] == "customer-1"
    assert told["journaled"].startswith("served.journal/")
    assert told["transition"]["bucket"] == "joined"
    assert told["transition"]["reward"] == 1.0
    assert told["note"] is None


def test_ask_tells_what_is_wrong_before_sending_it(served: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", '{"price": [[1]]}', *served]) == 1
    assert "wrong-type" in capsys.readouterr().err

    assert run(["ask", "{price}", *served]) == 1
    assert "no JSON" in capsys.readouterr().err


def test_ask_prints_the_answer_of_a_request_that_is_refused_and_why(
    served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", '{"price": "dear"}', "--timeout", "30", *served]) == 1

    captured = capsys.readouterr()
    decision = json.loads(captured.out)
    assert decision["reason"] == "invalid"
    assert "wrong-type" in decision["refused"]
    assert "wrong-type" in captured.err


def test_tell_of_an_unknown_decision_asks_for_the_subject(
    served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tell", "nobody-decided-this", *served]) == 1
    assert "--subject" in capsys.readouterr().err


def test_tell_says_why_an_outcome_counts_for_nothing(served: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def told(decision_id: str, subject: str) -> dict[str, Any]:
        words = ["tell", decision_id, "--subject", subject, "--timeout", "30", *served]
        assert run(words) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert "(orphan)" in told("nobody-decided-this", "customer-2")["note"]

    assert run(["ask", '{"price": 3}', "--subject", "customer-2", "--timeout", "30", *served]) == 0
    decided = json.loads(capsys.readouterr().out)["decision_id"]
    assert "of subject 'customer-2', the outcome of 'customer-3'" in told(decided, "customer-3")["note"]
    time.sleep(2)
    late = told(decided, "customer-2")
    assert late["transition"] is None
    assert "the reward window of 1 s had closed" in late["note"]


def test_status_shows_lag_buckets_and_reward(served: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--once", *served]) == 0

    shown = capsys.readouterr().out
    for word in ("served.journal", "joined", "orphan", "reward of the last"):
        assert word in shown


def test_audit_of_a_living_namespace_is_clean_and_speaks_json(
    served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "--json", *served]) == 0
    assert json.loads(capsys.readouterr().out)["audit"] == "clean"


def test_apply_says_what_is_new_and_the_second_time_that_nothing_is(broker: str, namespace: str) -> None:
    wanted = project(namespace, more=SOURCE)
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=namespace)
    topics.apply(settings, wanted)

    changes = applying.apply(settings, wanted)

    assert f"applied namespace {namespace}" in changes
    assert "applied task support" in changes
    assert "applied source shop.orders" in changes
    assert applying.apply(settings, wanted) == []


def test_a_source_topic_that_is_missing_is_refused_and_both_remedies_are_named(
    broker: str, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = f"{namespace}-shop.orders"
    file = tmp_path / "headrace.toml"
    declared = TOML.format(name=namespace, partitions=2, window="1s") + SOURCE.replace("shop.orders", orders)
    file.write_text(declared)
    words = [str(file), "--bootstrap", broker]

    assert run(["topics", "apply", *words]) == 0
    assert f"topic {orders}, which [[sources]] names, is missing" in capsys.readouterr().err
    assert run(["topics", "check", *words]) == 1
    shown = capsys.readouterr()
    assert f"topic {orders}, which [[sources]] names, is missing" in shown.out
    assert "1 thing is wrong with the topics" in shown.err
    assert run(["apply", *words]) == 1
    said = capsys.readouterr().err
    assert f"topic {orders}, which [[sources]] names, is missing at {broker}" in said
    assert "the shop's" in said
    assert "correct `topic` of [[sources]]" in said
    assert read_definitions(load_settings(CommonSettings, bootstrap=broker, namespace=namespace)).sources == {}

    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(orders, 1, 1)])[orders].result(10)
    assert run(["topics", "check", *words]) == 0
    assert run(["apply", *words]) == 0

    admin.delete_topics([orders])[orders].result(10)
    assert run(["apply", *words, "--retire", orders]) == 0
    assert f"retired source {orders}" in capsys.readouterr().out


def test_draws_cannot_be_foretold_and_stay_the_same(broker: str, namespace: str) -> None:
    wanted = project(namespace)
    settings = applied(broker, wanted)

    def key() -> str:
        standing = read_definitions(settings).namespace
        assert standing is not None
        return standing.draw_key

    first = key()
    assert len(bytes.fromhex(first)) == 32
    assert first != wanted.namespace.draw_key, "what follows from the namespace's name is known to everybody"

    applying.apply(settings, project(namespace, window="3s"))
    assert key() == first

    declared = TOML.replace("tick", f'draw_key = "{"ab" * 16}"\ntick')
    with pytest.raises(UserError, match="draws with another key"):
        applying.apply(settings, parse(declared.format(name=namespace, partitions=2, window="1s")))
    assert key() == first
    applying.apply(
        settings, parse(declared.replace("ab" * 16, first).format(name=namespace, partitions=2, window="1s"))
    )
    assert key() == first


def test_a_changed_task_is_a_new_definition_and_the_old_one_is_retired(broker: str, namespace: str) -> None:
    settings = applied(broker, project(namespace))
    old = read_definitions(settings).require_task("support")

    changes = applying.apply(settings, project(namespace, window="3s"))

    assert "applied task support" in changes
    assert "replaced task support: its former definition is retired" in changes
    standing = read_definitions(settings)
    assert standing.require_task("support").reward.window_ms == 3000
    assert old.fingerprint in standing.table, "decisions made under it may still be open"

    applying.apply(settings, project(namespace))
    assert read_definitions(settings).require_task("support") == old


def test_a_longer_window_raises_the_journals_retention_before_it_goes_live(broker: str, namespace: str) -> None:
    settings = applied(broker, project(namespace))

    changes = applying.apply(settings, project(namespace, window="30d"))

    retention = [change for change in changes if "retention.ms" in change and f"{namespace}.journal" in change]
    assert retention
    assert changes.index(retention[0]) < changes.index("applied task support")


def test_an_apply_that_is_refused_changes_no_topic(broker: str, namespace: str) -> None:
    settings = applied(broker, project(namespace))
    longer = project(namespace, window="30d")
    before = topics.check(settings, longer)
    assert before, "the journal is kept for too short a time"

    with pytest.raises(UserError, match="cannot retire 'nobody'"):
        applying.apply(settings, longer, retire=("nobody",))

    assert topics.check(settings, longer) == before


def test_the_partition_count_is_fixed_at_the_first_apply(broker: str, namespace: str) -> None:
    settings = applied(broker, project(namespace))

    with pytest.raises(UserError, match="partitions"):
        applying.apply(settings, project(namespace, partitions=8))


def test_apply_before_the_topics_stand_says_how_to_make_them(broker: str, namespace: str) -> None:
    settings = load_settings(CommonSettings, bootstrap=broker, namespace=namespace)

    with pytest.raises(UserError) as caught:
        applying.apply(settings, project(namespace))

    assert "headrace topics apply" in caught.value.remedy


def test_of_several_tasks_the_remedy_is_to_name_one(broker: str, namespace: str) -> None:
    another = TOML[TOML.index("[[tasks]]") :].replace("support", "sales").format(window="1s")
    settings = applied(broker, project(namespace, more=another))

    with pytest.raises(UserError, match="2 tasks are applied") as caught:
        read_definitions(settings).require_task(None)

    assert caught.value.remedy == "say which with --task"


def test_a_namespace_that_was_forgotten_is_named_and_so_is_the_way_to_name_it(
    broker: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["status", "--once"], ["ask", "{}"], ["worker", "join"]):
        assert run([*words, "--bootstrap", broker, "--namespace", namespace]) == 1
        said = capsys.readouterr().err
        assert f"of the namespace '{namespace}'" in said
        assert "--namespace or HEADRACE_NAMESPACE" in said
        assert "headrace topics apply" in said


def test_a_retired_task_decides_no_more(broker: str, namespace: str) -> None:
    settings = applied(broker, project(namespace))

    assert applying.apply(settings, project(namespace), retire=("support",)) == ["retired task support"]

    with pytest.raises(UserError, match="applied: none"):
        read_definitions(settings).require_task("support")
    with pytest.raises(UserError, match="nothing is applied"):
        applying.apply(settings, parse(TOML.split("[[tasks]]")[0].format(name=namespace, partitions=2)), ("support",))


def test_the_audit_of_a_namespace_without_events_has_nothing_to_complain_of(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    report = audit(applied(broker, project(namespace)))

    assert report.is_clean
    assert report.total("num_decisions") == 0
