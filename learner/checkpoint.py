"""Checkpoints: the learner's whole state in one file, so that a crash costs recomputation and nothing else.

A checkpoint is a cache of the log: it may be deleted, and one that cannot be read is passed over for the one before.
Format: safetensors; the metadata's ``document`` is JSON (positions, cut, versions, settings, environment) and
``digest`` the BLAKE2b of all arrays and the document. Written to a temporary name, synced, renamed, and the folder
synced: a name that exists is whole. Files: ``checkpoint-<sequence>.safetensors``, newest last, and a hard link
``anchor-<day of log time>.safetensors`` to the first of each day (learning.md rule 24).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from schemas.errors import UserError
from schemas.fault_points import reach
from schemas.weights import DTYPES

log = logging.getLogger(__name__)

Arrays = Mapping[str, npt.NDArray[Any]]
PATTERN = "checkpoint-*.safetensors"
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State as of one position of the log."""

    arrays: dict[str, npt.NDArray[Any]]
    """Owned arrays; none is written to afterwards."""
    document: dict[str, Any]
    """JSON values."""


class Damaged(ValueError):
    """A checkpoint file whose content is not what was written."""


def open_folder(folder: Path) -> int:
    """Make the folder, prove that it can be written, and lock it for this process; returns the lock's descriptor.

    Raises UserError when it cannot be written or another learner holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(
            f"another learner uses the checkpoints in {folder}",
            "stop it first, or give this one its own folder with HEADRACE_CHECKPOINT_DIR",
        ) from error
    for leftover in folder.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    return lock


def _unwritable(folder: Path, error: OSError | SafetensorError) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"checkpoints cannot be written to {folder}: {reason}",
        "free space or permissions there, or choose another folder with HEADRACE_CHECKPOINT_DIR",
    )


def _digest(arrays: Arrays, document: str) -> str:
    digest = blake2b(document.encode(), digest_size=32)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write(folder: Path, checkpoint: Checkpoint, keep: int, anchors: int = 0, log_ms: int = 0) -> Path:
    """Write the next checkpoint and remove those beyond `keep`; blocks until it is on disk.

    `log_ms` log time of the state, for the daily anchors. Raises UserError when the disk refuses.
    """
    existing = files(folder)
    sequence = int(existing[-1].stem.split("-")[1]) + 1 if existing else 1
    path = folder / f"checkpoint-{sequence:012d}.safetensors"
    temporary = path.with_suffix(".tmp")
    document = json.dumps(checkpoint.document, sort_keys=True)
    metadata = {"document": document, "digest": _digest(checkpoint.arrays, document)}
    reach("checkpoint.before-write")
    try:
        save_file(checkpoint.arrays, temporary, metadata)
        reach("checkpoint.before-sync")
        _sync(temporary)
        reach("checkpoint.before-rename")
        temporary.rename(path)
        reach("checkpoint.before-folder-sync")
        _sync(folder)
        reach("checkpoint.before-anchor")
        _anchor(folder, path, anchors, log_ms)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(folder, error) from error
    reach("checkpoint.before-prune")
    for old in existing[: max(0, len(existing) + 1 - keep)]:
        old.unlink(missing_ok=True)
    reach("checkpoint.after-write")
    return path


def save_file(arrays: Arrays, path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, array by array straight from memory.

    The library's own function copies every array first: a second state in memory while learning goes on.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # widest first keeps all aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    size = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": codes[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [size, size + array.nbytes],
        }
        size += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write_array(file, arrays[name], header[name]["data_offsets"], size)


def _write_array(file: BufferedWriter, array: npt.NDArray[Any], span: list[int], size: int) -> None:
    """One array; the fault point stands at the middle byte of all arrays."""
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    first = min(max(size // 2 - span[0], 0), len(content))
    file.write(content[:first])
    if span[0] <= size // 2 < span[1]:
        file.flush()
        reach("checkpoint.inside-write")
    file.write(content[first:])


def _anchor(folder: Path, path: Path, keep: int, log_ms: int) -> None:
    if keep == 0:
        return
    anchor = folder / f"anchor-{log_ms // DAY_MS:08d}.safetensors"
    if not anchor.exists():
        os.link(path, anchor)
        _sync(folder)
    for old in anchors(folder)[:-keep]:
        old.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted(folder.glob(PATTERN))


def anchors(folder: Path) -> list[Path]:
    """All daily anchors, oldest first."""
    return sorted(folder.glob("anchor-*.safetensors"))


def _metadata_of(path: Path) -> dict[str, str]:
    """What stands in the file's header; {} when it cannot be read. The arrays are not looked at."""
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def document_of(path: Path) -> dict[str, Any] | None:
    """The document alone, unchecked, without the arrays: to choose among files. None when it cannot be read."""
    try:
        found = json.loads(_metadata_of(path)["document"])
    except (KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def digest_of(path: Path) -> str:
    """The digest that the file claims; "" when it cannot be read."""
    return _metadata_of(path).get("digest", "")


def read(path: Path) -> Checkpoint:
    """One checkpoint. Raises Damaged when it is not what was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        document = metadata["document"]
        expected, got = metadata["digest"], _digest(arrays, document)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise Damaged(f"{path}: {type(error).__name__}: {error}") from error
    if got != expected:
        raise Damaged(f"{path}: digest {got[:16]}…, expected {expected[:16]}…")
    return Checkpoint(arrays, json.loads(document))


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, None when there is none. A damaged one is named and passed over."""
    for path in reversed(files(folder)):
        try:
            return read(path)
        except Damaged as error:
            log.warning("checkpoint passed over for the one before it, nothing is lost but recomputation: %s", error)
    return None


class CheckpointWriter:
    """Decides by time and cuts when a checkpoint is due, and writes it beside learning."""

    def __init__(
        self, folder: Path, keep: int, anchors: int, period_s: float, period_cuts: int, observe: Callable[[float], None]
    ) -> None:
        """`observe` is told how many seconds each write took."""
        self._folder, self._keep, self._anchors = folder, keep, anchors
        self._period_s, self._period_cuts, self._observe = period_s, period_cuts, observe
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._written_at = time.monotonic()
        self._written_cut = 0
        self._named: tuple[Path | None, str] = (None, "")

    def is_due(self, cut: int) -> bool:
        """Whether the state at `cut` should be written now. Raises UserError when the write before failed."""
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._writing.result()
            self._writing = None
        return time.monotonic() - self._written_at > self._period_s or cut - self._written_cut >= self._period_cuts

    def anchor(self) -> str:
        """Day and digest of the newest anchor, "" for none: named in manifests (learning.md rule 24)."""
        newest = max(anchors(self._folder), default=None)
        if newest is None or newest == self._named[0]:
            return self._named[1]
        digest = digest_of(newest)
        if digest:
            self._named = (newest, f"{newest.stem} {digest}")
        return self._named[1]

    def started_at(self, cut: int) -> None:
        """Nothing needs to be written until the state has moved on from `cut`."""
        self._written_cut = cut

    def write(self, state: Checkpoint, cut: int, log_ms: int, wait: bool = False) -> None:
        """Write `state`; with `wait` it is on disk when this returns. Raises UserError when the disk refuses."""
        if wait and self._writing is not None:
            self._writing.result()
        self._written_at, self._written_cut = time.monotonic(), cut
        self._writing = self._threads.submit(self._write, state, log_ms)
        if wait:
            self._writing.result()

    def _write(self, state: Checkpoint, log_ms: int) -> None:
        started = time.monotonic()
        write(self._folder, state, self._keep, self._anchors, log_ms)
        self._observe(time.monotonic() - started)

    def close(self) -> None:
        """Wait for the write under way."""
        self._threads.shutdown()
