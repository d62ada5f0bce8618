"""The reference page and the catalogues of metrics it is made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy import reference
from deploy.reference import CATALOGUES
from schemas.telemetry import Metric

ROOT = Path(__file__).resolve().parents[2]
METRICS = [metric for catalogue in CATALOGUES.values() for metric in catalogue]
KINDS = ("counter", "gauge", "histogram")


@pytest.fixture(scope="module")
def page() -> str:
    return reference.page()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_has_a_meaning_a_remedy_and_a_row_in_the_reference(metric: Metric, page: str) -> None:
    assert metric.meaning.endswith(".")
    assert metric.remedy
    assert metric.unit
    assert metric.kind in KINDS
    assert f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(metric.labels)} |" in page


def test_no_name_stands_twice_in_any_catalogue_or_in_two() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_every_module_that_declares_metrics_is_in_the_reference() -> None:
    declaring = [
        f"{path.parent.name}/{path.name}"
        for folder in ("schemas", "streams", "learner", "deploy")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if re.search(r"^ +Metric\(", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert declaring == ["streams/metrics.py", "learner/metrics.py"]
    assert len(CATALOGUES) == len(declaring)


def test_what_operations_names_exists() -> None:
    named = set(re.findall(r"headrace_[a-z_]+", (ROOT / "docs" / "operations.md").read_text("utf-8")))
    assert len(named) > 5
    assert named <= {metric.name for metric in METRICS}


def test_a_record_says_which_fields_may_be_left_out_and_what_they_are_then(page: str) -> None:
    outcome = page.partition("### Outcome\n")[2].partition("\n### ")[0]

    assert "| value | double | `1.0` |" in outcome
    assert "| decision_id | null or string | `null` |" in outcome
    assert "| subject | string | required |" in outcome


def test_both_names_of_the_registrys_setting_are_named(page: str) -> None:
    assert "| `HEADRACE_SCHEMA_REGISTRY_URL` |  | Confluent-compatible registry; SCHEMA_REGISTRY_URL works too" in page
