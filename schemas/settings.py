"""Settings that every process shares, from the environment (prefix ``HEADRACE_``).

An empty variable counts as unset, as compose files and scripts have them.
A shell: this is where the environment is read, and nowhere else in `schemas`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from schemas.errors import UserError

RECONNECT_MS_MAX = 1_000
REBOOTSTRAP_MS = 10_000
"""A client that no broker it knows gives metadata goes back to the bootstrap servers after so long. librdkafka's own
five minutes are for a cluster that was replaced; but a broker that comes back from a minute of silence is fenced for a
moment, its metadata names no broker, and the client forgets the only one it knew. One that then has nobody left to ask
does not come back even so (docs/decisions/0024): `streams.membership`."""
METADATA_MS = 10_000
"""A client asks who leads what so often, not every five minutes. A broker that is back from a silence says for a moment
that no partition has a leader, and what librdkafka was told it believes until it asks again."""
SettingsT = TypeVar("SettingsT", bound="CommonSettings")


class CommonSettings(BaseSettings):
    """Where the broker is, which namespace to serve, where to keep caches and keys."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    bootstrap: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port, comma-separated.")
    namespace: str = Field("headrace", description="Prefix of every topic: <namespace>.requests and so on.")
    broker_wait_s: float = Field(
        5.0,
        gt=0,
        description="How long a process waits for a broker when it starts; 60 in a cluster, whose brokers restart too. "
        "Once it runs it waits for ever.",
    )
    client_id: str = Field(
        "headrace",
        min_length=1,
        description="Name of this process's clients in the broker's logs, metrics and quotas (Kafka's client.id).",
    )
    schema_registry_url: str | None = Field(
        None,
        validation_alias=AliasChoices("schema_registry_url", "HEADRACE_SCHEMA_REGISTRY_URL", "SCHEMA_REGISTRY_URL"),
        description="Confluent-compatible registry; SCHEMA_REGISTRY_URL works too, this one wins. Without either the "
        "ids packaged with headrace are used.",
    )
    state_dir: Path = Field(Path(".headrace"), description="Folder of caches and checkpoints; may be deleted.")
    public_key: Path | None = Field(None, description="File of the key that snapshots must be signed with.")
    kafka_options: dict[str, str] = Field(
        default_factory=dict, description="JSON object of librdkafka properties for every client (security, for one)."
    )

    def librdkafka(self, **options: Any) -> dict[str, Any]:
        """Properties of a confluent-kafka client: ours for all of them, the user's `kafka_options`, then `options`."""
        ours = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_id,
            # Its default of 10 s is a long time to look away from a broker that is back.
            "reconnect.backoff.max.ms": RECONNECT_MS_MAX,
            "metadata.recovery.rebootstrap.trigger.ms": REBOOTSTRAP_MS,
            "topic.metadata.refresh.interval.ms": METADATA_MS,
        }
        return {**ours, **self.kafka_options, **options}


def load_settings(kind: type[SettingsT], **values: Any) -> SettingsT:
    """Read `kind` from the environment; `values` (command-line flags) win over it.

    Raises UserError naming the variable when a value cannot be read.
    """
    try:
        return kind(**{name: value for name, value in values.items() if value is not None})
    except SettingsError as error:
        field = str(error).partition('"')[2].partition('"')[0]
        variable = f"HEADRACE_{field.upper()}"
        raise UserError(f"setting {variable} is no JSON", f'write it as {variable}=\'{{"key": "value"}}\'') from error
    except ValidationError as error:
        first = error.errors()[0]
        variable = "HEADRACE_" + str(first["loc"][0] if first["loc"] else "?").upper()
        raise UserError(
            f"setting {variable}: {first['msg'].lower()}, got {first.get('input')!r}",
            f"correct {variable} or the flag of that name; docs/reference.md lists every setting",
        ) from error
