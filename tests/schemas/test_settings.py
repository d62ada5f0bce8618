from __future__ import annotations

from pathlib import Path

import pytest

from learner.settings import LearnerSettings
from schemas.errors import UserError
from schemas.settings import CommonSettings, load_settings
from streams.decider_settings import DeciderSettings


def test_settings_come_from_the_environment_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BOOTSTRAP", "broker:9092")
    monkeypatch.setenv("HEADRACE_STATE_DIR", "/var/lib/headrace")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "mock://x")
    settings = load_settings(CommonSettings, namespace="shop", state_dir=None)
    assert settings.bootstrap == "broker:9092"
    assert settings.namespace == "shop"
    assert settings.state_dir == Path("/var/lib/headrace")
    assert settings.schema_registry_url == "mock://x"


def test_the_users_client_options_reach_every_client_and_ours_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_OPTIONS", '{"security.protocol": "SSL", "acks": "1"}')
    options = load_settings(CommonSettings).librdkafka(acks="all")
    named = {
        "bootstrap.servers": "127.0.0.1:9092",
        "client.id": "headrace",
        "reconnect.backoff.max.ms": 1000,
        "metadata.recovery.rebootstrap.trigger.ms": 10_000,
        "topic.metadata.refresh.interval.ms": 10_000,
    }
    assert options == {**named, "security.protocol": "SSL", "acks": "all"}


@pytest.mark.parametrize("kind", [CommonSettings, DeciderSettings, LearnerSettings])
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, kind: type[CommonSettings]) -> None:
    for name in kind.model_fields:
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", "")
    emptied = load_settings(kind)
    for name in kind.model_fields:
        monkeypatch.delenv(f"HEADRACE_{name.upper()}")

    assert emptied == load_settings(kind)


@pytest.mark.parametrize("value", ["[1]", "security.protocol=SSL", '{"a": {"b": 1}}'])
def test_a_setting_that_cannot_be_read_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_OPTIONS", value)
    with pytest.raises(UserError, match="HEADRACE_KAFKA_OPTIONS"):
        load_settings(CommonSettings)
