"""A file system of a few MiB that can be filled and freed: what a full disk does to whoever writes there.

A tmpfs: mounted in place by root, else in a mount namespace of its own that a child of ours holds, where the kernel
lets users make one. In the second case `SmallDisk.folder` leads through ``/proc/<pid>/root``: every process of this
user can use that path, as long as it does not resolve it (``os.path.realpath`` takes the link for ``/``).

Deliberate simplification: Linux only; elsewhere `open_disk` says so.
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from deploy import processes

SOURCE = "headrace-small-disk"
"""Name of the mount's source, so that only mounts of ours are ever taken away."""
FILLER = "filler"
_READY = "ready"
_HOLD = f'mount -t tmpfs -o "$1" {SOURCE} "$2" && echo {_READY} && exec sleep infinity'


class SmallDisk:
    """An open one; made by `open_disk`. Usable as a context manager."""

    def __init__(self, folder: Path, mounted_at: Path, holder_pid: int | None) -> None:
        self.folder = folder
        """Where to write."""
        self._mounted_at, self._holder_pid = mounted_at, holder_pid

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fill(self) -> int:
        """Write until nothing fits any more; bytes written. Space that others free later is not taken: call again."""
        written = 0
        filler = os.open(self.folder / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 1 << 10, 1):  # ever smaller pieces, so that not one byte is left
                piece = bytes(size)
                while (wrote := _write(filler, piece)) > 0:
                    written += wrote
        finally:
            os.close(filler)
        return written

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount, also under processes that still write there; what lay on it is gone. Nothing the second time."""
        if self._holder_pid is not None:
            processes.end(self._holder_pid, 1)  # the last process of a namespace takes its mounts along
            self._holder_pid = None
        else:
            _unmount(self._mounted_at)
        with suppress(OSError):
            self._mounted_at.rmdir()


def open_disk(folder: Path, size_mib: int) -> SmallDisk | str:
    """A file system of `size_mib` MiB at `folder`, or in words why there is none.

    Takes away one of ours that an earlier run left there. Raises `ValueError` when other files lie in `folder`:
    the mount would hide them.
    """
    if size_mib < 1:
        raise ValueError(f"size_mib must be at least 1, got {size_mib}")
    folder = folder.absolute()
    _unmount(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} must be empty: a mount would hide what lies in it")
    options = f"size={size_mib}m,mode=700"
    by_root = _said(["mount", "-t", "tmpfs", "-o", options, SOURCE, str(folder)])
    if by_root is None:
        return SmallDisk(folder, folder, None)
    held = hold(folder, options)
    if isinstance(held, SmallDisk):
        return held
    with suppress(OSError):
        folder.rmdir()
    return f"no small file system: mount says {by_root!r}, a namespace of our own {held!r}"


def hold(folder: Path, options: str) -> SmallDisk | str:
    """Mount within a namespace that a child of ours holds; the child, and with it the mount, dies with us."""
    reading, writing = os.pipe()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _HOLD, SOURCE, options, str(folder)]
    try:
        holder = processes.spawn(command, writing)
    except FileNotFoundError as error:
        os.close(reading)
        return str(error)
    finally:
        os.close(writing)
    with os.fdopen(reading) as said:
        line = said.readline().strip()
    if line == _READY:
        return SmallDisk(Path(f"/proc/{holder.pid}/root{folder}"), folder, holder.pid)
    processes.end(holder.pid, 1)
    return line


def _write(file: int, piece: bytes) -> int:
    """Bytes written, 0 when there is no room."""
    try:
        return os.write(file, piece)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return 0


def _said(command: list[str]) -> str | None:
    """What a command complained of; None when it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else None


def _is_ours(folder: Path) -> bool:
    """Whether a small disk is mounted at `folder`, in our own namespace."""
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except FileNotFoundError:
        return False
    # the kernel writes blanks of a path as octal numbers
    ours = [
        line.split()[1].encode().decode("unicode_escape") for line in mounts.splitlines() if line.startswith(SOURCE)
    ]
    return str(folder) in ours


def _unmount(folder: Path) -> None:
    """Take every small disk at `folder` away, also from under those who use it."""
    while _is_ours(folder) and _said(["umount", "--lazy", str(folder)]) is None:
        pass
