"""`headrace explain` on a small real run: decisions of the baseline, of the policy, explored, and those not there."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from deploy import processes, stack
from deploy.cli.entry import run
from deploy.probes import is_ready
from deploy.supervisor import Supervisor
from schemas.settings import CommonSettings
from schemas.task import parse
from schemas.topics import topic
from tests.kafka.decider_process import Shop

TOML = """
[namespace]
name = "explained"
partitions = 2
tick = "100ms"
[[tasks]]
name = "support"
actions = ["card", "refund", "other"]
baseline = "refund"
[tasks.context]
price = { kind = "number" }
text = { kind = "text" }
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
"""
READY_S = 180.0


@dataclass
class Run:
    """What was sent, and what came back."""

    flags: list[str]
    settings: CommonSettings
    answers: dict[str, dict[str, Any]]

    def explain(self, capsys: pytest.CaptureFixture[str], decision_id: str) -> dict[str, Any]:
        code = run(["explain", decision_id, "--json", *self.flags])
        captured = capsys.readouterr()
        assert code == 0, captured.out + captured.err
        (shown,) = json.loads(captured.out)
        assert shown["faults"] == []
        return dict(shown)

    def chosen_with(self, reason: str, most_likely: bool | None = None) -> str:
        """Id of a decision with this reason; of the policy's, one that took its favourite or one that explored."""
        for name in sorted(self.answers):
            answer = self.answers[name]
            if answer["reason"] == reason and most_likely in (None, answer["propensities"][0] > 0.5):
                return name
        raise AssertionError(f"no answer with reason {reason}, most likely {most_likely}")


@pytest.fixture(scope="module")
def ran(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The workers and the learner have ended: what is explained, the log alone explains."""
    state = tmp_path_factory.mktemp("state")
    ready = stack.prepare(parse(TOML), state, broker, 0)
    settings = ready.settings
    with Supervisor() as supervisor:
        ready.start(supervisor)
        ports = list(ready.metrics_ports.values())
        assert processes.wait_until(lambda: all(map(is_ready, ports)), READY_S, 0.2), supervisor.children[0].tail
        shop = Shop(settings)
        _talk(settings, shop)
        time.sleep(3.0)  # the last windows close, the last rows are learnt and published
        shop.close()
    flags = ["--bootstrap", broker, "--namespace", settings.namespace, "--public-key", str(settings.public_key)]
    return Run(flags, settings, {name: answers[0] for name, answers in shop.decided().items()})


def _talk(settings: CommonSettings, shop: Shop) -> None:
    """Requests and outcomes until the policy has decided some hundred times, exploring now and then."""
    outcomes = Producer({"bootstrap.servers": settings.bootstrap, "linger.ms": 0})
    number, give_up = 0, time.monotonic() + READY_S
    shop.send({"decision_id": "spoilt", "task": "support", "subject": "s", "context": {"price": "dear"}})
    while time.monotonic() < give_up:
        for _ in range(20):
            name = f"ask-{number}"
            context = {"price": float(number % 9), "text": "my card is lost"}
            shop.send({"decision_id": name, "task": "support", "subject": f"s-{number % 5}", "context": context})
            number += 1
        shop.collect(number + 1, 60)
        for name, (answer, *_) in list(shop.decided().items())[-20:]:
            if answer["actions"] == ["card"]:
                body = {
                    "subject": answer["subject"],
                    "decision_id": name,
                    "type": "resolved",
                    "outcome_id": f"o-{name}",
                }
                outcomes.produce(topic(settings.namespace, "outcomes"), json.dumps(body), answer["subject"])
        outcomes.flush(10)
        decided = [answer[0] for answer in shop.decided().values() if answer[0]["reason"] == "policy"]
        if len(decided) > 100 and any(answer["propensities"][0] < 0.5 for answer in decided):
            return
        time.sleep(0.3)
    raise AssertionError(f"the policy decided too little within {READY_S:.0f} s")


def test_a_decision_of_the_baseline_is_explained_without_a_snapshot(
    ran: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ran.explain(capsys, ran.chosen_with("no-snapshot"))
    assert shown["snapshot"] is None
    assert shown["scores"]["state"] == "none"
    assert shown["scores"]["num_equal"] == 3, "the baseline's integers follow from the request"
    assert [each["agrees"] for each in shown["draws"]] == [True]
    assert shown["request"]["encodes_equal"]
    assert shown["transition"]["bucket"] == shown["bucket"]
    assert shown["trained"]["version"] >= 1
    assert shown["trained"]["is_certain"]


@pytest.mark.parametrize("most_likely", [True, False], ids=["favourite", "explored"])
def test_a_decision_of_the_policy_is_explained_down_to_the_experts(
    ran: Run, capsys: pytest.CaptureFixture[str], most_likely: bool
) -> None:
    name = ran.chosen_with("policy", most_likely)
    shown = ran.explain(capsys, name)
    answer = ran.answers[name]
    assert shown["snapshot"]["version"] == answer["snapshot_version"]
    assert shown["snapshot"]["signature"] == "valid"
    assert shown["snapshot"]["other_sha256"] == []
    assert shown["scores"]["state"] in ("equal", "within the tolerance")
    assert sum(each["propensities"][0] for each in shown["candidates"]) == 1 << 24
    (chosen,) = [each for each in shown["candidates"] if each["chosen_in"]]
    assert chosen["action_id"] == answer["actions"][0]
    assert chosen["probabilities"][0] == answer["propensities"][0]
    assert all(each["by_expert"] for each in shown["candidates"])
    assert shown["context"]["price"] == shown["request"]["fields"]["context"]["price"]
    assert shown["trained"]["version"] > shown["snapshot"]["version"]
    if not most_likely:
        assert chosen["propensities"][0] < max(each["propensities"][0] for each in shown["candidates"])


def test_the_outcome_that_made_the_reward_is_named(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(name for name in sorted(ran.answers) if ran.answers[name]["actions"] == ["card"])
    shown = ran.explain(capsys, name)
    (outcome,) = shown["outcomes"]
    assert outcome["outcome_id"] == f"o-{name}"
    assert outcome["bucket"] == "used"
    assert outcome["counts_here"]
    assert shown["bucket"] == "joined"
    assert shown["transition"]["rewards"] == [1.0]


def test_people_get_a_page_and_the_subject_narrows_the_search(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    name = ran.chosen_with("policy")
    subject = ran.answers[name]["subject"]
    assert run(["explain", name, "--subject", subject, *ran.flags]) == 0
    page = capsys.readouterr().out
    for word in ("signature", "valid", "draw, slot 0", "transition", "first trained", "everything that can be"):
        assert word in page
    assert run(["explain", name, "--task", "nothing", *ran.flags]) == 1
    assert "does not stand in any partition" in capsys.readouterr().err


def test_an_id_that_is_not_in_the_log_is_one_sentence_with_the_remedy(
    ran: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "never-asked", *ran.flags]) == 1
    said = capsys.readouterr().err
    assert "'never-asked' does not stand in any partition of explained.journal" in said
    assert "Check the id" in said


def test_a_decision_that_was_answered_but_not_journaled_says_so(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "spoilt", *ran.flags]) == 1
    said = capsys.readouterr().err
    assert "reason invalid" in said
    assert "never journaled" in said


def test_another_key_is_told(ran: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from schemas.signing_keys import create_keys

    _, other = create_keys(tmp_path / "keys")
    flags = [*ran.flags[:-1], str(other)]
    assert run(["explain", ran.chosen_with("policy"), "--json", *flags]) == 1
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["snapshot"]["signature"] == "wrong"
    assert "signature" in shown["faults"][0]
