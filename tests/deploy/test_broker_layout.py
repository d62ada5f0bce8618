"""How the nodes of a local broker are configured. No broker is started here."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import broker_layout, broker_security
from deploy.broker_layout import Layout
from schemas.errors import UserError


def laid_out(folder: Path, num_brokers: int, num_controllers: int, **changed: object) -> Layout:
    ports = [(10 * k, 10 * k + 1, 10 * k + 2) for k in range(1, num_brokers + 1)]
    settings: dict[str, object] = {
        "advertised": [client for client, _, _ in ports],
        "data_folders": {},
        "security": None,
        "overrides": {},
    }
    return Layout(folder, ports, num_controllers, **{**settings, **changed})  # type: ignore[arg-type]


def settings(layout: Layout, node_id: int) -> dict[str, str]:
    return dict(line.split("=", 1) for line in layout.properties(node_id).splitlines())


def test_one_node_is_its_own_controller_and_is_told_so_at_its_formatting(tmp_path: Path) -> None:
    layout = laid_out(tmp_path, 1, 1)

    found = settings(layout, 1)

    assert found["process.roles"] == "broker,controller"
    assert found["controller.quorum.bootstrap.servers"] == "127.0.0.1:12"
    assert "controller.quorum.voters" not in found
    assert found["advertised.listeners"] == "CLIENT://127.0.0.1:10,INTERNAL://127.0.0.1:11"
    assert layout.format_arguments(1) == ["--standalone"]


def test_of_four_nodes_three_vote_and_all_know_them(tmp_path: Path) -> None:
    layout = laid_out(tmp_path, 4, 3)

    found = [settings(layout, node_id) for node_id in layout.node_ids]

    assert [each["process.roles"] for each in found] == ["broker,controller"] * 3 + ["broker"]
    voters = {each["controller.quorum.voters"] for each in found}
    assert voters == {"1@127.0.0.1:12,2@127.0.0.1:22,3@127.0.0.1:32"}
    assert "CONTROLLER://127.0.0.1:32" in found[2]["listeners"]
    assert "CONTROLLER://" not in found[3]["listeners"]
    assert [layout.format_arguments(node_id) for node_id in layout.node_ids] == [[], [], [], []]


def test_clients_are_sent_to_the_advertised_ports_and_brokers_are_not(tmp_path: Path) -> None:
    found = settings(laid_out(tmp_path, 2, 1, advertised=[77, 78]), 2)

    assert found["listeners"] == "CLIENT://127.0.0.1:20,INTERNAL://127.0.0.1:21"
    assert found["advertised.listeners"] == "CLIENT://127.0.0.1:78,INTERNAL://127.0.0.1:21"


def test_one_node_may_keep_its_data_elsewhere(tmp_path: Path) -> None:
    layout = laid_out(tmp_path, 2, 1, data_folders={1: tmp_path / "small"})

    assert settings(layout, 1)["log.dirs"] == str(tmp_path / "small")
    assert settings(layout, 2)["log.dirs"] == str((tmp_path / "node-2" / "log").resolve())


def test_every_controller_can_write_the_user_down(tmp_path: Path) -> None:
    security = broker_security.Security("authority.pem", "server.pem", "secret")
    layout = laid_out(tmp_path, 4, 3, security=security)

    assert ["--add-scram" in layout.format_arguments(node_id) for node_id in layout.node_ids] == [True] * 3 + [False]


def test_a_cluster_keeps_the_controllers_of_its_first_start(tmp_path: Path) -> None:
    assert broker_layout.controllers(tmp_path, 3) == 3
    assert broker_layout.controllers(tmp_path, 5) == 3
    with pytest.raises(UserError, match="belong to a cluster with 3 controllers, 2 of them would start"):
        broker_layout.controllers(tmp_path, 2)


def test_data_that_were_formatted_with_one_controller_go_on_with_it(tmp_path: Path) -> None:
    assert broker_layout.controllers(tmp_path, 1) == 1
    formatted = tmp_path / "node-1" / "log"
    formatted.mkdir(parents=True)
    (formatted / "meta.properties").touch()

    assert broker_layout.controllers(tmp_path, 3) == 1
