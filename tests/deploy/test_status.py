"""`headrace status`: what a shop asks first is on the screen, however many partitions there are."""

from __future__ import annotations

import io
from collections import Counter

from rich.console import Console

from deploy.status import Status, table
from schemas.records import DECISION_BUCKETS, OUTCOME_BUCKETS, Progress, Resume

NOW_MS = 1_700_000_100_000


def status(num_partitions: int) -> Status:
    decisions = {bucket: 1_000_000 + number for number, bucket in enumerate(DECISION_BUCKETS)}
    outcomes = {bucket: 2_000_000 + number for number, bucket in enumerate((*OUTCOME_BUCKETS, "copies"))}
    return Status(
        namespace="shop",
        now_ms=NOW_MS,
        lags=[("shop.ingest", "shop.outcomes", 3), ("shop.decide", "shop.requests", 4), ("join", "shop.journal", 5)],
        progress={
            partition: Progress(partition, NOW_MS - 100 * partition, 0, 0, (), Resume(0), decisions, outcomes)
            for partition in range(num_partitions)
        },
        rewards=[0.0, 1.0],
        serving=Counter({7: 10, 8: 20}),
        dead_letters=Counter({f"reason-{number}": number for number in range(12)}),
        num_unlearnt=17,
    )  # fmt: skip


def shown(of: Status, partitions: bool = False, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(table(of, partitions))
    return [line.rstrip() for line in out.getvalue().rstrip().splitlines()]


def test_everything_that_matters_stands_on_a_small_screen_however_many_partitions_there_are() -> None:
    lines = shown(status(12))
    text = "\n".join(lines)
    assert len(lines) <= 24, text
    assert "…" not in text
    for word in ("reward of the last 2", "0.5000", "none yet", "8 (20)", "reason-11 11", "1.1 s (partition 11", "17"):
        assert word in text
    for bucket in (*DECISION_BUCKETS, *OUTCOME_BUCKETS, "copies"):
        assert bucket in text
    assert "12000000" in text  # of all partitions


def test_each_partition_is_shown_when_asked_for() -> None:
    lines = shown(status(3), partitions=True)
    counts = [line.split() for line in lines if line.startswith("joined")]
    assert counts[-1][1:] == ["1000000"] * 3


def test_nothing_learnt_and_nothing_joined_is_shown_as_such() -> None:
    text = "\n".join(shown(Status("new", NOW_MS)))
    assert "reward of the last 0" in text
    assert "published snapshot" in text
