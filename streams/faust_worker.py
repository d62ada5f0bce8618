"""Faust apps as we run them: every setting with its reason, and one process around them.

Reasons that are measurements stand in the design notes on Faust; the ones that lose records if changed are marked.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import faust
import faust.streams
import uvloop

from schemas.errors import UserError
from schemas.last_resort import LastResort
from schemas.outage import Outage
from streams import broken_connections
from streams.settings import WorkerSettings
from streams.transport import SCHEME, ColumnarApp, NoTables, register

log = logging.getLogger(__name__)


def make_app(role: str, topics: Iterable[str], settings: WorkerSettings, outage: Outage) -> ColumnarApp:
    """A Faust app of the group ``<namespace>.<role>`` whose `topics` come as record batches.

    It tells `outage` when the broker does not answer, and when it does.
    """
    if vars(faust.streams)["_CStreamIterator"] is None:  # the Python twin acknowledges messages that it skips
        raise UserError(
            "Faust runs without its compiled parts, and then loses records at a rebalance",
            "install the faust-streaming wheel for this platform and unset NO_CYTHON",
        )
    names = frozenset(topics)
    log.info("%s: record batches are %s", role, register(names, settings.decode_in_place))
    group = f"{settings.namespace}.{role}"
    app = ColumnarApp(
        group,
        broker=[f"{SCHEME}://{server}" for server in settings.bootstrap.split(",")],
        store="memory://",
        datadir=settings.state_dir / "faust" / group,
        web_enabled=False,  # on by default, without authentication
        topic_allow_declare=False,
        topic_disable_leader=True,
        reply_create_topic=False,
        consumer_auto_offset_reset="earliest",  # the log is the truth
        consumer_max_fetch_size=settings.fetch_bytes_max,
        consumer_metadata_max_age_ms=30_000,
        broker_client_id=settings.client_id,
        consumer_group_instance_id=settings.instance_id or None,
        broker_check_crcs=True,
        broker_session_timeout=settings.session_timeout_s,
        broker_request_timeout=max(90.0, settings.session_timeout_s),  # Faust's own, and it wants no longer a session
        broker_heartbeat_interval=settings.heartbeat_s,
        broker_rebalance_timeout=60.0,
        broker_commit_interval=settings.commit_interval_s,
        broker_commit_every=1_000_000,  # counts batches: the interval decides
        stream_buffer_maxsize=64,  # counts batches of about two megabytes
        stream_wait_empty=True,  # loses nothing on SIGTERM
        table_standby_replicas=1,  # 0 would replace Faust's co-partitioning assignor by round robin
        TableManager=NoTables,
        producer_request_timeout=30,
        worker_redirect_stdouts=False,
        **_security(settings),
    )
    app.columnar_topics, app.outage = names, outage
    return app


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, for this process and its consumers' threads, current from now on.

    An app is bound to the loop that is current when it is made.
    """
    broken_connections.install()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def check_assignor(app: ColumnarApp) -> None:
    """Raise RuntimeError unless Faust's own co-partitioning assignor is in force (our mistake or a new Faust's)."""
    consumer: Any = app.consumer
    if consumer._thread._assignor is not app.assignor:
        raise RuntimeError("Faust's assignor is not in force: table_standby_replicas must stay at 1")


class _Worker(faust.Worker):
    """Leaves logging alone, and never takes longer to stop than it may."""

    last_resort: LastResort

    def _install_signal_handlers_unix(self) -> None:
        """Python's handlers, not the loop's: those would not run, and nothing count, before the loop has its turn."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self.last_resort.arm(self._what_ran)
        with suppress(RuntimeError):  # the loop is closed: it is stopping already
            self.loop.call_soon_threadsafe(self._on_sigterm)

    def _what_ran(self) -> str:
        """Where every task waits, in the worker's own loop and in those of its Kafka consumers' threads."""
        loops = {"it": self.loop}
        for app in (self.app, *self.services):
            if isinstance(app, faust.App) and app._consumer is not None:
                consumer: Any = app._consumer
                loops[f"the consumer of {app.conf.id}"] = consumer._thread.thread_loop
        return "".join(
            f"; {name} ran: {', '.join(sorted({_place(task) for task in asyncio.all_tasks(loop)}))}"
            for name, loop in loops.items()
        )


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the names of its awaiting functions, outermost first."""
    names: list[str] = []
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        names.append(getattr(coroutine, "__qualname__", type(coroutine).__name__))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return " > ".join(names)


def execute(apps: Sequence[ColumnarApp], loop: asyncio.AbstractEventLoop, last_resort: LastResort) -> int:
    """Run the apps until a signal, which arms `last_resort`, or a crash; returns the exit code."""
    worker = _Worker(apps[0], *apps[1:], loop=loop, override_logging=False, redirect_stdouts=False, quiet=True)
    worker.last_resort = last_resort
    worker.spinner = None
    for app in apps:
        app.in_worker = True
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def data_folder(state_dir: Path) -> None:
    """Make the folder that Faust insists on. Raises UserError when it cannot be written."""
    try:
        (state_dir / "faust").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the state folder {state_dir} cannot be written: {error.strerror or error}",
            "set HEADRACE_STATE_DIR to a folder that this user may write",
        ) from error


def _security(settings: WorkerSettings) -> dict[str, Any]:
    """Faust's credentials out of the librdkafka properties that every other client uses."""
    protocol = settings.kafka_options.get("security.protocol", "plaintext").lower()
    if protocol == "plaintext":
        return {}
    import ssl

    options = settings.kafka_options
    context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
    if certificate := options.get("ssl.certificate.location"):
        context.load_cert_chain(certificate, options.get("ssl.key.location"), options.get("ssl.key.password"))
    if options.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    if protocol == "ssl":
        return {"broker_credentials": faust.SSLCredentials(context)}
    return {
        "broker_credentials": faust.SASLCredentials(
            username=options.get("sasl.username"),
            password=options.get("sasl.password"),
            mechanism=options.get("sasl.mechanism", options.get("sasl.mechanisms", "PLAIN")),
            ssl_context=context if protocol == "sasl_ssl" else None,
        )
    }
