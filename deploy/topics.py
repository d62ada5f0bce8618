"""Topics as `schemas.topics` wants them: create what is missing, refuse what is wrong.

A topic of ours that somebody else made (auto-creation, an old script) has the client's clock, and then a worker's
clock decides what Kafka deletes and when a window closes: `check` names every such difference and its remedy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it re-exports them without saying so in its types
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from deploy import processes
from schemas.errors import UserError
from schemas.settings import CommonSettings
from schemas.task import Project, TaskTable, canonical_json
from schemas.task_canonical import namespace_of
from schemas.topics import TOPICS, configs, topic

REPLICAS_MAX = 3
TIMEOUT_S = 20.0
CREATE_IT = "create it: headrace topics apply"
SPREAD_S = 5.0
"""How long a new topic may take to be known to every broker."""

_quiet = logging.getLogger("headrace.topics")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """One topic as it must be."""

    name: str
    partitions: int
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """One topic as it is."""

    partitions: int
    config: dict[str, str]


class FaultKind(Enum):
    """What differs. Never told by the words of a message: a topic's name stands in them."""

    MISSING = "missing"
    PARTITIONS = "partitions"
    SETTING = "setting"


@dataclass(frozen=True, slots=True)
class Fault:
    """One difference, in words."""

    kind: FaultKind
    topic: str
    message: str
    remedy: str


def empty_project(namespace: str, partitions: int) -> Project:
    """A project without tasks, for topics that are made before anything is decided."""
    return Project(namespace_of(canonical_json({"name": namespace, "partitions": partitions})), (), ())


def wanted(project: Project) -> list[Wanted]:
    """Every topic of the project's namespace."""
    namespace = project.namespace
    return [
        Wanted(
            topic(namespace.name, spec.name),
            namespace.partitions if spec.partitions == "P" else int(spec.partitions),
            configs(spec, project),
        )
        for spec in TOPICS
    ]


def admin(settings: CommonSettings) -> AdminClient:
    """A client that complains only through its return values."""
    return AdminClient(settings.librdkafka(), logger=_quiet)


def found(settings: CommonSettings, names: Iterable[str]) -> dict[str, Found]:
    """Those of `names` that exist, with their settings. Raises `UserError` when no broker answers."""
    client = admin(settings)
    try:
        known = client.list_topics(timeout=5).topics
    except KafkaException as error:
        raise _no_broker(settings) from error
    here = [name for name in names if name in known and known[name].error is None]
    if not here:
        return {}
    described: dict[str, dict[str, str]] = {}
    # Brokers hear of a new topic one after another, and another one than it was listed by may be asked.
    processes.wait_until(lambda: _describe(client, here, described), SPREAD_S)
    return {name: Found(len(known[name].partitions), described[name]) for name in here if name in described}


def _describe(client: AdminClient, names: Sequence[str], described: dict[str, dict[str, str]]) -> bool:
    """Add the settings of those `names` that are not described yet; whether none is left."""
    missing = [name for name in names if name not in described]
    asked = client.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in missing])
    for resource, future in asked.items():
        try:
            described[resource.name] = {key: str(entry.value) for key, entry in future.result(TIMEOUT_S).items()}
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._DESTROY_BROKER):
                raise
    return len(described) == len(names)


def create(settings: CommonSettings, partitions: int = 4) -> list[str]:
    """Topics of an empty namespace, for tests and for a start without a file. Returns the names made."""
    return apply(settings, empty_project(settings.namespace, partitions))


def apply(settings: CommonSettings, project: Project) -> list[str]:
    """Create the missing topics, lengthen retentions that are too short. Returns one line per change.

    Raises `UserError` when a topic stands that cannot be mended (another partition count) or no broker answers.
    """
    want = wanted(project)
    here = found(settings, [each.name for each in want])
    for fault in faults(want, here):
        if fault.kind is FaultKind.PARTITIONS:
            raise UserError(fault.message, fault.remedy)
    client = admin(settings)
    missing = [each for each in want if each.name not in here]
    replicas = min(REPLICAS_MAX, len(client.list_topics(timeout=5).brokers))
    made = [NewTopic(each.name, each.partitions, replicas, config=each.config) for each in missing]
    _create(client, made)
    changes = [f"created {each.name} ({each.partitions} partitions)" for each in missing]
    for each in want:
        differing = _differing(each, here[each.name]) if each.name in here else {}
        if differing:
            _set(client, each.name, differing)
            changes += [f"set {key}={value} on {each.name}" for key, value in differing.items()]
    if changes:  # a broker answers before its own metadata show what it did
        names = [each.name for each in want]
        processes.wait_until(lambda: not faults(want, found(settings, names)), TIMEOUT_S)
    return changes


