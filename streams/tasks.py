"""Follow the `tasks` topic: which tasks, sources and namespace settings are applied.

A shell with one daemon thread, shared by every worker role. The table grows in place, so whoever holds it sees a new
definition without being told; `changes` says whether to look again. Definitions are never forgotten: decisions made
under an old one are still joined and learnt (join.md rule 13). One whose schema the registry does not give now waits,
and all behind it, because the last one is in force (`schemas.undecoded`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from schemas.broker_wait import end_of
from schemas.codec import BadRecord, decode, encode
from schemas.errors import UserError
from schemas.records import DeadLetter, TaskRecord
from schemas.registry import FileRegistry, Registry, RegistryUnavailable, open_registry
from schemas.settings import CommonSettings
from schemas.task import Namespace, Source, TaskTable
from schemas.topics import topic
from schemas.undecoded import Undecoded
from streams.cluster import require_topics
from streams.dead_letters import UNTOLD_MAX, letter_of
from streams.examples import example_task

log = logging.getLogger(__name__)

POLL_S = 0.5


def rehearse() -> None:
    """Read a made-up definition, so that numba compiles what reads one: 8 s of processor in a new container.

    Before the first is read from the log and not while: a processor of which there is a fifth would take longer than
    `TaskFollower.wait_ready` waits, for ever where every start is the first one. By the packaged schemas: a registry
    that is away is no reason not to compile.
    """
    registry = FileRegistry()
    record = decode(encode(example_task().record(), registry), registry, expect=TaskRecord)
    assert isinstance(record, TaskRecord)
    TaskTable().apply(record)


class TaskFollower:
    """Knows every definition that has been applied, within a few milliseconds of its being written.

    >>> with TaskFollower(settings) as tasks:  # doctest: +SKIP
    ...     tasks.wait_ready(10)
    ...     tasks.table.named("support")
    """

    def __init__(self, settings: CommonSettings, registry: Registry | None = None) -> None:
        self.table = TaskTable()
        """Grows in place; safe to read from any thread."""
        self.changes = 0
        """Definitions read so far: when it has not moved, nothing has."""
        self.untold: deque[DeadLetter] = deque(maxlen=UNTOLD_MAX)
        """Records that are no definition. Every worker reads them; the owner of the first journal partition tells."""
        self._settings = settings
        self._registry = registry
        self._namespace: Namespace | None = None
        self._sources: dict[str, Source] = {}
        self._records = Undecoded(topic(settings.namespace, "tasks"), self._take)
        self._is_at_end = False
        """Once all that was in the log at the start has been read, taken or not."""
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tasks", daemon=True)

    @property
    def namespace(self) -> Namespace:
        """Settings of the namespace. Raises UserError before anything was applied."""
        if self._namespace is None:
            raise UserError(
                f"nothing is applied to the namespace {self._settings.namespace!r} at {self._settings.bootstrap}",
                "run `headrace apply headrace.toml` first",
            )
        return self._namespace

    @property
    def sources(self) -> tuple[Source, ...]:
        """Foreign topics that are mapped to outcomes, in order of topic."""
        return tuple(self._sources[name] for name in sorted(self._sources.copy()))

    def start(self) -> TaskFollower:
        """Start following. Raises UserError when there is no broker or no `tasks` topic."""
        require_topics(self._settings, [topic(self._settings.namespace, "tasks")])
        if self._registry is None:
            self._registry = open_registry(self._settings.schema_registry_url)
        rehearse()
        self._thread.start()
        return self

    def wait_ready(self, timeout_s: float) -> None:
        """Return once all that was applied before the start is in the table.

        Raises UserError when nothing is applied, when the journal has another number of partitions than the first
        apply wrote (join.md rule 15), or after `timeout_s`.
        """
        if not self._ready.wait(timeout_s):
            if (why := self._records.why) is not None:
                raise UserError(f"a definition in the tasks topic waits for its schema: {why.message}", why.remedy)
            raise UserError(
                f"topic {topic(self._settings.namespace, 'tasks')} at {self._settings.bootstrap} "
                f"was not read to its end within {timeout_s:g} s",
                "see whether the broker is healthy: headrace broker status",
            )
        if self._failure is not None:
            raise self._failure
        journal = topic(self._settings.namespace, "journal")
        found = require_topics(self._settings, [journal])[journal]
        if found != self.namespace.partitions:
            raise UserError(
                f"topic {journal} has {found} partitions, the first apply wrote {self.namespace.partitions}: "
                "subjects would move between partitions",
                "use a new namespace for another number of partitions, and drain this one",
            )

    def close(self) -> None:
        """Stop following; waits up to two poll intervals."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * POLL_S)

    def __enter__(self) -> TaskFollower:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            for message in self._messages():
                self._records.offer([] if message is None else [message])
                if self._is_at_end and not self._records:
                    self._ready.set()
        except BaseException as error:  # a dead follower must not look like a quiet topic
            self._failure = error
            self._ready.set()
            log.exception("following the tasks topic ended; this process knows no task applied from now on")

    def _messages(self) -> Iterator[Message | None]:
        """Every message of the topic, for ever, and None now and then; notes the first end of the log."""
        name = topic(self._settings.namespace, "tasks")
        consumer = Consumer(
            self._settings.librdkafka(
                **{
                    "group.id": f"{self._settings.namespace}.follow-tasks",  # required by the client, never used
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "auto.offset.reset": "earliest",
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )
        try:
            where = TopicPartition(name, 0, OFFSET_BEGINNING)
            end = end_of(consumer, where)  # before it is assigned: the client then knows its leader
            consumer.assign([where])
            self._is_at_end = end == 0
            yield None
            while not self._stopping.is_set():
                message = consumer.poll(POLL_S)
                error = None if message is None else message.error()
                if message is None or error is not None:
                    self._is_at_end |= error is not None and error.code() == KafkaError._PARTITION_EOF
                    yield None
                else:
                    self._is_at_end |= end is not None and (message.offset() or 0) + 1 >= end
                    yield message
        finally:
            consumer.close()

    def _take(self, message: Message) -> None:
        """Put one record into the table; one that this version cannot read is logged, and the rest goes on.

        Raises RegistryUnavailable while its schema cannot be fetched.
        """
        payload = message.value()
        if payload is None:
            return  # a tombstone: only allowed once no journal record refers to it
        assert self._registry is not None
        try:
            record = decode(payload, self._registry, expect=TaskRecord)
            assert isinstance(record, TaskRecord)
            self._adopt(record)
        except RegistryUnavailable:
            raise
        except BadRecord as error:
            self._refuse(message, payload, error)
            return
        except UserError as error:
            self._refuse(message, payload, BadRecord("bad-definition", str(error)))
            return
        self.changes += 1

    def _refuse(self, message: Message, payload: bytes, error: BadRecord) -> None:
        log.error(
            "%s partition 0 offset %d: not a definition this version reads (%s); "
            "apply it again with this version, or upgrade this process",
            message.topic(),
            message.offset(),
            error,
        )
        where = (topic(self._settings.namespace, "tasks"), 0, message.offset() or 0)
        self.untold.append(letter_of(where, payload, message.timestamp()[1], error.reason, error.detail))

    def _adopt(self, record: TaskRecord) -> None:
        if record.kind == "namespace":
            self._namespace = Namespace.from_canonical(record.definition)
        elif record.kind == "source":
            if record.retired:
                self._sources.pop(record.task, None)
            else:
                self._sources[record.task] = Source.from_canonical(record.definition)
        elif record.kind == "task":
            self.table.apply(record)
        else:
            raise BadRecord("wrong-type", f"kind {record.kind!r}, expected task, namespace or source")
