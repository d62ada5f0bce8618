"""What is made up: a task, and a request with every declared feature of one.

For warming up, for rehearsals and for trying a policy before it serves.

Pure.
"""

from __future__ import annotations

from schemas.feature_spec import FeatureSpec
from schemas.records import Candidate, DecisionRequest, Features, Vector
from schemas.task import Task, parse

_PROJECT = """
[namespace]
name = "example"
[[tasks]]
name = "example"
kind = "choice"
actions = ["a", "b"]
[tasks.context]
price = { kind = "number" }
[tasks.reward]
window = "1s"
[tasks.reward.outcomes.click]
aggregate = "max"
binary = true
"""


def example_task() -> Task:
    """A small task with a catalogue of two."""
    return parse(_PROJECT).tasks[0]


def example_of(task: Task) -> DecisionRequest:
    """A request that the task can decide; two candidates where it has no catalogue."""
    candidates = None if task.actions else [Candidate(f"example-{k}", _values(task.action)) for k in range(2)]
    return DecisionRequest("example", task.name, "example", _values(task.context), candidates)


def _values(spec: FeatureSpec) -> Features:
    values: Features = {}
    for feature in spec.features:
        if feature.kind == "number":
            values[feature.name] = 1.0
        elif feature.kind == "boolean":
            values[feature.name] = True
        elif feature.kind == "vector":
            values[feature.name] = Vector.of(*[0.0] * feature.size)
        else:
            values[feature.name] = feature.values[0] if feature.values else "an example"
    return values
