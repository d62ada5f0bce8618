"""Every process against a cluster that takes only who knows the password, over TLS."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deploy import broker as local_broker
from deploy import exchange, stack
from deploy.supervisor import Supervisor
from tests.kafka.workers import project, until

READY_S, SERVED_S = 300.0, 120.0
WINDOW_S = 4
"""Long enough to ask and tell on a busy machine."""


@pytest.mark.timeout(600)
def test_every_process_does_its_work_over_tls_with_a_password(namespace: str, tmp_path: Path) -> None:
    secured = local_broker.start(tmp_path / "broker", port=0, secure=True, tied=True)
    lines: list[str] = []
    try:
        made = stack.prepare(
            project(namespace, window=f"{WINDOW_S}s"), tmp_path / "state", secured.bootstrap, 0, secured.kafka_options
        )
        with Supervisor(lines.append) as supervisor:
            made.start(supervisor)
            until(lambda: made.wait_ready(supervisor, lines.append), READY_S, lambda: "\n".join(lines))
            reasons, buckets, end = set(), set(), time.monotonic() + SERVED_S
            while not ("policy" in reasons and "joined" in buckets) and time.monotonic() < end:
                decision = exchange.ask(made.settings, {"task": "support", "context": {"price": 1.0}}, 20)
                outcome = {key: decision[key] for key in ("decision_id", "subject")}
                told = exchange.tell(made.settings, {**outcome, "type": "resolved", "value": 1.0}, 20, WINDOW_S + 5)
                reasons.add(decision["reason"])
                buckets.add(told["transition"]["bucket"])
            assert "policy" in reasons, "\n".join(lines)[-3000:]
            assert "joined" in buckets, "\n".join(lines)[-3000:]
    finally:
        local_broker.stop(tmp_path / "broker")
