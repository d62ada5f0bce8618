"""What a command leaves for people: folders that can be written, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from schemas.errors import UserError


def require_folder(folder: Path, what: str, flag: str) -> Path:
    """Make `folder` where it is missing. Raises `UserError` unless files can be written there; before work begins."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        _forget(probe)
        raise _told(what, folder, flag, error) from None
    return folder


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier run left under these names: it must not look like this run's."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, flag: str) -> None:
    """Write a file so that it is whole or not there. Raises `UserError` for a full disk or an unwritable folder."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        _forget(new)
        raise _told("the file", path, flag, error) from None


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _told(what: str, path: Path, flag: str, error: OSError) -> UserError:
    return UserError(
        f"cannot write {what} {path}: {error.strerror or error}", f"name a place with room that you can write: {flag}"
    )
