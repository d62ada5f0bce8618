"""A broker starts from what Java kept of an earlier one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from deploy import broker as local_broker
from deploy import broker_cache, broker_java, broker_training


def files_mapped(folder: Path) -> set[str]:
    """Files in the memory of the broker that starts in `folder`."""
    running = local_broker.start(folder, port=0, tied=True)
    try:
        return {each.path for each in psutil.Process(running.nodes[0].pid).memory_maps()}
    finally:
        local_broker.stop(folder)


def _training_folders() -> list[Path]:
    return list(broker_cache.path(broker_java.command()).parent.glob("training-*"))


def test_a_prepared_broker_starts_from_the_cache_and_preparing_again_changes_nothing(tmp_path: Path) -> None:
    others = set(_training_folders())  # of a command that was killed
    cache = broker_training.prepare()
    assert cache is not None, "the Java of our lock file makes such caches"
    assert str(cache) in files_mapped(tmp_path / "broker")
    made_ns = cache.stat().st_mtime_ns
    assert broker_training.prepare() == cache
    assert cache.stat().st_mtime_ns == made_ns
    assert set(_training_folders()) <= others


def test_without_a_cache_and_with_a_damaged_one_a_broker_starts_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = broker_java.command()
    assert broker_cache.flags(command) == []
    assert not any(name.endswith(".aot") for name in files_mapped(tmp_path / "broker"))
    cache = broker_cache.path(command)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"damaged" * 1000)
    assert files_mapped(tmp_path / "broker")


def test_a_cache_belongs_to_one_java_its_flags_and_its_jars(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_bytes(b"one")
    paths = {broker_cache.path([str(java), "-Xmx1g", "-cp", jars]) for jars in ("a.jar", "b.jar")}
    java.write_bytes(b"another")
    paths.add(broker_cache.path([str(java), "-Xmx1g", "-cp", "a.jar"]))
    paths.add(broker_cache.path([str(java), "-Xmx2g", "-cp", "a.jar"]))
    assert len(paths) == 4
