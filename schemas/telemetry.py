"""One catalogue of metrics per process: name, unit, meaning and remedy stand together, and nowhere else.

A shell around prometheus_client, used by the workers and by the learner. A metric that is not in a catalogue cannot be
counted; the reference page of the docs is generated from the catalogues.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from schemas.errors import UserError

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of a catalogue."""

    name: str
    """Prometheus name, unit last; counters without `_total` (it is added)."""
    kind: str
    """counter, gauge or histogram."""
    unit: str
    """What one is: records, ms, seconds, bytes, 1."""
    meaning: str
    """What it says, in one sentence."""
    remedy: str
    """What to do when it looks wrong, "none needed" where it never does."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY_BUCKETS_S
    """Upper bounds of a histogram."""


Check = Callable[[], str | None]
"""None when all is well, else one sentence that says what is not."""


class Metrics:
    """The metrics of one process, made from its catalogue.

    >>> metrics = Metrics([Metric("hr_rows", "counter", "rows", "Rows seen.", "none needed", ("partition",))])
    >>> metrics.add("hr_rows", 3, partition=1)
    >>> metrics.value("hr_rows", partition=1)
    3.0
    """

    def __init__(self, catalogue: Iterable[Metric]) -> None:
        self.registry = CollectorRegistry()
        self.catalogue = tuple(catalogue)
        self._by_name: dict[str, Any] = {metric.name: _made(metric, self.registry) for metric in self.catalogue}
        self._labels = {metric.name: metric.labels for metric in self.catalogue}

    def add(self, name: str, amount: float = 1, **labels: Any) -> None:
        """Count. Raises KeyError for a name that is not in the catalogue."""
        self._child(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: Any) -> None:
        """Set a gauge."""
        self._child(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: Any) -> None:
        """Put a value into a histogram."""
        self._child(name, labels).observe(value)

    def drop(self, name: str, **labels: Any) -> None:
        """Forget one set of labels: a partition that is no longer ours must not be reported for ever."""
        with suppress(KeyError):
            self._by_name[name].remove(*(str(labels[label]) for label in self._labels[name]))

    def value(self, name: str, **labels: Any) -> float:
        """Present value of a counter or gauge; 0 before it was touched."""
        kind = next(metric.kind for metric in self.catalogue if metric.name == name)
        sample = f"{name}_total" if kind == "counter" else name
        found = self.registry.get_sample_value(sample, {key: str(value) for key, value in labels.items()})
        return 0.0 if found is None else found

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _child(self, name: str, labels: dict[str, Any]) -> Any:
        metric = self._by_name[name]
        return metric.labels(**labels) if labels else metric


def _made(metric: Metric, registry: CollectorRegistry) -> Any:
    text = f"{metric.meaning} [{metric.unit}]"
    if metric.kind == "counter":
        return Counter(metric.name, text, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, text, metric.labels, registry=registry)
    return Histogram(metric.name, text, metric.labels, registry=registry, buckets=metric.buckets)


class MetricsServer:
    """HTTP on the metrics port: ``/metrics``, ``/live`` and ``/ready`` (200, or 503 with the reason).

    `live` None: restart me when it complains. `ready` None: send me nothing yet when it complains.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, live: Check, ready: Check) -> None:
        """Open the port (0: any free one). Raises UserError when it is taken."""
        handler = _handler(metrics, {"/live": live, "/ready": ready})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise UserError(
                f"the metrics port {host}:{port} cannot be opened: {error.strerror or error}",
                "set HEADRACE_METRICS_PORT to a free port, or to 0 for any",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)

    def start(self) -> MetricsServer:
        """Answer from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Close the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A probe that hangs up early is not news."""


def _handler(metrics: Metrics, checks: dict[str, Check]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/metrics":
                self._answer(200, metrics.exposition(), CONTENT_TYPE_LATEST)
            elif path in checks:
                complaint = checks[path]()
                self._answer(503 if complaint else 200, f"{complaint or 'ok'}\n".encode(), "text/plain; charset=utf-8")
            else:
                self._answer(404, b"try /metrics, /live or /ready\n", "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Scrapes are not news."""

    return Handler
