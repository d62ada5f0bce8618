"""A disk that is really full (ENOSPC, no mock): one clear sentence, nothing half-written, all well once freed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy import broker
from deploy.torture.small_disk import SmallDisk, open_disk
from learner import checkpoint
from learner.checkpoint import Checkpoint
from schemas.errors import UserError
from schemas.signing_keys import create_keys, load_private_key
from streams.trusted_version import TrustedVersion


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    opened = open_disk(tmp_path / "disk", 8)
    if isinstance(opened, str):
        pytest.skip(opened)
    with opened:
        yield opened


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(disk: SmallDisk) -> None:
    folder = disk.folder / "checkpoints"
    folder.mkdir()
    small = Checkpoint({"weights": np.arange(1000.0)}, {"cut": 1})
    checkpoint.write(folder, small, 3)
    disk.fill()
    large = Checkpoint({"weights": np.arange(500_000.0)}, {"cut": 2})
    with pytest.raises(UserError, match=r"cannot be written to .*: No space left on device") as caught:
        checkpoint.write(folder, large, 3)
    assert "HEADRACE_CHECKPOINT_DIR" in caught.value.remedy
    assert [path.name for path in folder.iterdir()] == ["checkpoint-000000000001.safetensors"]
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.document == {"cut": 1}
    disk.free()
    checkpoint.write(folder, large, 3)
    assert (newest := checkpoint.newest(folder)) is not None
    assert newest.document == {"cut": 2}


def test_a_key_that_does_not_fit_leaves_no_half_of_a_pair(disk: SmallDisk) -> None:
    folder = disk.folder / "keys"
    folder.mkdir()
    disk.fill()
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        create_keys(folder)
    assert list(folder.iterdir()) == []
    disk.free()
    private, _ = create_keys(folder)
    load_private_key(private)


def test_a_trusted_version_that_cannot_be_written_is_not_trusted(disk: SmallDisk) -> None:
    trusted = TrustedVersion(disk.folder, "shop")
    trusted.raise_to(1, b"a" * 32)
    disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        trusted.raise_to(2, b"b" * 32)
    assert trusted.value == TrustedVersion(disk.folder, "shop").value == (1, b"a" * 32)
    disk.free()
    trusted.raise_to(2, b"b" * 32)
    assert TrustedVersion(disk.folder, "shop").value == (2, b"b" * 32)


def test_a_broker_does_not_start_on_a_full_disk(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(UserError, match=r"No space left on device|is full") as caught:
        broker.start(disk.folder, 0)
    assert "--folder" in caught.value.remedy
