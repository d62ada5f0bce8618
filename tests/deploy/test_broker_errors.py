"""What can be wrong before a broker starts is told in one sentence. No broker is started here."""

from __future__ import annotations

import hashlib
import socket
import sys
from pathlib import Path

import pytest

from deploy import broker, broker_java, kafka_jars
from deploy.broker_layout import Layout
from schemas.errors import UserError


def test_a_port_in_use_is_named_with_the_flag_that_changes_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(UserError) as caught:
            broker.start(tmp_path, port=port)

    assert f"port {port} is in use" in caught.value.message
    assert "--port" in caught.value.remedy


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder can lie below a file")

    with pytest.raises(UserError, match="cannot write the broker's folder") as caught:
        broker.start(tmp_path / "file" / "broker", port=0)

    assert "--folder" in caught.value.remedy


def test_a_full_disk_is_told_before_kafka_stumbles_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "DISK_FREE_BYTES_MIN", 1 << 62)

    with pytest.raises(UserError, match="is full"):
        broker.start(tmp_path, port=0)


def test_formatting_is_out_of_reach_of_ctrl_c_and_its_failure_names_the_log_of_the_broker(tmp_path: Path) -> None:
    layout = Layout(tmp_path, [(1, 2, 3)], 1, [1], {}, None, {})
    tool = "import os, sys; print('error: session', os.getsid(0) == os.getpid()); sys.exit(1)"

    with pytest.raises(UserError, match="session True") as caught:
        broker_java.format_data([sys.executable, "-c", tool, "--"], layout, 1)

    assert f"{tmp_path}/broker.log" in caught.value.remedy


def test_stopping_where_nothing_runs_is_no_error(tmp_path: Path) -> None:
    assert broker.stop(tmp_path) is False
    assert broker.status(tmp_path) is None


def test_a_missing_broker_is_told_with_how_to_start_one() -> None:
    with pytest.raises(UserError, match=r"no Kafka broker answers at 127\.0\.0\.1:1") as caught:
        broker.require("127.0.0.1:1", timeout_s=0.5)

    assert "headrace broker start" in caught.value.remedy


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("java.net.BindException: Address already in use", "port is in use"),
        ("java.io.IOException: No space left on device", "is full"),
        ("RuntimeException: Invalid cluster.id in: meta.properties", "another cluster"),
        ("ERROR something else entirely", "something else entirely"),
        (
            "x.NoSuchFileException: a/b\n\tat java.base/sun.UnixException.rethrow(X.java)\n\t... 3 more",
            ": x.NoSuchFile",
        ),
        ("", "it ended without a word"),
    ],
)
def test_what_java_prints_becomes_one_sentence(said: str, told: str, tmp_path: Path) -> None:
    assert told in broker._failed(said, tmp_path).message


def test_every_committed_jar_has_a_whole_hash_and_kafka_is_of_one_version() -> None:
    jars = kafka_jars.committed()

    assert len(jars) == 46
    assert all(len(digest) == 64 for digest in jars.values())
    versions = {name.split(":")[2] for name in jars if name.startswith("org.apache.kafka:")}
    assert versions == {kafka_jars.KAFKA_VERSION}


def test_a_jar_with_other_bytes_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / "thing-1.0.jar"
    jar.write_bytes(b"genuine")
    genuine = {"org.example:thing:1.0": hashlib.sha256(b"genuine").hexdigest()}
    assert kafka_jars.verified([jar], genuine) == [jar]

    jar.write_bytes(b"something else")

    with pytest.raises(UserError, match="is not the jar we committed to"):
        kafka_jars.verified([jar], genuine)


def test_a_jar_that_nobody_resolved_is_named() -> None:
    with pytest.raises(UserError, match=r"org\.example:thing:1\.0 is missing"):
        kafka_jars.verified([], {"org.example:thing:1.0": "00"})


def test_a_jar_that_is_not_in_the_list_is_not_loaded(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger-1.0.jar"
    stranger.write_bytes(b"x")

    assert kafka_jars.verified([stranger], {}) == []
