"""The cluster id that a new broker is formatted with."""

from __future__ import annotations

import uuid
from itertools import chain, repeat

import pytest

from deploy import broker


def test_a_cluster_id_never_starts_with_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    dashed, sound = uuid.UUID(bytes=b"\xf8" + bytes(15)), uuid.UUID(bytes=bytes(16))
    drawn = chain([dashed], repeat(sound))
    monkeypatch.setattr(uuid, "uuid4", lambda: next(drawn))
    assert broker.cluster_id() == "A" * 22
