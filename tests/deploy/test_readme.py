"""The README's own example is what the code takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.codec import decode_foreign, decode_outcome, decode_request
from schemas.registry import FileRegistry
from schemas.task import parse
from streams.features import Encoder
from streams.ingest_fields import SourceMapping

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in found if "coupon" in text)


def test_the_task_of_the_readme_parses_and_takes_the_readmes_request() -> None:
    task = parse(_block("toml")).task("coupon")
    sent = [text for text in re.findall(r"'customer-17:(\{.*?\})'", README) if "context" in text]
    assert len(sent) == 1
    request = decode_request(sent[0].encode(), FileRegistry())
    encoded = Encoder(task).encode([request])
    assert not encoded.errors
    assert task.reward.binary


def test_the_outcome_of_the_readme_is_one_that_the_task_counts() -> None:
    task = parse(_block("toml")).task("coupon")
    sent = [text for text in re.findall(r"'customer-17:(\{.*?\})'", README) if "type" in json.loads(text)]
    outcome = decode_outcome(sent[0].encode(), FileRegistry())
    assert outcome.type in {each.name for each in task.reward.types}


def test_the_source_of_the_concepts_makes_an_outcome_of_the_shops_order() -> None:
    concepts = (ROOT / "docs" / "concepts.md").read_text()
    (event,) = re.findall(r"```json\n(.*?)```", concepts, re.DOTALL)
    (source,) = re.findall(r"```toml\n(\[\[sources\]\].*?)```", concepts, re.DOTALL)
    mapping = SourceMapping(parse(source).sources[0])
    outcome = mapping.outcome(decode_foreign(event.encode(), FileRegistry(), expect="json"))
    assert outcome is not None
    assert (outcome.subject, outcome.type, outcome.value) == ("17", "order", 84.5)
    assert (outcome.outcome_id, outcome.time_ms) == ("70311", 1767225600000)
    assert mapping.outcome(json.loads(event.replace("paid", "open"))) is None


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_every_file_that_a_page_points_to_is_there(page: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", page.read_text())]

    assert [each for each in targets if each and "://" not in each and not (page.parent / each).exists()] == []


def test_the_program_of_the_readme_compiles() -> None:
    program = _block("python")
    compile(program, "README.md", "exec")
    assert len([line for line in program.splitlines() if line.strip()]) <= 20


def test_without_a_broker_the_program_of_the_readme_ends_and_says_so() -> None:
    program = _block("python").replace("127.0.0.1:9092", "127.0.0.1:1").replace("timeout=10", "timeout=2")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "KafkaException" in done.stderr
