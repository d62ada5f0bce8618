"""Registry: schema ids ↔ schemas. A file by default, any Confluent-compatible registry with a URL.

A shell: it reads packaged files and may call the network, once per id that it has not seen. Whoever has to meet a
deadline asks for `id_of` of what it writes at start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from schemas.compatibility import Released, current, released
from schemas.errors import UserError
from schemas.intake import parse_json
from schemas.limits import LIMITS, BadRecord, view_of
from schemas.registered import RegisteredSchema, Registry, register

__all__ = ["ConfluentRegistry", "FileRegistry", "RegisteredSchema", "Registry", "RegistryUnavailable", "open_registry"]

_FORGET_UNKNOWN_S = 60.0
"""An id that the registry did not know is asked for again after this long: a stream of bad ids must not become a
stream of requests, and a schema registered late must not need a restart."""
_NUM_UNKNOWN_MAX = 10_000


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

    def __init__(self, url: str, settings: Mapping[str, str] | None = None) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise UserError(
                f"the client of the schema registry {url} is not installed ({error})",
                'install it: pip install "headrace[registry]"',
            ) from error
        self.client = SchemaRegistryClient.new_client({"url": url, **(settings or {})})
        self._url = url
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, RegisteredSchema] = {}
        self._unknown_until_s: dict[int, float] = {}
        self._readers = FileRegistry()

    def id_of(self, name: str) -> int:
        """Id of the current version of record `name`, registered if it is not yet."""
        if name not in self._ids:
            from confluent_kafka.schema_registry import Schema

            version: Released = current()[name]
            try:
                self._ids[name] = self.client.register_schema(version.subject, Schema(version.text, "AVRO"))
            except Exception as error:
                raise RegistryUnavailable(
                    f"the schema registry {self._url} did not register {version.subject}: {error}",
                    "check SCHEMA_REGISTRY_URL, that the registry runs, and its compatibility setting",
                ) from error
        return self._ids[name]

    def schema_of(self, schema_id: int) -> RegisteredSchema:
        """The schema with the id, fetched once; raises BadRecord ("unknown-schema") or RegistryUnavailable."""
        found = self._schemas.get(schema_id)
        if found is None:
            if self._unknown_until_s.get(schema_id, 0.0) > time.monotonic():
                raise _unknown(schema_id, self._url)
            try:
                found = self._schemas[schema_id] = register(schema_id, self._fetch(schema_id))
            except BadRecord:
                if len(self._unknown_until_s) >= _NUM_UNKNOWN_MAX:
                    self._unknown_until_s.clear()
                self._unknown_until_s[schema_id] = time.monotonic() + _FORGET_UNKNOWN_S
                raise
        return found

    def reader_of(self, name: str) -> RegisteredSchema:
        """The current version of record `name`."""
        return self._readers.reader_of(name)

    def _fetch(self, schema_id: int) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            schema = self.client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise _unknown(schema_id, self._url) from error
            raise self._unavailable(error) from error
        except Exception as error:  # the HTTP client's own errors: refused, timed out, not resolved
            raise self._unavailable(error) from error
        if schema.schema_type not in (None, "AVRO") or schema.references:
            raise BadRecord("unknown-schema", f"schema {schema_id} is {schema.schema_type} or refers to other schemas")
        text = str(schema.schema_str).encode()
        if len(text) > LIMITS.schema_bytes_max:
            raise BadRecord("too-large", f"schema {schema_id} has {len(text)} bytes")
        return orjson.loads(text) if text[:1] == b'"' else parse_json(view_of(text), LIMITS)

    def _unavailable(self, error: Exception) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"the schema registry {self._url} did not answer: {error}", "check SCHEMA_REGISTRY_URL and that it runs"
        )


def _unknown(schema_id: int, where: str) -> BadRecord:
    return BadRecord("unknown-schema", f"schema id {schema_id} is not known to {where}")


def open_registry(url: str | None) -> Registry:
    """The registry at `url`, or the packaged file when there is none."""
    return ConfluentRegistry(url) if url else FileRegistry()
