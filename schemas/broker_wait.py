"""The broker that a process needs when it starts: asked for until one answers or patience ends. A shell.

Owns the error that everybody meets first and its remedy. What the topics must be is for those who ask.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import UserError
from schemas.settings import CommonSettings

TRY_S = 1.0
"""In short turns, so that a signal is heard between two."""
SAY_S = 5.0

RETRY_S = 0.1
ANSWER_S_MAX = 5.0
"""For one answer of a broker that is there."""
PROBE_S_MAX = 9.0
"""For the answer to a `Probe`."""
FRESH_S_MAX = 20.0
"""So long what a `Probe` has found counts; it is asked every ten."""
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
"""Answers that no waiting changes."""

T = TypeVar("T")

log = logging.getLogger(__name__)
_quiet = logging.getLogger("headrace.broker-wait.client")
_quiet.disabled = True
"""librdkafka repeats "connection refused" at every try; who asks here says it once."""


def find_topics(
    settings: CommonSettings, stop: threading.Event | None = None
) -> tuple[AdminClient, dict[str, Any]] | None:
    """A client and the metadata of all topics by name, once a broker answers; None when `stop` was set meanwhile.

    Waits up to `settings.broker_wait_s`. Raises UserError with the remedy when none answers by then.
    """
    causes: list[str] = []
    admin = AdminClient(settings.librdkafka(error_cb=lambda error: causes.append(error.str())), logger=_quiet)
    began_s, has_told = time.monotonic(), False
    while stop is None or not stop.is_set():
        try:
            return admin, admin.list_topics(timeout=min(TRY_S, settings.broker_wait_s)).topics
        except KafkaException as error:
            admin.poll(0)
            waited_s = time.monotonic() - began_s
            if waited_s >= settings.broker_wait_s:
                raise UserError(
                    f"no Kafka broker answers at {settings.bootstrap} ({causes[0] if causes else error.args[0].str()})",
                    "start one with `headrace broker start`, or set HEADRACE_BOOTSTRAP to your cluster; where brokers "
                    "restart, let processes wait for them with HEADRACE_BROKER_WAIT_S=60",
                ) from error
            if waited_s >= SAY_S and not has_told:
                has_told = True
                log.warning("no broker answers at %s yet; waiting %g s", settings.bootstrap, settings.broker_wait_s)
    return None


def ask(settings: CommonSettings, question: Callable[[float], T], stop: threading.Event | None = None) -> T | None:
    """What `question` (timeout in s → answer) returns, asked again while a broker that was there has just gone.

    For as long as a process waits for a broker that is not there yet; None when `stop` was set meanwhile. Raises what
    the question raised last, a KafkaException.
    """
    give_up_s = time.monotonic() + settings.broker_wait_s
    while stop is None or not stop.is_set():
        try:
            return question(min(ANSWER_S_MAX, settings.broker_wait_s))
        except KafkaException as error:
            if error.args[0].code() in REFUSED or time.monotonic() >= give_up_s:
                raise
            time.sleep(RETRY_S)
    return None


class Probe:
    """Whether a client that is made for this question finds a broker; asks in a thread, so that nobody waits for it.

    Each call gives the answer to the one before it, and asks again.
    """

    def __init__(self, settings: CommonSettings) -> None:
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._found_s = -math.inf
        """When a broker was found last."""

    def __call__(self) -> bool:
        """True when a broker was found within the last `FRESH_S_MAX` seconds."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, name="broker-probe", daemon=True)
            self._thread.start()
        return time.monotonic() - self._found_s < FRESH_S_MAX

    def _ask(self) -> None:
        admin = AdminClient(self._settings.librdkafka(), logger=_quiet)
        with suppress(KafkaException):
            if admin.list_topics(timeout=PROBE_S_MAX).brokers:
                self._found_s = time.monotonic()


def end_of(consumer: Consumer, partition: TopicPartition) -> int | None:
    """First offset after what the log holds now; 0 where it holds nothing, None when the broker does not say.

    Who reads to the end needs to know where it is: the client's own event comes only when a fetch for more has waited
    in vain, half a second or as long as it was told.
    """
    try:
        low, high = consumer.get_watermark_offsets(partition, timeout=ANSWER_S_MAX)
    except KafkaException:
        return None
    return 0 if low == high else high
