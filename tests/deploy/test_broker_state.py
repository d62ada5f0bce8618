"""What `headrace broker start` writes down of itself."""

from __future__ import annotations

import stat
from pathlib import Path

from deploy import broker
from deploy.broker import RunningBroker


def test_the_state_file_is_for_its_owner_also_where_another_was_left(tmp_path: Path) -> None:
    running = RunningBroker("127.0.0.1:1", str(tmp_path), (), {"sasl.password": "secret"})
    for left in ("broker.json", "broker.json.new"):
        (tmp_path / left).write_text("{}")
        (tmp_path / left).chmod(0o644)

    broker._keep(running)

    assert stat.S_IMODE((tmp_path / "broker.json").stat().st_mode) == 0o600
    assert broker.status(tmp_path) == running
    assert [path.name for path in tmp_path.iterdir()] == ["broker.json"]
