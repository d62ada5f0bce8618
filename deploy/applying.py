"""`headrace apply`: publish what a headrace.toml declares, so that every process follows it.

Owns the order: journal retention is raised before a longer window goes live (join.md rule 16), the partition count is
written once and never changed (rule 15), a definition that is replaced is retired after its successor stands.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from confluent_kafka import Producer

from deploy import reading, topics
from deploy.definitions import Definitions, read_definitions
from learner.manifest_size import MANIFEST_BYTES_MAX, bytes_at_most
from schemas.codec import encode
from schemas.errors import UserError
from schemas.records import TaskRecord
from schemas.registry import open_registry
from schemas.settings import CommonSettings
from schemas.task import NUM_NAMES_MAX, Project, fingerprint_of
from schemas.topics import topic

FLUSH_S = 20.0
DRAW_KEY_BYTES = 32
"""Of a key that is drawn."""


def apply(settings: CommonSettings, project: Project, retire: tuple[str, ...] = ()) -> list[str]:
    """Publish `project`; `retire` names tasks or source topics that shall decide or map no more.

    Returns one line per change, none when everything stood already. Raises `UserError` when topics are missing, the
    partition count differs from the first apply's, or a name to retire is not applied.
    """
    missing = [fault for fault in topics.check(settings, project) if fault.kind is topics.FaultKind.MISSING]
    if missing:
        raise UserError(missing[0].message, "create the topics first: headrace topics apply headrace.toml")
    standing = read_definitions(settings)
    _refuse_other_partitions(standing, project)
    _refuse_other_draw_key(standing, project)
    refuse_too_many_tasks(standing, project, retire)
    project = with_draw_key(standing, project)
    wanted, retired = wanted_records(standing, project), _retired(standing, retire)
    records = [*wanted, *retired]
    changes = topics.apply(settings, topics.project_with(project, standing.table))
    _publish(settings, records)
    if records:
        _read_back(settings, records)
    return changes + [_told(each) for each in wanted] + [f"retired {each.kind} {each.task}" for each in retired]


def _told(record: TaskRecord) -> str:
    """What became of one of the `wanted_records`, for people."""
    if record.retired:
        return f"replaced {record.kind} {record.task}: its former definition is retired"
    return f"applied {record.kind} {record.task}"


def require_sources(settings: CommonSettings, project: Project, retire: tuple[str, ...] = ()) -> None:
    """Raise `UserError` when the cluster lacks a topic of `[[sources]]`: a name that is misspelt would read nothing.

    But for those to `retire`: that they are gone may be why.
    Not in `apply`: `headrace up` starts a broker that is empty, and the shop makes its topics afterwards.
    """
    for fault in topics.missing_sources(settings, project):
        if fault.topic in retire:
            continue
        raise UserError(fault.message, fault.remedy)


def wanted_records(standing: Definitions, project: Project) -> list[TaskRecord]:
    """Records that are new or changed, then the retirements of what they replace. Pure.

    Raises `UserError` when a new task's name is one more than the join can tell apart.
    """
    _refuse_too_many_names(standing, project)
    namespace = project.namespace
    wanted = [_record(namespace.canonical, namespace.name, "namespace")]
    wanted += [TaskRecord(task.fingerprint, task.name, "task", task.canonical) for task in project.tasks]
    wanted += [_record(source.canonical, source.topic, "source") for source in project.sources]
    fresh = [each for each in wanted if not _stands(standing, each)]
    replaced = [
        TaskRecord(old.fingerprint, old.task, old.kind, old.definition, retired=True)
        for each in fresh
        for old in standing.records.values()
        if each.kind == "task" == old.kind and old.task == each.task and not old.retired
        if old.fingerprint != each.fingerprint
    ]
    return fresh + replaced


def with_draw_key(standing: Definitions, project: Project) -> Project:
    """`project` with the key of the applied namespace where its file declares none; a random one at the first apply.

    Whoever knows the key can foretell which candidate is explored, so it must not follow from anything public.
    """
    if not project.draws_freely:
        return project
    key = secrets.token_hex(DRAW_KEY_BYTES) if standing.namespace is None else standing.namespace.draw_key
    return replace(project, namespace=replace(project.namespace, draw_key=key))


def _stands(standing: Definitions, record: TaskRecord) -> bool:
    """Whether it is in force as it is."""
    if record.kind == "task":
        current = standing.table.named(record.task)
        return current is not None and current.fingerprint == record.fingerprint
    if record.kind == "source":
        source = standing.sources.get(record.task)
        return source is not None and source.canonical == record.definition
    return standing.namespace is not None and standing.namespace.canonical == record.definition


def _record(canonical: str, name: str, kind: str) -> TaskRecord:
    return TaskRecord(fingerprint_of(canonical), name, kind, canonical)


def _refuse_other_partitions(standing: Definitions, project: Project) -> None:
    """Rule 15: P is fixed at the first apply."""
    if standing.namespace is not None and standing.namespace.partitions != project.namespace.partitions:
        raise UserError(
            f"namespace {project.namespace.name} was first applied with {standing.namespace.partitions} partitions, "
            f"the file says {project.namespace.partitions}",
            "correct namespace.partitions, or use a new namespace: subjects would move between partitions",
        )


def _refuse_other_draw_key(standing: Definitions, project: Project) -> None:
    """Workers draw with the key that stood when they started, and whoever explains a decision with the one that
    stands: with two of them the same request would get two answers, and a logged draw would look wrong."""
    applied = standing.namespace
    if applied is not None and not project.draws_freely and applied.draw_key != project.namespace.draw_key:
        raise UserError(
            f"namespace {project.namespace.name} draws with another key than the file's namespace.draw_key",
            "leave draw_key out to go on with the applied one; another key needs a new namespace",
        )


def refuse_too_many_tasks(standing: Definitions, project: Project, retire: tuple[str, ...]) -> None:
    """The learner names every task of every partition in one message; raises UserError when that could not hold them.

    What makes a namespace smaller, or leaves it as it is, is always taken.
    """
    before = {task.name for task in standing.table.current}
    after = (before | {task.name for task in project.tasks}) - set(retire)
    partitions = project.namespace.partitions
    size_bytes = bytes_at_most(partitions, len(after))
    if size_bytes <= MANIFEST_BYTES_MAX or len(after) <= len(before):
        return
    room = max((n for n in range(len(after)) if bytes_at_most(partitions, n) <= MANIFEST_BYTES_MAX), default=0)
    raise UserError(
        f"{len(after)} tasks in {partitions} partitions are too many for one namespace: the learner's manifest would "
        f"take up to {size_bytes} bytes, expected at most {MANIFEST_BYTES_MAX}, the size of a message",
        f"declare at most {room} tasks here and the others in another namespace, or use a new namespace with fewer "
        "partitions",
    )


def _refuse_too_many_names(standing: Definitions, project: Project) -> None:
    """A name is never given back: decisions made under a retired task are still joined."""
    used = {task.name for task in standing.table.tasks}
    fresh = {task.name for task in project.tasks} - used
    if fresh and len(used | fresh) > NUM_NAMES_MAX:
        raise UserError(
            f"task {min(fresh)!r} would be one of {len(used | fresh)} task names of the namespace "
            f"{project.namespace.name}, which holds {NUM_NAMES_MAX}; {len(used)} are used, retired ones included",
            "give the task a name that was used before (a changed task keeps its name), or use another namespace",
        )


def _retired(standing: Definitions, names: tuple[str, ...]) -> list[TaskRecord]:
    """Retirements that the user asked for by name."""
    records = []
    for name in names:
        task, source = standing.table.named(name), standing.sources.get(name)
        if task is not None:
            records.append(TaskRecord(task.fingerprint, name, "task", task.canonical, retired=True))
        elif source is not None:
            records.append(TaskRecord(fingerprint_of(source.canonical), name, "source", source.canonical, retired=True))
        else:
            applied = [each.name for each in standing.table.current] + sorted(standing.sources)
            raise UserError(
                f"cannot retire {name!r}: no task or source of that name is applied",
                f"name one of: {', '.join(applied) or '(nothing is applied)'}",
            )
    return records


def _read_back(settings: CommonSettings, records: list[TaskRecord]) -> None:
    """What was written can be read by those who follow. On a fresh machine this also compiles the decoder, once."""
    standing = read_definitions(settings)
    for record in records:
        if record.fingerprint not in standing.records:
            raise UserError(
                f"{record.kind} {record.task} was acked but does not stand in {topic(settings.namespace, 'tasks')}",
                "run the same command again, and look at the broker's log",
            )


def _publish(settings: CommonSettings, records: list[TaskRecord]) -> None:
    """Write the records in order and wait for their acks."""
    registry = open_registry(settings.schema_registry_url)
    producer = Producer(settings.librdkafka(**{"acks": "all", "enable.idempotence": True}), logger=reading.quiet)
    failed: list[str] = []
    for record in records:
        producer.produce(
            topic(settings.namespace, "tasks"),
            encode(record, registry),
            record.fingerprint,
            on_delivery=lambda error, _: failed.append(str(error)) if error else None,
        )
    if producer.flush(FLUSH_S) or failed:
        raise UserError(
            f"the definitions were not all written: {failed[0] if failed else 'the broker does not answer'}",
            "run the same command again; what is written already stays",
        )
