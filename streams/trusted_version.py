"""The newest snapshot version this worker has trusted, on disk: an older one never serves again, restarts included.

A shell around one small file. Without it whoever can write to the model topic could bring back an old policy that was
rightly signed once (a roll-back is a new version, published by the learner).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UserError

NOTHING = (0, b"")
"""No version trusted yet."""
LOCK_S_MAX = 5.0
"""It is held for a few milliseconds, unless its holder is stopped in between."""


class TrustedVersion:
    """(version, sha256) of the newest trusted snapshot of one namespace; monotonic."""

    def __init__(self, folder: Path, namespace: str) -> None:
        """Read what is there. Raises UserError when the file cannot be read or its folder cannot be written."""
        self._path = folder / f"{namespace}.trusted-snapshot.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{_unique()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write the state folder {folder}: {error.strerror or error}",
                "name one that this worker may write: HEADRACE_STATE_DIR or --state-dir",
            ) from error
        self.value = self._read()

    def _read(self) -> tuple[int, bytes]:
        try:
            found = json.loads(self._path.read_text())
            return int(found["version"]), bytes.fromhex(found["sha256"])
        except FileNotFoundError:
            return NOTHING
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read the trusted snapshot version in {self._path}: {error}",
                "if you are sure that nobody tampers with the model topic, delete it; the newest version is then taken",
            ) from error

    def raise_to(self, version: int, sha256: bytes) -> None:
        """Trust this one and nothing below it. Durable when it returns; raises OSError when it cannot be.

        Workers may share the folder, also from several containers: the file keeps the greatest version of all of them.
        """
        with self._locked():
            stored = self._read()
            if stored[0] < version or (stored[0] == version and stored[1] != sha256):
                self._write(json.dumps({"version": version, "sha256": sha256.hex()}))
        self.value = (version, sha256)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone between the look and the write. Raises OSError when another worker keeps the lock."""
        end_s = time.monotonic() + LOCK_S_MAX
        with self._path.with_suffix(".lock").open("a") as file:  # for writing: over NFS no other may be locked
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end_s:
                        what = f"another worker has kept the lock for {LOCK_S_MAX:g} s"
                        raise TimeoutError(errno.ETIMEDOUT, what, file.name) from error
                    time.sleep(0.01)
            yield  # closing the file gives it back, and so does a kill

    def _write(self, text: str) -> None:
        """Replace the file as a whole."""
        temporary = self._path.with_suffix(f".{_unique()}.tmp")
        try:
            with temporary.open("x") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unique() -> str:
    """Part of a name that nobody else takes: in two containers both workers may be process 1."""
    return secrets.token_hex(8)
