"""The trusted version: monotonic, durable, and honest about what it cannot do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from schemas.errors import UserError
from streams import trusted_version
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


def test_the_version_never_goes_down_while_two_workers_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: one wrote between the look and the write of the other, which then brought the lesser back."""
    slow, fast = TrustedVersion(tmp_path, "shop"), TrustedVersion(tmp_path, "shop")
    other, read = threading.Thread(target=fast.raise_to, args=(7, b"\7" * 32)), slow._read

    def read_and_be_overtaken() -> tuple[int, bytes]:
        found = read()
        other.start()
        other.join(0.3)
        return found

    monkeypatch.setattr(slow, "_read", read_and_be_overtaken)
    slow.raise_to(6, b"\6" * 32)
    other.join(10)
    assert TrustedVersion(tmp_path, "shop").value == (7, b"\7" * 32)


def test_a_worker_that_is_stopped_with_the_lock_holds_up_no_other_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trusted_version, "LOCK_S_MAX", 0.05)
    held, other = TrustedVersion(tmp_path, "shop"), TrustedVersion(tmp_path, "shop")
    with held._locked(), pytest.raises(OSError, match="another worker has kept the lock"):
        other.raise_to(1, b"")
    other.raise_to(1, b"")


def test_workers_of_two_containers_take_no_file_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both the worker may be process 1."""
    names, replace = list[str](), Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (names.append(self.name), replace(self, target))[1])
    for version in (1, 2):
        TrustedVersion(tmp_path, "shop").raise_to(version, b"")
    assert len(set(names)) == 2


def test_no_temporary_file_stays_behind(tmp_path: Path) -> None:
    TrustedVersion(tmp_path, "shop").raise_to(1, b"")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"shop.trusted-snapshot.json", "shop.trusted-snapshot.lock"}


def test_a_damaged_file_is_the_users_to_judge(tmp_path: Path) -> None:
    (tmp_path / "shop.trusted-snapshot.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the trusted snapshot version"):
        TrustedVersion(tmp_path, "shop")


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the state folder"):
        TrustedVersion(tmp_path / "file", "shop")
