"""Python's garbage collector rests while a process starts, and lets what stands then alone."""

from __future__ import annotations

import gc

import pytest

from schemas.collector import uncollected


def test_it_rests_in_the_block_and_works_afterwards() -> None:
    before = gc.get_freeze_count()
    try:
        with uncollected():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_it_works_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018 - raised on purpose
    gc.unfreeze()
    assert gc.isenabled()
