"""The short torture of every run: real processes, killed, paused and cut off for a minute, then judged from the topics.

The long ones are run by hand (`headrace torture`): their figures stand in docs/guarantees.md.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from deploy.torture import run
from deploy.torture.plan import Kind

MINUTES = 1.0
DECISIONS = 6_000
SEED = 1


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_learnt_otherwise_whatever_breaks(tmp_path: Path) -> None:
    torture = run.Torture(MINUTES, SEED, DECISIONS, 1, (1.0, 5.0), tmp_path, 0, (), tmp_path / "folder")
    reported = run.run(torture, print)
    broken = [check for check in reported["checks"] if not check["holds"] and not check["is_timing"]]
    assert broken == []
    # a torture that hurts nobody proves nothing
    assert sum(each["killed"] for each in reported["kills"].values()) >= 4
    assert sum(row["done"] for row in reported["faults"]) >= 8
    assert reported["audit"]["num_accepted"] >= DECISIONS
    history = [json.loads(line) for line in (tmp_path / run.HISTORY_FILE).read_text().splitlines()]
    kinds = Counter(each["kind"] for each in history if each["event"] == "fault")
    assert len(kinds) >= 4
    assert set(kinds) <= {kind.value for kind in Kind}
