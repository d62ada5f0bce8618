"""Definitions: the `tasks` topic as the learner needs it, polled from its own loop.

Gives every task by fingerprint with the append time of its retirement, and the namespace's settings. Nothing is ever
forgotten: rows of an old definition go on training its heads (learning.md rule 14). One whose schema the registry does
not give now waits, and all behind it (`schemas.undecoded`).
"""

from __future__ import annotations

import logging
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from learner.consume import QUIET
from learner.namespace import Definition
from schemas.broker_wait import end_of
from schemas.codec import BadRecord, decode
from schemas.errors import UserError
from schemas.records import TaskRecord
from schemas.registry import Registry, RegistryUnavailable
from schemas.settings import CommonSettings
from schemas.task import Namespace, Task
from schemas.topics import topic
from schemas.undecoded import Undecoded

log = logging.getLogger(__name__)


class Definitions:
    """Reads the topic when asked; never blocks longer than it is told."""

    def __init__(self, settings: CommonSettings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._tasks: dict[bytes, Definition] = {}
        self._namespace: Namespace | None = None
        self._records = Undecoded(topic(settings.namespace, "tasks"), self._take)
        self._at_end = False
        self._end: int | None = None
        """Where the topic ended when it was first read, where that is known."""
        self._consumer = Consumer(
            settings.librdkafka(
                **{
                    "group.id": f"{settings.namespace}.learner-tasks",  # required by the client, never used
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 1000,
                    **QUIET,
                }
            ),
            logger=logging.getLogger("headrace.kafka"),
        )
        self._where = TopicPartition(topic(settings.namespace, "tasks"), 0, OFFSET_BEGINNING)

    def read_to_end(self, timeout_s: float) -> None:
        """Return once everything that was applied has been read and taken. Raises UserError after `timeout_s`."""
        give_up = time.monotonic() + timeout_s
        self._end = end_of(self._consumer, self._where)  # before it is assigned: the client then knows its leader
        self._consumer.assign([self._where])
        self._at_end = self._at_end or self._end == 0
        while not self._at_end or self._records:
            if time.monotonic() > give_up:
                if (why := self._records.why) is not None:
                    raise UserError(f"a definition in the tasks topic waits for its schema: {why.message}", why.remedy)
                name = topic(self._settings.namespace, "tasks")
                raise UserError(
                    f"topic {name} at {self._settings.bootstrap} was not read to its end within {timeout_s:g} s",
                    "see whether the broker is healthy: headrace broker status",
                )
            self.poll(0.2)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what is there, waiting at most `timeout_s` for the first record; returns how many were taken.

        Nothing is there before `read_to_end` has been called.
        """
        found: list[Message] = []
        message = self._consumer.poll(timeout_s)
        while message is not None:
            error = message.error()
            if error is None:
                found.append(message)
                self._at_end = self._at_end or (self._end is not None and (message.offset() or 0) + 1 >= self._end)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._at_end = True
            message = self._consumer.poll(0)
        return self._records.offer(found)

    def find(self, fingerprint: bytes) -> Definition | None:
        """The definition of a fingerprint, None when the topic does not hold it yet."""
        return self._tasks.get(fingerprint)

    @property
    def namespace(self) -> Namespace | None:
        """Settings of the namespace, None before the first apply."""
        return self._namespace

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()

    def _take(self, message: Message) -> None:
        """Adopt one record. Raises RegistryUnavailable while its schema cannot be fetched."""
        payload = message.value()
        if payload is None:
            return
        try:
            record = decode(payload, self._registry, expect=TaskRecord)
            assert isinstance(record, TaskRecord)
            if record.kind == "namespace":
                self._namespace = Namespace.from_canonical(record.definition)
            elif record.kind == "task":
                task = Task.from_canonical(record.definition)
                self._tasks[task.fingerprint] = Definition(task, message.timestamp()[1] if record.retired else None)
        except RegistryUnavailable:
            raise
        except (BadRecord, UserError) as error:
            log.error(
                "%s offset %d: not a definition this version reads (%s); apply it again with this version, "
                "or upgrade this process",
                message.topic(),
                message.offset(),
                error,
            )
