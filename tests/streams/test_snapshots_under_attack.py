"""10,000 mutations of snapshots against the real reader: none serves, each has its exact reason, decisions go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from learner.policy import probes
from schemas.codec import decode, encode
from schemas.records import DecisionRequest, Reason, SnapshotManifest
from schemas.registry import RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.signing_keys import create_keys, load_private_key
from schemas.task import Project, TaskTable, parse
from schemas.varints import REASONS
from streams.decide import Asked, Decide, Situation
from streams.features import Encoder
from streams.manifests import MANIFESTS_BACK, Came, RawManifest
from streams.policy import REFUSALS, Refused
from streams.snapshots import SnapshotFollower
from tests.schemas.away import message
from tests.streams.snapshot_attacks import ATTACKS, REGISTRY, Arrays, Forge, Sent

MUTATIONS = 10_000
GOOD_EVERY = 400
"""A good snapshot between so many spoilt ones must serve: a reader that refuses all would pass otherwise."""
UNREADABLE = {code for code, _ in REASONS if code}
NOW = 1_700_000_000_000
TOML = """
[namespace]
name = "t"
partitions = 1
[[tasks]]
name = "route"
actions = ["card", "refund", "other"]
[tasks.context]
age = { kind = "number" }
text = { kind = "text" }
[tasks.reward]
window = "10s"
[tasks.reward.outcomes.resolved]
aggregate = "max"
binary = true
"""


class Reader(SnapshotFollower):
    """The real reader; its messages come by hand instead of from a broker."""

    def __init__(self, settings: CommonSettings, project: Project) -> None:
        self.reasons: list[str] = []
        self.details: list[str] = []
        super().__init__(settings, REGISTRY, TaskTable(project.tasks), on_refused=self.reasons.append)
        self._sent: Sent | None = None
        self._offset = 0
        self._reading = self._manifests(None)  # type: ignore[arg-type]  # nothing is fetched

    def offer(self, sent: Sent) -> None:
        """Everything that one message of the `snapshots` topic sets off."""
        self._sent, self._offset = sent, self._offset + 1
        self._complained.clear()
        self.reasons.clear()
        self.details.clear()
        self.untold.clear()
        manifests = self._reading.read(RawManifest(self._offset, NOW, sent.manifest))
        if manifests:
            assert self._take_newest(manifests, self) == []  # type: ignore[arg-type]  # `of` stands for the log

    def of(self, manifest: SnapshotManifest) -> list[bytes]:
        """The chunks that came with the manifest."""
        assert self._sent is not None
        if self._sent.is_gone:
            raise Refused("missing-chunk", "gone")
        return self._sent.chunks

    def _complain(self, which: str, refused: Refused) -> None:
        self.details.append(refused.detail)
        super()._complain(which, refused)


def weights_of(rng: Random) -> Arrays:
    """A wide head that scores by age and action, with every array that the network wants."""
    random = np.random.default_rng(rng.randrange(2**32))
    return {
        "stats": np.array([10_000.0, 0.5, 0.25, 1e-6, 0.0, 0.0]),
        "stack": np.ones(1),
        "action_rows": np.full(3, 1000, np.int64),
        "x_mean": np.array([40.0]),
        "x_scale": np.array([0.1]),
        "a_mean": np.zeros(0),
        "a_scale": np.zeros(0),
        "wide": random.normal(size=(2, 3)) * 0.1,
    }


@pytest.fixture(scope="module")
def project() -> Project:
    return parse(TOML)


@pytest.fixture
def forge(project: Project, tmp_path: Path) -> Forge:
    private_key, _ = create_keys(tmp_path / "keys")
    task = project.tasks[0]
    requests = [DecisionRequest(f"p{k}", "route", "p", {"age": 20.0 + k, "text": "a card"}) for k in range(8)]
    features = Encoder(task).encode(requests).columns
    allowed = np.ones(int(features.num_candidates.sum()), np.bool_)
    return Forge(task, load_private_key(private_key), probes.ProbeInputs(features, allowed), weights_of)


@pytest.fixture
def reader(project: Project, forge: Forge, tmp_path: Path) -> Reader:
    settings = CommonSettings(state_dir=tmp_path, public_key=tmp_path / "keys" / "headrace.public.pem")
    return Reader(settings, project)


class Shop:
    """Asks in between, and insists on answers by the last good policy."""

    def __init__(self, project: Project) -> None:
        self._decide = Decide(project.namespace, TaskTable(project.tasks), lambda block: 0)
        self.answered = 0

    def ask(self, reader: Reader, version: int) -> None:
        request = DecisionRequest(f"d{self.answered}", "route", "s", {"age": float(self.answered % 70), "text": "lost"})
        situation = Situation(NOW, reader.policy, snapshot_refused=reader.policy is None and reader.refused)
        decided = self._decide.batch([Asked(request, 0, self.answered, NOW)], situation)
        (group,) = decided.groups
        assert group.rows[0].reason is Reason.POLICY
        assert group.decisions[0].snapshot_version == group.version == version
        assert group.columns.propensities.sum() == 1 << 24
        self.answered += 1


@pytest.mark.timeout(600)
def test_of_10_000_mutations_none_serves_each_has_its_reason_and_every_decision_is_answered(
    project: Project, forge: Forge, reader: Reader
) -> None:
    rng, shop = Random(20_260_731), Shop(project)
    names: Sequence[str] = sorted(ATTACKS)
    shares = [ATTACKS[name][1] for name in names]
    version, old = 2, forge.make(1, rng)
    reader.offer(old)
    reader.offer(forge.make(2, rng))
    serving = reader.policy
    assert serving is not None
    done: Counter[str] = Counter()
    while done.total() < MUTATIONS:
        name = rng.choices(names, shares)[0]
        sent = ATTACKS[name][0](forge, version + 1, rng, old)
        if sent is None:  # the same manifest in other bytes: nothing was altered
            continue
        reader.offer(sent)
        where = f"{name}, after {done.total()} others: {reader.details}"
        assert reader.reasons == [sent.reason], where
        assert sent.detail in reader.details[0], where
        (letter,) = reader.untold
        assert letter.reason == sent.reason or (sent.reason == "unreadable-manifest" and letter.reason in UNREADABLE)
        assert sent.detail in f"{letter.reason}: {letter.detail}", where
        assert reader.policy is serving, where
        assert reader.refused
        shop.ask(reader, version)
        done[name] += 1
        if done.total() % GOOD_EVERY == 0:
            version += 1
            reader.offer(forge.make(version, rng))
            assert reader.reasons == []
            serving = reader.policy
            assert serving is not None
            assert serving.version == version
    assert shop.answered == MUTATIONS
    assert set(done) == set(ATTACKS)


def test_every_reason_that_the_core_can_give_is_among_the_attacks(forge: Forge) -> None:
    rng = Random(1)
    old = forge.make(1, rng)
    made = {sent.reason for attack, _ in ATTACKS.values() for _ in range(40) if (sent := attack(forge, 9, rng, old))}
    assert made == set(REFUSALS) - {"not-persisted"}


def test_a_version_that_cannot_be_persisted_does_not_serve(
    forge: Forge, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = Random(3)
    reader.offer(forge.make(1, rng))
    serving = reader.policy

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reader._trusted, "raise_to", full)
    reader.offer(forge.make(2, rng))
    assert reader.reasons == ["not-persisted"]
    assert "No space left" in reader.details[0]
    assert reader.policy is serving
    assert not reader.untold, "nothing is wrong with it"


def test_the_largest_version_serves_only_with_the_right_key_and_nothing_comes_after(
    forge: Forge, reader: Reader
) -> None:
    """What a stolen key can do and no later snapshot repairs: said in docs/guarantees.md, not prevented."""
    rng = Random(4)
    reader.offer(forge.make(2**63 - 1, rng))
    assert reader.policy is not None
    assert reader.policy.version == 2**63 - 1
    reader.offer(forge.make(7, rng))
    assert reader.reasons == ["old-version"]


def test_a_manifest_whose_schema_cannot_be_fetched_now_is_read_when_it_can(forge: Forge, reader: Reader) -> None:
    """A registry that is away must neither end the follower nor cost the snapshot."""

    class Away:
        def schema_of(self, schema_id: int) -> Any:
            raise RegistryUnavailable("the schema registry did not answer", "check that it runs")

    sent = forge.make(1, Random(5))
    reading = reader._reading
    reading._registry = Away()  # type: ignore[assignment]  # all that decoding a manifest asks of it
    reader.offer(sent)
    assert reader.reasons == ["unreadable-manifest"]
    assert reading._unread() == []
    reading._registry = REGISTRY
    (came,) = reading._unread()
    assert came.manifest.version == 1
    assert reading._unread() == []
    assert not reader.untold, "nothing is wrong with it"


class Waiting:
    """A client that has all these messages for whoever asks."""

    def __init__(self, first: int, manifests: Sequence[bytes]) -> None:
        self._messages = [message(payload, first + k) for k, payload in enumerate(manifests)]

    def poll(self, _timeout_s: float) -> Any:
        return self._messages.pop(0) if self._messages else None


@pytest.mark.parametrize("at_once", [True, False], ids=["at one look", "while the broker is away"])
def test_any_number_of_manifests_that_may_not_serve_hide_no_good_one(
    forge: Forge, reader: Reader, at_once: bool
) -> None:
    """Found by review: eight of them behind it did, while the worker looked after it had started."""
    rng, reading = Random(6), reader._reading
    reader.offer(forge.make(1, rng))
    good, old = forge.make(2, rng), forge.make(1, rng).manifest
    manifest = decode(good.manifest, REGISTRY, expect=SnapshotManifest)
    unsigned = encode(replace(manifest, version=3, signature=b""), REGISTRY)
    pending: list[Came] = []
    for first, looked_at in (
        ((100, [good.manifest, *[unsigned, old] * 9]),)
        if at_once
        else ((100, [good.manifest]), (101, [unsigned, old] * 9))
    ):
        reading._consumer = Waiting(first, looked_at)  # type: ignore[assignment]  # it is only polled
        pending = reader._newer(reading, pending)
    reader._sent = good
    assert reader._take_newest(pending, reader) == []  # type: ignore[arg-type]  # `of` stands for the log
    assert reader.policy is not None
    assert reader.policy.version == 2
    assert len(pending) <= 2 * MANIFESTS_BACK, "memory is bounded"
    assert "no-signature" in reader.reasons
