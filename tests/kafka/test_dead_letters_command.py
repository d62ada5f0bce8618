"""`headrace dead-letters` on a real broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from deploy.cli.entry import run
from schemas.codec import encode
from schemas.registry import FileRegistry
from streams.dead_letters import letter_of

REASONS = ("bad-json", "unknown-action", "bad-json", "all-masked", "unknown-action")


def write(broker: str, namespace: str, reason: str, offset: int) -> None:
    """One dead letter as a worker writes it."""
    value = b'{"decision_id":"d%d"' % offset
    letter = letter_of((f"{namespace}.requests", offset % 2, offset), value, 1_767_225_600_000, reason, "no use")
    producer = Producer({"bootstrap.servers": broker})
    producer.produce(f"{namespace}.dead-letters", encode(letter, FileRegistry()), partition=offset % 2)
    assert producer.flush(20) == 0


@pytest.fixture
def flags(broker: str, namespace: str, create_topics: Callable[..., None]) -> list[str]:
    """A namespace with five dead letters in two partitions."""
    create_topics(partitions=2)
    for offset, reason in enumerate(REASONS):
        write(broker, namespace, reason, offset)
    return ["--bootstrap", broker, "--namespace", namespace]


def test_they_are_shown_in_the_order_in_which_they_were_written(
    flags: list[str], namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dead-letters", *flags]) == 0
    header, *rows = capsys.readouterr().out.splitlines()

    assert header.split() == ["time", "record", "reason", "detail", "first", "bytes"]
    assert [row.split()[1:3] for row in rows] == [
        [f"{namespace}.requests/{offset % 2}/{offset}", reason] for offset, reason in enumerate(REASONS)
    ]
    assert rows[0].endswith('no use  {"decision_id":"d0"')


def test_the_newest_of_a_reason_as_json(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead-letters", "--json", "--last", "2", *flags]) == 0
    assert [json.loads(line)["offset"] for line in capsys.readouterr().out.splitlines()] == [3, 4]

    assert run(["dead-letters", "--json", "--reason", "bad-json", "--last", "1", *flags]) == 0
    assert [json.loads(line)["offset"] for line in capsys.readouterr().out.splitlines()] == [2]

    assert run(["dead-letters", "--reason", "too-deep", *flags]) == 0
    assert "No dead letter with the reason too-deep" in capsys.readouterr().out


@pytest.mark.timeout(90)
def test_followed_it_shows_what_comes_and_ends_in_order(flags: list[str], broker: str, namespace: str) -> None:
    command = [sys.executable, "-m", "deploy", "dead-letters", "--follow", "--json", "--last", "1", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["offset"] == 4
        write(broker, namespace, "bad-slots", 5)
        shown = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert (shown["offset"], shown["reason"], rest, process.returncode) == (5, "bad-slots", "", 0)
