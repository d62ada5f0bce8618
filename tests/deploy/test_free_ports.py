"""Ports for brokers and metrics: not those that the system gives to outgoing connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import processes


def test_a_client_that_tries_to_connect_cannot_be_given_the_port_of_a_broker_that_is_down() -> None:
    ports = processes.free_ports(40)
    assert len(set(ports)) == 40
    known = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first_outgoing = int(known.read_text().split()[0]) if known.exists() else 32_768
    assert max(ports) < first_outgoing
    assert not any(map(processes.port_in_use, ports))


@pytest.mark.parametrize("said", ["1024 65000", "", "no number"], ids=["all outgoing", "empty", "no number"])
def test_where_none_are_set_apart_any_free_one_is_taken(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "ip_local_port_range"
    told.write_text(said)
    monkeypatch.setattr(processes, "_OUTGOING_PORTS", told)
    ports = processes.free_ports(3)
    assert len(set(ports)) == 3
    assert all(ports)
