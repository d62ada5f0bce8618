"""The trusted version: monotonic, durable, and honest about what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import UserError
from streams.trusted_version import NOTHING, TrustedVersion


def test_nothing_is_trusted_at_first(tmp_path: Path) -> None:
    assert TrustedVersion(tmp_path / "new", "shop").value == NOTHING


def test_what_was_trusted_is_trusted_after_a_restart(tmp_path: Path) -> None:
    TrustedVersion(tmp_path, "shop").raise_to(3, b"\3" * 32)
    assert TrustedVersion(tmp_path, "shop").value == (3, b"\3" * 32)
    assert TrustedVersion(tmp_path, "another").value == NOTHING


def test_two_workers_of_one_machine_keep_the_greater_version(tmp_path: Path) -> None:
    ahead, behind = TrustedVersion(tmp_path, "shop"), TrustedVersion(tmp_path, "shop")
    ahead.raise_to(9, b"\1" * 32)
    behind.raise_to(4, b"\2" * 32)
    assert TrustedVersion(tmp_path, "shop").value == (9, b"\1" * 32)


def test_no_temporary_file_stays_behind(tmp_path: Path) -> None:
    TrustedVersion(tmp_path, "shop").raise_to(1, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["shop.trusted-snapshot.json"]


def test_a_damaged_file_is_the_users_to_judge(tmp_path: Path) -> None:
    (tmp_path / "shop.trusted-snapshot.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the trusted snapshot version"):
        TrustedVersion(tmp_path, "shop")


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the state folder"):
        TrustedVersion(tmp_path / "file", "shop")
