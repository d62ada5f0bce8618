"""A schema registry for the tests: the part of Confluent's API that we use, over HTTP, in a thread, to be stopped.

It has our released schemas under the ids of `avro/ids.json`, so that what a process writes by this registry is read by
the file registry and the other way round; whatever else is registered gets ids from 1,000 on.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from schemas.compatibility import fingerprint, released

FIRST_ID = 1_000


class HttpRegistry:
    """`start` and `stop` as often as wanted: it keeps its port and what was registered."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        """How often each schema id was asked for."""
        self.status = 200
        """Answer every question with this, unless it is 200."""
        self._schemas = {version.id: version.text for version in released()}
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def register(self, schema: Any) -> int:
        """The id of a schema."""
        mark = fingerprint(schema)
        ours = next((version.id for version in released() if version.fingerprint == mark), None)
        schema_id = ours or FIRST_ID + len(self._schemas)
        self._schemas[schema_id] = json.dumps(schema)
        return schema_id

    def schema(self, schema_id: int) -> str | None:
        return self._schemas.get(schema_id)

    def start(self) -> HttpRegistry:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> HttpRegistry:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _handler(registry: HttpRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            schema_id = int(self.path.partition("?")[0].rpartition("/")[2])
            registry.asked[schema_id] += 1
            schema = registry.schema(schema_id)
            if schema is None:
                self._answer(404, {"error_code": 40403, "message": "Schema not found"})
            else:
                self._answer(200, {"schema": schema})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(200, {"id": registry.register(json.loads(body["schema"]))})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            payload = json.dumps(content).encode()
            self.send_response(status if registry.status == 200 else registry.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
