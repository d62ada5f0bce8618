"""Registry: schema ids ↔ schemas. A file by default, any Confluent-compatible registry with a URL.

A shell: it reads packaged files and may call the network, once per id that it has not seen. Whoever serves begins with
`open_for_service`: reading and writing our own current records then asks nobody.

A registry that does not answer is left alone for a while (`REST_S`, longer if it kept us waiting): the ids that are not
known yet are unavailable meanwhile, all at once and without a question. What that means for a record is for its reader
to say: a request is refused, everything else waits (docs/operations.md, "The schema registry is away").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson

from schemas.compatibility import Released, current, released
from schemas.errors import UserError
from schemas.intake import parse_json
from schemas.limits import LIMITS, BadRecord, view_of
from schemas.registered import RegisteredSchema, Registry, register

__all__ = [
    "ConfluentRegistry",
    "FileRegistry",
    "RegisteredSchema",
    "Registry",
    "RegistryUnavailable",
    "open_for_service",
    "open_registry",
]

_FORGET_UNKNOWN_S = 60.0
"""An id that the registry did not know is asked for again after this long: a stream of bad ids must not become a
stream of requests, and a schema registered late must not need a restart."""
_NUM_UNKNOWN_MAX = 10_000

REST_S = 5.0
"""A registry that did not answer is not asked again for so long, at least."""
_REST_FACTOR = 4.0
"""Nor for so many times as long as it kept us waiting: whoever asks stands still for a fifth of the time at most."""
_PATIENCE: Mapping[str, Any] = {"timeout": 2.0, "max.retries": 1, "retries.wait.ms": 200}
"""Of one question; the timeout counts for connecting and for answering, each. The client's own: no timeout at all, and
up to seven seconds of retries where a decider has a tenth of one. A second try, because a connection that was kept open
may have died of old age."""
_ABOUT_WHAT_WAS_ASKED = (400, 404, 409, 422)
"""Answers that speak of this id or schema (there is none, it may not be registered); all others that are errors speak
of the registry."""

T = TypeVar("T")


class RegistryUnavailable(UserError):
    """The registry did not answer; the message that needed it can be read later."""


class FileRegistry:
    """Ids from the packaged `avro/ids.json`: nothing to run, the same everywhere."""

    def __init__(self) -> None:
        self._schemas = {version.id: register(version.id, version.schema) for version in released()}
        self._ids: Mapping[str, int] = {name: version.id for name, version in current().items()}

    def id_of(self, name: str) -> int:
        """Id of the current version of record `name`."""
        return self._ids[name]

    def schema_of(self, schema_id: int) -> RegisteredSchema:
        """Any released version; raises BadRecord ("unknown-schema")."""
        try:
            return self._schemas[schema_id]
        except KeyError:
            raise _unknown(schema_id, "the file registry; is SCHEMA_REGISTRY_URL missing here?") from None

    def reader_of(self, name: str) -> RegisteredSchema:
        """The current version of record `name`."""
        return self._schemas[self._ids[name]]


class ConfluentRegistry:
    """Ids from a registry with Confluent's API; `mock://` keeps them in this object, for tests.

    Our current schemas are registered at first use, under the full record name as subject.
    """

    def __init__(
        self, url: str, settings: Mapping[str, Any] | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise UserError(
                f"the client of the schema registry {url} is not installed ({error})",
                "install it: `pip install '.[registry]'`",
            ) from error
        self.client = SchemaRegistryClient.new_client({"url": url, **_PATIENCE, **(settings or {})})
        self._url = url
        self._clock_s = clock_s
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, RegisteredSchema] = {}
        self._unknown_until_s: dict[int, float] = {}
        self._resting: tuple[float, str] | None = None
        """Until when the registry is left alone, and what was the matter; None once it has answered."""
        self._readers = FileRegistry()

    def id_of(self, name: str) -> int:
        """Id of the current version of record `name`, registered if it is not yet. Raises RegistryUnavailable."""
        if name not in self._ids:
            from confluent_kafka.schema_registry import Schema

            version: Released = current()[name]
            schema = Schema(version.text, "AVRO")
            try:
                schema_id = int(self._ask(lambda: self.client.register_schema(version.subject, schema)))
            except Exception as error:
                why = error.message if isinstance(error, RegistryUnavailable) else str(error)
                raise RegistryUnavailable(
                    f"the schema registry {self._url} did not register {version.subject}: {why}",
                    "check SCHEMA_REGISTRY_URL, that the registry runs, and its compatibility setting",
                ) from error
            self._schemas[schema_id] = register(schema_id, version.schema)
            self._ids[name] = schema_id
        return self._ids[name]

    def schema_of(self, schema_id: int) -> RegisteredSchema:
        """The schema with the id, fetched once; raises BadRecord ("unknown-schema") or RegistryUnavailable."""
        found = self._schemas.get(schema_id)
        if found is None:
            if self._unknown_until_s.get(schema_id, 0.0) > self._clock_s():
                raise _unknown(schema_id, self._url)
            try:
                found = self._schemas[schema_id] = register(schema_id, self._fetch(schema_id))
            except BadRecord:
                if len(self._unknown_until_s) >= _NUM_UNKNOWN_MAX:
                    self._unknown_until_s.clear()
                self._unknown_until_s[schema_id] = self._clock_s() + _FORGET_UNKNOWN_S
                raise
        return found

    def reader_of(self, name: str) -> RegisteredSchema:
        """The current version of record `name`."""
        return self._readers.reader_of(name)

    def _fetch(self, schema_id: int) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            schema = self._ask(lambda: self.client.get_schema(schema_id))
        except SchemaRegistryError as error:
            raise _unknown(schema_id, self._url) from error
        if schema.schema_type not in (None, "AVRO") or schema.references:
            raise BadRecord("unknown-schema", f"schema {schema_id} is {schema.schema_type} or refers to other schemas")
        text = str(schema.schema_str).encode()
        if len(text) > LIMITS.schema_bytes_max:
            raise BadRecord("too-large", f"schema {schema_id} has {len(text)} bytes")
        return orjson.loads(text) if text[:1] == b'"' else parse_json(view_of(text), LIMITS)

    def _ask(self, question: Callable[[], T]) -> T:
        """What the registry answers, if it is not resting.

        Raises RegistryUnavailable, or the client's SchemaRegistryError for an answer that speaks of what was asked for.
        """
        began_s, resting = self._clock_s(), self._resting
        if resting is not None and began_s < resting[0]:
            raise self._unavailable(resting[1])
        try:
            answer = question()
        except Exception as error:  # the HTTP client's own errors too: refused, timed out, not resolved
            if getattr(error, "http_status_code", 0) in _ABOUT_WHAT_WAS_ASKED:
                self._resting = None
                raise
            now_s = self._clock_s()
            self._resting = now_s + max(REST_S, _REST_FACTOR * (now_s - began_s)), str(error)
            raise self._unavailable(str(error)) from error
        self._resting = None
        return answer

    def _unavailable(self, why: str) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"the schema registry {self._url} did not answer: {why}", "check SCHEMA_REGISTRY_URL and that it runs"
        )


def _unknown(schema_id: int, where: str) -> BadRecord:
    return BadRecord("unknown-schema", f"schema id {schema_id} is not known to {where}")


def open_registry(url: str | None) -> Registry:
    """The registry at `url`, or the packaged file when there is none."""
    return ConfluentRegistry(url) if url else FileRegistry()


def open_for_service(url: str | None) -> Registry:
    """The same for a process that serves: all current schemas of ours are known from the start.

    What our own records look like is then never asked for while people wait. Raises RegistryUnavailable when the
    registry does not answer now.
    """
    registry = open_registry(url)
    for name in current():
        registry.id_of(name)
    return registry
