"""A small file system can be filled and freed, and nothing of it is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import processes
from deploy.torture import small_disk
from deploy.torture.small_disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
OPTIONS = f"size={4 * MIB}"


def mount_in_place(folder: Path) -> SmallDisk:
    opened = small_disk.open_disk(folder, 4)
    return opened if isinstance(opened, SmallDisk) else pytest.skip(opened)


def mount_in_a_namespace(folder: Path) -> SmallDisk:
    folder.mkdir()
    held = small_disk.hold(folder, OPTIONS)
    return held if isinstance(held, SmallDisk) else pytest.skip(held)


@pytest.mark.parametrize("mount", [mount_in_place, mount_in_a_namespace])
def test_a_full_disk_takes_nothing_and_a_freed_one_does(mount: Callable[[Path], SmallDisk], tmp_path: Path) -> None:
    with mount(tmp_path / "a disk") as disk:
        (disk.folder / "before").write_bytes(b"x" * 1000)
        assert 3 * MIB < disk.fill() < 4 * MIB
        with pytest.raises(OSError, match="No space left") as caught:
            (disk.folder / "more").write_bytes(b"x")
        assert caught.value.errno == errno.ENOSPC
        assert disk.fill() == 0

        disk.free()

        (disk.folder / "more").write_bytes(b"x" * 3 * MIB)
        assert (disk.folder / "before").stat().st_size == 1000
        assert shutil.disk_usage(tmp_path).total > shutil.disk_usage(disk.folder).total
    disk.close()
    assert not (tmp_path / "a disk").exists()


@pytest.mark.parametrize("mount", [mount_in_place, mount_in_a_namespace])
def test_a_disk_closes_under_a_process_that_has_a_file_open_there(
    mount: Callable[[Path], SmallDisk], tmp_path: Path
) -> None:
    disk = mount(tmp_path / "disk")
    with (disk.folder / "open").open("wb"):
        disk.close()
        assert not (tmp_path / "disk").exists()


def test_what_a_crashed_run_left_mounted_is_taken_away_by_the_next(tmp_path: Path) -> None:
    first = mount_in_place(tmp_path / "disk")
    (first.folder / "old").touch()
    with mount_in_place(tmp_path / "disk") as second:
        assert list(second.folder.iterdir()) == []
    assert not (tmp_path / "disk").exists()


def test_files_are_not_hidden_by_a_mount(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="must be empty"):
        small_disk.open_disk(tmp_path, 4)


def test_without_a_way_to_mount_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    reason = small_disk.open_disk(tmp_path / "disk", 4)

    assert isinstance(reason, str)
    assert "mount" in reason
    assert "unshare" in reason
    assert not (tmp_path / "disk").exists()


def test_the_holder_of_a_namespace_dies_with_the_process_that_opened_it(tmp_path: Path) -> None:
    mount_in_a_namespace(tmp_path / "probe").close()
    code = f"""
import time
from pathlib import Path
from deploy.torture import small_disk
folder = Path({str(tmp_path / "disk")!r})
folder.mkdir()
print(small_disk.hold(folder, {OPTIONS!r}).folder, flush=True)
time.sleep(60)
"""
    opener = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert opener.stdout is not None
    folder = Path(opener.stdout.readline().strip())
    assert folder.is_dir()

    os.kill(opener.pid, signal.SIGKILL)
    opener.wait()
    opener.stdout.close()

    assert processes.wait_until(lambda: not folder.exists(), 5)
