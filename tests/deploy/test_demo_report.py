"""The demo's figures, from small logs made by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from deploy import audit_chain, demo_report
from deploy.audit import AuditReport, PartitionAudit
from deploy.demo_picture import moving_mean
from deploy.demo_report import Logged
from deploy.demo_view import curve
from schemas.records import DeadLetter, DecisionBucket, SnapshotManifest
from schemas.task import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support"


def row(position: int, closed_at_ms: int, reward: float, bucket: DecisionBucket = DecisionBucket.JOINED, key: int = 0):  # type: ignore[no-untyped-def]  # a Row
    return audit_chain.Row(position, b"f" * 16, (key or position + 1, 0), closed_at_ms, 1, int(bucket), 0, (reward,), 1)


def manifest(version: int, cut_ms: int) -> SnapshotManifest:
    return SnapshotManifest(
        version=version, parent_sha256=b"", sha256=b"s" * 32, size_bytes=1, chunk_offsets=(), cut_ms=cut_ms, trained=(),
        chain_hash=b"", cut_number=version, tasks=(), environment={}, rows_learnt={}, probes=b"", channel="main",
    )  # fmt: skip


def logged(
    decided: list[tuple[int, int]],
    rows: list[audit_chain.Row],
    row_decided: list[int],
    manifests: list[SnapshotManifest],
) -> Logged:
    return Logged(
        decided_ms=np.array([time_ms for time_ms, _ in decided], np.int64),
        decided_version=np.array([version for _, version in decided], np.int64),
        rows=rows,
        row_decided_ms=np.array(row_decided, np.int64),
        manifests=manifests,
        dead_letters=[DeadLetter("n.outcomes", 0, 1, "bad-json", "", b"", b"", 0)],
    )


def test_serving_counts_from_the_first_decision_by_a_version_whose_cut_holds_the_row() -> None:
    log = logged(
        decided=[(100, 0), (200, 1), (300, 1), (400, 3), (500, 3)],
        rows=[row(0, 150, 1.0), row(1, 250, 0.0), row(2, 900, 0.0)],
        row_decided=[100, 100, 300],
        manifests=[manifest(1, 160), manifest(2, 260), manifest(3, 270)],
    )

    # version 2 never decided, but version 3 holds what it held; the third row was learnt by none
    assert demo_report.served_at_ms(log).tolist() == [200, 400, -1]


def test_the_report_has_exactly_its_keys_and_adds_up() -> None:
    rows = [row(0, 150, 1.0), row(1, 250, 0.0), row(2, 260, 0.0, DecisionBucket.DUPLICATE)]
    log = logged(
        [(100, 0), (110, 0), (120, 0), (200, 1), (300, 2)], rows, [100, 110, 120], [manifest(1, 160), manifest(2, 260)]
    )
    audited = AuditReport(
        (PartitionAudit(0, decision_counts={"joined": 2, "duplicate": 1}, outcome_counts={"used": 2}),)
    )

    report = demo_report.build(log, audited, {"latency_ms": {"p50": 1.0, "p99": 2.0, "p999": 3.0}}, 4, "n.outcomes", 0)

    assert set(report) == {
        "decisions", "transitions", "buckets", "duplicates_accepted", "holes", "audit", "reward_first_1000",
        "reward_last_1000", "uniform_reward", "decision_latency_ms", "window_close_to_serving_ms", "snapshots",
        "dead_letters", "delay_decisions", "versions",
    }  # fmt: skip
    objects = ("buckets", "decision_latency_ms", "window_close_to_serving_ms", "snapshots")
    documented = {key for key in report if key not in objects} | {
        f"{each}.{key}" for each in objects for key in report[each]
    }
    assert {key for key, _ in demo_report.KEYS} == documented
    page = (EXAMPLE.parents[1] / "docs" / "reference.md").read_text()
    assert all(f"| `{key}` | {meaning} |" in page for key, meaning in demo_report.KEYS)
    assert set(report["buckets"]["decisions"]) == {
        "joined",
        "defaulted",
        "duplicate",
        "conflict",
        "quarantined",
        "open",
    }
    assert set(report["buckets"]["outcomes"]) == {
        "used", "late", "duplicate", "orphan", "conflict", "pending", "malformed",
    }  # fmt: skip
    assert report["decisions"] == 5
    assert report["transitions"] == 3
    assert report["audit"] == "clean"
    assert report["reward_first_1000"] == 0.5, "the duplicate is not learnt from"
    assert report["uniform_reward"] == 0.25
    assert report["window_close_to_serving_ms"]["p50"] == 50.0
    assert report["snapshots"] == {"published": 2, "served": 2, "refused": 0}
    assert report["dead_letters"] == {"bad-json": 1}
    assert report["buckets"]["outcomes"]["malformed"] == 1
    assert report["delay_decisions"] == 2.0
    assert report["duplicates_accepted"] == 0


def test_a_decision_that_is_learnt_twice_is_counted() -> None:
    rows = [row(0, 150, 1.0, key=7), row(1, 250, 0.0, key=7)]
    log = logged([(100, 0)], rows, [100, 110], [])

    assert demo_report.build(log, AuditReport(()), {}, 4, "o", 0)["duplicates_accepted"] == 1


def test_a_log_without_transitions_gives_no_figures_and_no_error() -> None:
    report = demo_report.build(logged([], [], [], []), AuditReport(()), {}, 4, "o", 0)

    assert report["reward_last_1000"] is None
    assert report["window_close_to_serving_ms"] == {"p50": None, "p99": None}
    assert report["delay_decisions"] is None


def test_the_curve_is_a_mean_over_what_came_before() -> None:
    ends, means = moving_mean(np.array([1.0, 0.0, 1.0, 1.0]), window=2)

    assert ends.tolist() == [1, 2, 3, 4]
    assert means.tolist() == pytest.approx([1.0, 0.5, 0.5, 1.0])


def test_the_live_curve_of_nothing_is_empty_and_of_zeros_is_flat() -> None:
    assert curve([]) == ""
    assert set(curve([0.0] * 50, points=10)) == {" "}


def test_the_shop_imports_nothing_of_ours() -> None:
    tree = ast.parse((EXAMPLE / "shop.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & {"schemas", "streams", "learner", "deploy"}
    assert "confluent_kafka" in imported


def test_the_examples_task_offers_every_label_of_its_messages() -> None:
    import csv

    with (EXAMPLE / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    assert len(rows) == 10_003
    assert {each["category"] for each in rows} == set(load(EXAMPLE / "headrace.toml").tasks[0].actions)
    assert "CC BY 4.0" in (EXAMPLE / "ATTRIBUTION.md").read_text()
