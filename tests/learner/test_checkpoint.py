"""Checkpoints: whole or not there; a damaged one costs recomputation and nothing else."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from learner import checkpoint
from learner.checkpoint import Checkpoint, CheckpointWriter, Damaged
from schemas.errors import UserError


def made(number: int) -> Checkpoint:
    arrays = {
        "task/a/weights": np.arange(number + 4, dtype=np.float32),
        "task/a/gram": np.full((3, 2), number, np.float64).T,
        "task/a/n": np.array(number, np.int64),
        "task/a/none": np.zeros((0, 5), np.uint64),
        "task/a/mask": np.array([True, False]),
    }
    return Checkpoint(arrays, {"number": number, "topic_id": "x"})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, made(3), keep=3)
    found = checkpoint.read(path)
    assert found.document == {"number": 3, "topic_id": "x"}
    for name, array in made(3).arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        checkpoint.write(tmp_path, made(number), keep=3)
    assert [checkpoint.read(path).document["number"] for path in checkpoint.files(tmp_path)] == [3, 4, 5]


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "text"])
def test_damaged_newest_falls_back_to_the_one_before_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    checkpoint.write(tmp_path, made(1), keep=3)
    newest = checkpoint.write(tmp_path, made(2), keep=3)
    content = bytearray(newest.read_bytes())
    if harm == "truncate":
        content = content[:-3]
    elif harm == "flip":
        content[-9] ^= 1
    elif harm == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not a checkpoint")
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.document["number"] == 1
    assert newest.name in caplog.text


def test_altered_document_is_noticed(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, made(7), keep=3)
    path.write_bytes(path.read_bytes().replace(b'\\"number\\": 7', b'\\"number\\": 8'))
    with pytest.raises(Damaged, match="digest"):
        checkpoint.read(path)


def test_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(1), keep=3)
    with patch.object(checkpoint, "_sync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, made(2), keep=3)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.document["number"] == 1
    os.close(checkpoint.open_folder(tmp_path))
    assert not list(tmp_path.glob("*.tmp"))


def test_full_disk_is_one_clear_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        patch.object(checkpoint, "save_file", side_effect=full),
        pytest.raises(UserError, match="No space left") as caught,
    ):
        checkpoint.write(tmp_path, made(1), keep=3)
    assert str(tmp_path) in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.open_folder(blocked / "checkpoints")


def test_second_learner_on_one_folder_is_refused(tmp_path: Path) -> None:
    lock = checkpoint.open_folder(tmp_path)
    with pytest.raises(UserError, match="another learner"):
        checkpoint.open_folder(tmp_path)
    os.close(lock)
    os.close(checkpoint.open_folder(tmp_path))


def test_first_checkpoint_of_each_day_of_log_time_stays_as_anchor(tmp_path: Path) -> None:
    for number, day in enumerate((5, 5, 6, 7, 7)):
        checkpoint.write(tmp_path, made(number), keep=2, anchors=2, log_ms=day * checkpoint.DAY_MS + number)
    anchors = sorted(tmp_path.glob("anchor-*"))
    assert [checkpoint.read(path).document["number"] for path in anchors] == [2, 3]


def test_writer_is_due_by_time_or_by_cuts_and_tells_of_a_failed_write(tmp_path: Path) -> None:
    took: list[float] = []
    writer = CheckpointWriter(tmp_path, 3, 0, period_s=1000, period_cuts=5, observe=took.append)
    assert not writer.is_due(4)
    assert writer.is_due(5)
    writer.write(made(5), 5, 0, wait=True)
    assert not writer.is_due(9)
    assert len(took) == 1
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch.object(checkpoint, "save_file", side_effect=full):
        writer.write(made(10), 10, 0)
        with pytest.raises(UserError, match="No space left"):
            _ask_until_it_says(writer)
    writer.close()


def _ask_until_it_says(writer: CheckpointWriter) -> None:
    """What a failed write says comes with a later question, from the thread that wrote."""
    for _ in range(100):
        writer.is_due(10)
        time.sleep(0.02)
