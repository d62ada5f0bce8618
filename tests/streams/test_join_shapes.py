"""A block whose columns are not those of its task: quarantined whole, whatever it lacks or has too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas import codec
from schemas.arrays import empty
from schemas.blocks import DecisionBlock
from schemas.decision_columns import DecisionColumns
from schemas.records import Candidate, DecisionBucket, DecisionRequest
from schemas.registry import FileRegistry
from schemas.task import Task, parse
from schemas.task_shape import Shape
from streams.features import Encoder
from streams.join_intake import harmless_columns
from tests.oracle.join_by_hand import Run
from tests.schemas.messages import decision_block, decision_columns

REGISTRY = FileRegistry()
SIDE = '\n{name} = {{ kind = "vector", size = {size} }}\nwords = {{ kind = "text" }}\n'
REWARD = '[tasks.reward]\nwindow = "1h"\n[tasks.reward.outcomes.click]\naggregate = "max"\nbinary = true\n'
ACTIONS = tuple("abcde")


def task_of(catalogue: bool, words: bool = True) -> Task:
    """A task that `tests.schemas.messages.decision_columns` draws decisions of."""
    words_of = (lambda text: text) if words else (lambda text: text.replace('words = { kind = "text" }\n', ""))
    text = '[namespace]\nname = "t"\n[[tasks]]\nname = "a"\n' + (f"actions = {list(ACTIONS)}\n" if catalogue else "")
    text += "[tasks.context]" + words_of(SIDE.format(name="x", size=3))
    text += "" if catalogue else "[tasks.action]" + words_of(SIDE.format(name="z", size=2))
    return parse(text + REWARD).tasks[0]


def columns_of(task: Task, num_rows: int = 4) -> DecisionColumns:
    columns = decision_columns(
        1, num_rows, catalogue=bool(task.actions), tokens=task.context.has_tokens, widths=(3, task.action.width)
    )
    return replace(columns, catalogue=task.catalogue)


def block_of(task: Task, columns: DecisionColumns, seed: int) -> DecisionBlock:
    return replace(decision_block(columns, seed), task=task.name, fingerprint=task.fingerprint)


def without(*names: str) -> Callable[[DecisionColumns], DecisionColumns]:
    def changed(columns: DecisionColumns) -> DecisionColumns:
        left = {name: getattr(columns.features, name)[:0] for name in names}
        return replace(columns, features=replace(columns.features, **left))

    return changed


def with_tokens(of: str) -> Callable[[DecisionColumns], DecisionColumns]:
    def changed(columns: DecisionColumns) -> DecisionColumns:
        features = columns.features
        num = len(features) if of == "context" else int(features.num_candidates.sum())
        tokens: dict[str, Any] = {
            f"{of}_token_counts": np.ones(num, np.int32),
            f"{of}_tokens": np.zeros(num, np.int32),
            f"{of}_token_values": np.ones(num, np.float32),
        }
        return replace(columns, features=replace(features, **tokens))

    return changed


def as_listed(columns: DecisionColumns) -> DecisionColumns:
    """The candidates of a catalogue as if they had come with the requests."""
    num = int(columns.features.num_candidates.sum())
    actions = {"actions": np.zeros((num, 0), np.float32), "action_keys": np.ones(num, np.uint64)}
    return replace(columns, catalogue=b"", features=replace(columns.features, **actions))


CONTEXT_TOKENS = ("context_token_counts", "context_tokens", "context_token_values")
ACTION_TOKENS = ("action_token_counts", "action_tokens", "action_token_values")
LISTED, CATALOGUE, NO_WORDS = task_of(False), task_of(True), task_of(False, words=False)
CASES: list[tuple[str, Task, Callable[[DecisionColumns], DecisionColumns]]] = [
    ("no actions", LISTED, without("actions")),
    ("no action keys", LISTED, without("action_keys")),
    ("neither", LISTED, without("actions", "action_keys")),
    ("no tokens of the context", LISTED, without(*CONTEXT_TOKENS)),
    ("no tokens of the actions", LISTED, without(*ACTION_TOKENS)),
    ("a catalogue", LISTED, lambda columns: replace(columns, catalogue=b"c" * 16)),
    ("tokens of a context without words", NO_WORDS, with_tokens("context")),
    ("tokens of actions without words", NO_WORDS, with_tokens("action")),
    ("no tokens of the context beside a catalogue", CATALOGUE, without(*CONTEXT_TOKENS)),
    ("tokens of actions beside a catalogue", CATALOGUE, with_tokens("action")),
    ("candidates for a catalogue", CATALOGUE, as_listed),
    ("steps", LISTED, lambda columns: replace(columns, steps=np.ones(len(columns), np.int32))),
    ("episodes", LISTED, lambda columns: replace(columns, episode_keys=np.ones(len(columns), np.uint64))),
    ("terminals", LISTED, lambda columns: replace(columns, terminal=np.ones(len(columns), np.uint8))),
    ("drawn values", LISTED, lambda columns: replace(columns, values=np.ones((len(columns), 1)))),
    ("bounds", LISTED, lambda columns: replace(columns, bounds=np.ones((len(columns), 2)))),
]


@pytest.mark.parametrize(("task", "change"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_block_with_other_columns_than_its_task_is_quarantined_and_spoils_no_other(
    task: Task, change: Callable[[DecisionColumns], DecisionColumns]
) -> None:
    good = columns_of(task)
    bad = codec.decode(codec.encode(block_of(task, change(good), 1), REGISTRY), REGISTRY)
    (emitted,) = Run(task).at(0, bad).at(1, block_of(task, good, 2)).end()
    read = codec.decode(codec.encode(emitted, REGISTRY), REGISTRY)
    assert [DecisionBucket(each).label for each in read.buckets] == ["quarantined"] * 4 + ["defaulted"] * 4
    assert Shape.of(task).fits(read.columns)


@pytest.mark.parametrize("task", [LISTED, CATALOGUE, NO_WORDS])
def test_harmless_columns_are_those_of_the_task(task: Task) -> None:
    assert Shape.of(task).fits(harmless_columns(3, task))


@pytest.mark.parametrize("task", [LISTED, CATALOGUE, NO_WORDS])
def test_what_the_encoder_writes_has_the_columns_of_its_task(task: Task) -> None:
    candidates = None if task.actions else [Candidate("a", {}), Candidate("b", {})]
    requests = [DecisionRequest(f"d{each}", "a", "s", {}, candidates) for each in range(3)]
    features = Encoder(task).encode(requests).columns
    assert Shape.of(task).fits_features(features, int(features.num_candidates.sum()))
    assert not Shape.of(task).fits_features(replace(features, context=empty(np.float32, 3, 9)), 3)
