"""What the log says after all that: every sentence of the promise, checked from the topics alone.

Reads requests, decisions, outcomes, journal and dead letters once each. What becomes of a decision between journal and
transitions is `deploy.audit`'s; this looks at the two ends that it does not see: what the shop sent, and what it got.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from deploy import reading
from deploy.torture import corruption
from schemas.blocks import DecisionBlock, OutcomeBlock
from schemas.codec import BadRecord, decode, decode_request
from schemas.keys import decision_key
from schemas.records import DeadLetter, Decision, Reason
from schemas.registry import Registry, open_registry
from schemas.settings import CommonSettings
from schemas.task import Project
from schemas.topics import topic

Place = tuple[int, int]
"""(partition, offset)"""
EXAMPLES = 5


@dataclass(slots=True)
class Log:
    """What the topics hold, as far as the judge needs it."""

    requests: dict[str, tuple[str, Place]] = field(default_factory=dict)
    """Decision id → (task, place of its first request)."""
    num_requests: int = 0
    """Honest ones, those sent twice included."""
    outcomes: set[Place] = field(default_factory=set)
    """Honest ones."""
    spoilt: dict[tuple[str, Place], corruption.Kind] = field(default_factory=dict)
    """By topic and place."""
    journaled: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    """Decision key → place of the chosen action in the catalogue for each of its records, in log order."""
    copied: Counter[Place] = field(default_factory=Counter)
    """How often an outcome stands in the journal: more than once after restarts, told apart by the join."""
    answers: dict[str, list[Decision]] = field(default_factory=lambda: defaultdict(list))
    dead: dict[tuple[str, Place], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Reasons by topic and place of the refused message."""
    unreadable: list[str] = field(default_factory=list)
    """Messages of our own that cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Each a list of examples with its length; all empty when the promise holds."""

    lost_requests: list[str]
    """In the requests topic, and neither journaled nor answered with a reason."""
    unanswered: list[str]
    """No message in the decisions topic."""
    lost_outcomes: list[str]
    strangers: list[str]
    """In the journal or among the answers, never sent."""
    disagreements: list[str]
    """Answered with an action that no journal record of the id has (journal-first), and not as `expired`: a request
    that is read again after the dedupe horizon may have been answered or not, so it is told the baseline, and that
    nothing was journaled."""
    wrong_dead_letters: list[str]
    """Planted and not there, there with another reason, or there and not planted."""
    unreadable: list[str]


def read(settings: CommonSettings) -> Log:
    """Read the namespace's topics. Raises `UserError` when broker or topics are missing."""
    registry, log = open_registry(settings.schema_registry_url), Log()
    for entry in _entries(settings, "requests"):
        kind = corruption.kind_of("requests", entry.key)
        place = (entry.partition, entry.offset)
        if kind is not None:
            log.spoilt["requests", place] = kind
            continue
        request = decode_request(entry.value, registry)
        log.num_requests += 1
        log.requests.setdefault(request.decision_id, (request.task, place))
    for entry in _entries(settings, "outcomes"):
        kind = corruption.kind_of("outcomes", entry.key)
        if kind is not None:
            log.spoilt["outcomes", (entry.partition, entry.offset)] = kind
        else:
            log.outcomes.add((entry.partition, entry.offset))
    _read_ours(settings, registry, log)
    return log


def _read_ours(settings: CommonSettings, registry: Registry, log: Log) -> None:
    names = {topic(settings.namespace, name): name for name in ("requests", "outcomes")}
    for entry in _entries(settings, "journal"):
        try:
            block = decode(entry.value, registry)
        except BadRecord as error:
            log.unreadable.append(f"{entry.where}: {error}")
            continue
        if isinstance(block, DecisionBlock):
            for (high, low), (chosen, *_) in zip(
                block.decision_keys.tolist(), block.columns.chosen.tolist(), strict=True
            ):
                log.journaled[high, low].append(chosen)
        elif isinstance(block, OutcomeBlock):
            log.copied.update((block.source_partition, offset) for offset in block.source_offsets.tolist())
    for entry in _entries(settings, "decisions"):
        decision = reading.decision_of(entry, registry)
        log.answers[decision.decision_id].append(decision)
    for entry in _entries(settings, "dead-letters"):
        letter = decode(entry.value, registry, expect=DeadLetter)
        log.dead[names.get(letter.topic, letter.topic), (letter.partition, letter.offset)].add(letter.reason)


def _entries(settings: CommonSettings, name: str) -> Iterator[reading.Entry]:
    return reading.read_all(settings, topic(settings.namespace, name))


def judge(log: Log, project: Project) -> Findings:
    """Compare what was sent with what became of it. Pure."""
    catalogues = {task.name: task.actions for task in project.tasks if task.reply == "journal-first"}
    ids = {decision_key(decision_id): decision_id for decision_id in log.requests}
    lost, unanswered, disagreements = [], [], []
    for key, decision_id in ids.items():
        answers, actions = log.answers.get(decision_id, []), log.journaled.get(key, [])
        if not answers:
            unanswered.append(decision_id)
        if not actions and not any(answer.reason == Reason.EXPIRED.label for answer in answers):
            lost.append(decision_id)
        catalogue = catalogues.get(log.requests[decision_id][0])
        if actions and catalogue is not None:
            told = {answer.actions[0] for answer in answers if answer.actions and answer.reason != Reason.EXPIRED.label}
            if not told <= {catalogue[place] for place in actions}:
                disagreements.append(f"{decision_id}: journal {len(actions)} records, answers {len(answers)}")
    strangers = [f"journal: {key}" for key in log.journaled if key not in ids]
    strangers += [
        f"answer: {each}" for each in log.answers if each not in log.requests and not each.startswith("spoilt-")
    ]
    strangers += [f"outcome: {place}" for place in log.copied if place not in log.outcomes]
    return Findings(
        lost_requests=lost,
        unanswered=unanswered,
        lost_outcomes=[f"outcomes{place}" for place in log.outcomes if place not in log.copied],
        strangers=strangers,
        disagreements=disagreements,
        wrong_dead_letters=_wrong_letters(log),
        unreadable=log.unreadable,
    )


def _wrong_letters(log: Log) -> list[str]:
    wrong = [
        f"{name}{place} {kind.name}: expected {kind.reason}, got {sorted(log.dead.get((name, place), set())) or 'none'}"
        for (name, place), kind in log.spoilt.items()
        if log.dead.get((name, place)) != {kind.reason}
    ]
    return wrong + [
        f"{name}{place}: {sorted(reasons)} for an honest message"
        for (name, place), reasons in log.dead.items()
        if (name, place) not in log.spoilt
    ]
