"""The newest snapshot version this worker has trusted, on disk: an older one never serves again, restarts included.

A shell around one small file. Without it whoever can write to the model topic could bring back an old policy that was
rightly signed once (a roll-back is a new version, published by the learner).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from schemas.errors import UserError

NOTHING = (0, b"")
"""No version trusted yet."""


class TrustedVersion:
    """(version, sha256) of the newest trusted snapshot of one namespace; monotonic."""

    def __init__(self, folder: Path, namespace: str) -> None:
        """Read what is there. Raises UserError when the file cannot be read or its folder cannot be written."""
        self._path = folder / f"{namespace}.trusted-snapshot.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
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

        Workers of one machine may share the folder: the file keeps the greatest version of all of them.
        """
        stored = self._read()
        if stored[0] < version or (stored[0] == version and stored[1] != sha256):
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("w") as file:
                json.dump({"version": version, "sha256": sha256.hex()}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self.value = (version, sha256)