def check(settings: CommonSettings, project: Project) -> list[Fault]:
    """Everything about the topics that would make headrace wrong; empty when all is well."""
    want = wanted(project)
    return faults(want, found(settings, [each.name for each in want]))


def missing_sources(settings: CommonSettings, project: Project) -> list[Fault]:
    """Topics of `[[sources]]` that the cluster does not have: the shop's, so nothing of ours creates them.

    Raises `UserError` when no broker answers. One that this user may not see is not called missing: the worker may.
    """
    names = [source.topic for source in project.sources]
    if not names:
        return []
    result, client = [], admin(settings)  # dropped, a client would cancel its own calls
    for name, asked in client.describe_topics(TopicCollection(names), request_timeout=5).items():
        try:
            asked.result(TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                result.append(_missing_source(settings, name))
            elif error.args[0].code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
                raise _no_broker(settings) from error
    return result


def _missing_source(settings: CommonSettings, name: str) -> Fault:
    return Fault(
        FaultKind.MISSING,
        name,
        f"topic {name}, which [[sources]] names, is missing at {settings.bootstrap}",
        "create it, it is the shop's and no command of headrace makes it; or correct `topic` of [[sources]]",
    )


def _no_broker(settings: CommonSettings) -> UserError:
    return UserError(
        f"no Kafka broker answers at {settings.bootstrap}",
        "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster",
    )


def faults(want: Sequence[Wanted], here: dict[str, Found]) -> list[Fault]:
    """Differences that matter between what must be and what is."""
    result = []
    for each in want:
        it = here.get(each.name)
        if it is None:
            result.append(Fault(FaultKind.MISSING, each.name, f"topic {each.name} is missing", CREATE_IT))
            continue
        if it.partitions != each.partitions:
            message = f"topic {each.name} has {it.partitions} partitions, expected {each.partitions}"
            remedy = "the number is fixed at the first apply: use a new namespace, or correct namespace.partitions"
            result.append(Fault(FaultKind.PARTITIONS, each.name, message, remedy))
        for key, value in _differing(each, it).items():
            message = f"topic {each.name} has {key}={it.config.get(key)}, expected {value}"
            remedy = _REMEDIES.get(key, "mend it: headrace topics apply")
            result.append(Fault(FaultKind.SETTING, each.name, message, remedy))
    return result


_REMEDIES = {
    "message.timestamp.type": "records already in it carry a client's clock: mend it with `headrace topics apply`, "
    "and if it holds records, start again in a new namespace",
}


def _differing(each: Wanted, it: Found) -> dict[str, str]:
    """Settings to change: other values, and retentions that are shorter than needed (longer ones are the user's)."""
    result = {}
    for key, value in each.config.items():
        now = it.config.get(key)
        if now == value:
            continue
        if key == "retention.ms" and now is not None and value != "-1" and (now == "-1" or int(now) >= int(value)):
            continue
        result[key] = value
    return result


def _create(client: AdminClient, topics: Sequence[NewTopic]) -> None:
    """Create topics. While a cluster comes up, the client may forget the node that it has asked: it asks again."""
    end_s = time.monotonic() + TIMEOUT_S
    while topics:
        asked = client.create_topics(list(topics))
        lost = {name for name, future in asked.items() if not _is_settled(name, future, end_s)}
        topics = [each for each in topics if each.topic in lost]


def _is_settled(name: str, future: Any, end_s: float) -> bool:
    """Wait for a creation; another process may have been first. False: nobody knows, ask again."""
    try:
        future.result(TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() == KafkaError._DESTROY_BROKER and time.monotonic() < end_s:
            return False
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise UserError(
                f"topic {name} could not be created: {error.args[0].str()}",
                "see whether the broker is healthy and lets this user create topics",
            ) from error
    return True


def _set(client: AdminClient, name: str, config: dict[str, str]) -> None:
    """Change some settings of a topic and leave the others."""
    entries = [ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
    for future in client.incremental_alter_configs([resource]).values():
        future.result(TIMEOUT_S)


def project_with(project: Project, table: TaskTable) -> Project:
    """`project` with every definition that was ever applied: retention must suit the longest window of all."""
    known = {task.fingerprint: task for task in (*table.tasks, *project.tasks)}
    return Project(project.namespace, tuple(known.values()), project.sources)
