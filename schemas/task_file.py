"""The shape of `headrace.toml`, and of the canonical definitions made from it.

Owns validation: an error names the key's path, what was expected, what came and the remedy. The same models read
the file and the canonical JSON of the `tasks` topic, so nothing unchecked enters from either side.

Simplification: the only kind of task is `choice`; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from schemas.file_errors import did_you_mean
from schemas.file_values import (
    AMOUNT_MAX,
    ActionId,
    AnyValue,
    Duration,
    Expression,
    FeatureName,
    Identifier,
    Name,
    RewardBound,
    Table,
    jmespath_text,
)
from schemas.limits import LIMITS


def _guard(value: object) -> str:
    from schemas.comparison import parse_comparison

    if isinstance(value, str) and parse_comparison(value) is not None:
        return value
    return jmespath_text(value)


class NumberTable(Table):
    """A number."""

    kind: Literal["number"]
    """Which kind of feature it is."""
    log: bool = False
    """The logarithm of its size instead of the number: sign(z)·log1p(|z|) of z = x / scale."""
    scale: float = Field(default=1.0, gt=0)
    """The number is divided by this: choose it so that usual values come out near 1."""


class BooleanTable(Table):
    """True or false."""

    kind: Literal["boolean"]
    """Which kind of feature it is."""


class CategoryTable(Table):
    """One or several of many values."""

    kind: Literal["category"]
    """Which kind of feature it is."""
    values: list[Identifier] = Field(default_factory=list, max_length=1 << 16)
    """Its values, each one column; another value counts as none. More than 64 of them, or none declared: then any
    value counts, hashed.
    """

    @model_validator(mode="after")
    def _values_differ(self) -> CategoryTable:
        _refuse_twins("value", self.values)
        return self


class TextTable(Table):
    """Words in a human language."""

    kind: Literal["text"]
    """Which kind of feature it is."""
    count: bool = False
    """How often a word occurs counts; otherwise only that it does."""


class VectorTable(Table):
    """An embedding or any fixed number of numbers."""

    kind: Literal["vector"]
    """Which kind of feature it is."""
    size: int = Field(ge=1, le=4096)
    """How many numbers it has; a vector of another length is refused."""


FeatureTable = Annotated[
    NumberTable | BooleanTable | CategoryTable | TextTable | VectorTable, Field(discriminator="kind")
]
Features = Annotated[dict[FeatureName, FeatureTable], Field(max_length=1024)]


class ActionTable(Table):
    """One action of the declared catalogue."""

    id: ActionId
    """What a decision names, and what the shop knows it by."""
    features: dict[FeatureName, AnyValue] = Field(default_factory=dict)
    """Its features by name, each declared under `[tasks.action]` or used by a guardrail."""


class OutcomeTable(Table):
    """One type of outcome."""

    aggregate: Literal["sum", "first", "last", "min", "max", "mean", "count"]
    """What becomes of several outcomes of this type: one number of their values."""
    weight: float = Field(default=1.0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    """Factor of that number in the reward, which is the sum over all types."""
    window: Annotated[Duration, Field(gt=0)] | None = None
    """How long after the decision outcomes of this type count; without it as long as `reward.window`."""
    binary: bool = False
    """Its values are 0 or 1. Then `reward.min` and `reward.max` need not be given."""


class RewardTable(Table):
    """How outcomes become a reward."""

    window: Duration = Field(gt=0)
    """How long after the decision outcomes count, in log time; then its reward is learnt."""
    backward_window: Duration | None = None
    """How long before its decision an outcome may stand in the log, at most the window. Without it 0, or where
    `reply` is "immediate" 1s (the window if that is shorter).
    """
    default: float = 0.0
    """The reward when no outcome came."""
    min: RewardBound | None = None
    """A smaller reward is clipped to this. Required unless every outcome is binary and aggregated by first, last,
    min, max or mean: then it follows from the weights.
    """
    max: RewardBound | None = None
    """A larger reward is clipped to this; required where `min` is."""
    outcomes: dict[Name, OutcomeTable] = Field(min_length=1, max_length=64)
    """The types of outcomes that count, by name; others are passed over."""


class ExplorationTable(Table):
    """How probabilities come from scores."""

    kind: Literal["squarecb", "epsilon", "softmax"] = "squarecb"
    """How probabilities come from scores: by the distance to the best (squarecb), the best and else evenly
    (epsilon), or exponentially (softmax).
    """
    gamma: float = Field(default=10.0, gt=0, le=AMOUNT_MAX)
    """Of squarecb: the larger, the less it explores."""
    epsilon: float = Field(default=0.1, gt=0, le=1)
    """Of epsilon: the share that is chosen evenly."""
    temperature: float = Field(default=0.1, ge=1 / AMOUNT_MAX)
    """Of softmax: the larger, the more it explores."""


class LearnerTable(Table):
    """What is learnt."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the learner's random start."""
    cross_bits: int = Field(default=18, ge=10, le=26)
    """Pairs of context and action tokens are hashed into 2 to the power of this many weights."""
    deep: bool = True
    """Whether the neural expert learns too."""
    cross: bool = True
    """Whether the expert for pairs of tokens learns too."""


class GuardrailTable(Table):
    """A condition on candidates."""

    name: Name
    """What it is called, once in a task."""
    allow_if: Annotated[str, BeforeValidator(_guard)]
    """Must be true of a candidate, or it is not chosen: `action.stock > 0`, `action.price >= context.floor`, or a
    jmespath over context, action, action_id and subject. What cannot be judged is not allowed.
    """


def _choice_only(value: object) -> object:
    if value != "choice":
        raise ValueError('expected "choice", the only kind of task this version decides')
    return value


class TaskFile(Table):
    """One task: what is decided, and what counts."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """What requests call it. A task that is applied again under this name takes the earlier one's place."""
    kind: Annotated[Literal["choice"], BeforeValidator(_choice_only)] = "choice"
    """One action out of several; there is no other kind yet."""
    actions: list[ActionTable] = Field(default_factory=list, max_length=1 << 16)
    """The catalogue: ids as text, or `{ id = …, features = { … } }`. Without one every request brings its
    candidates.
    """
    context: Features = Field(default_factory=dict)
    """Features of a request, by name: `price = { kind = "number" }`."""
    action: Features = Field(default_factory=dict)
    """Features of candidates, by name; required without a catalogue."""
    reward: RewardTable
    """How outcomes become a reward."""
    reply: Literal["journal-first", "immediate"] = "journal-first"
    """Answer when the log has the decision, or at once: sooner by a millisecond, and a crash may then lose a
    decision that was answered.
    """
    baseline: ActionId | None = None
    """The action taken while no snapshot serves; needs a catalogue. Without it the choice is even."""
    epsilon: float = Field(default=0.1, ge=0, le=1)
    """The share of even choice that is mixed into the baseline."""
    exploration: ExplorationTable = Field(default_factory=ExplorationTable)
    """How probabilities come from scores."""
    learner: LearnerTable = Field(default_factory=LearnerTable)
    """What is learnt."""
    guardrails: list[GuardrailTable] = Field(default_factory=list, max_length=64)
    """Conditions that a candidate must meet."""

    @model_validator(mode="before")
    @classmethod
    def _plain_ids_are_actions(cls, value: Any) -> Any:
        actions = value.get("actions") if isinstance(value, dict) else None
        if not isinstance(actions, list):
            return value
        return {**value, "actions": [{"id": item} if isinstance(item, str) else item for item in actions]}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> TaskFile:
        ids = [action.id for action in self.actions]
        _refuse_twins("action id", ids)
        _refuse_twins("guardrail", [guardrail.name for guardrail in self.guardrails])
        for action in self.actions:
            for name in action.features:
                if name not in self.action and not any(name in rule.allow_if for rule in self.guardrails):
                    raise ValueError(
                        f"action {action.id!r} has the feature {name!r}, which neither [tasks.action] nor a guardrail "
                        f"knows{did_you_mean(name, self.action)}"
                    )
        if self.baseline is not None and ids and self.baseline not in ids:
            raise ValueError(f"baseline {self.baseline!r} is none of the actions{did_you_mean(self.baseline, ids)}")
        if not ids and not self.action:
            raise ValueError("expected a catalogue (actions = [...]) or features of candidates ([tasks.action])")
        return self


Constant = str | float


class PathTable(Table):
    """Where a field of an outcome stands in an event; `[[sources]]` has them."""

    path: Expression
    """Where the field stands in an event, as a jmespath: `customer.id`."""


def _rule(constant: Callable[[object], bool], what: str) -> BeforeValidator:
    def read(value: object) -> object:
        if constant(value):
            return float(value) if isinstance(value, int) else value
        if isinstance(value, dict | PathTable):
            return value
        raise ValueError(f'expected {what}{{ path = "a.jmespath" }}')

    return BeforeValidator(read)


_PATH = _rule(lambda _: False, "")
_TEXT = _rule(
    lambda value: isinstance(value, str) and 0 < len(value.encode()) <= LIMITS.id_bytes_max,
    f"a constant text of at most {LIMITS.id_bytes_max} bytes or ",
)
_NUMBER = _rule(lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a constant number or ")


class SourceTable(Table):
    """A topic that the shop already has; its events become outcomes."""

    topic: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
    """The shop's own topic."""
    format: Literal["json", "avro"] = "json"
    """How its messages are written; a message in the other format is a dead letter, `wrong-format`."""
    subject: Annotated[PathTable, _PATH]
    """Where the subject stands: the same that the request named. A whole number becomes text."""
    type: Annotated[PathTable | str, _TEXT]
    """The outcome's type: where it stands, or one text for all events."""
    value: Annotated[PathTable | float, _NUMBER] = 1.0
    """The outcome's value: where it stands, or one number for all events. A flag counts as 1 or 0."""
    decision_id: Annotated[PathTable, _PATH] | None = None
    """Where the decision's id stands; without it an outcome goes to the subject's latest open decision that counts
    its type.
    """
    action_id: Annotated[PathTable, _PATH] | None = None
    """Where the action that the shop showed stands; another than the decision's is a conflict."""
    outcome_id: Annotated[PathTable, _PATH] | None = None
    """Where the outcome's own id stands, such as an order number; one that comes again counts once."""
    slot: Annotated[PathTable, _PATH] | None = None
    """Where the place in a list stands."""
    time: Annotated[PathTable, _PATH] | None = None
    """Where the shop's clock stands, in ms since 1970. For people only: the broker's time counts."""
    where: Expression | None = None
    """Only events of which this is true are outcomes; the others are passed over."""


class NamespaceTable(Table):
    """What all tasks of a set of topics share."""

    name: Name = "headrace"
    """First part of the name of every topic."""
    partitions: int = Field(default=12, ge=1, le=4096)
    """Of requests, decisions, outcomes, journal and transitions; fixed at the first apply."""
    draw_key: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){16,64}$")] | None = None
    """Key of all draws, as 16 to 64 bytes in hex: whoever knows it can foretell choices. Without it the first
    apply draws one, and later ones keep it.
    """
    bucket: Duration = Field(default=100, ge=1)
    """Decisions that close within the same such span are learnt together."""
    publish: Duration = Field(default=500, ge=1)
    """Time between two snapshots."""
    tick: Duration = Field(default=250, ge=10, le=10_000)
    """Time between two heartbeats of a journal partition."""


class ProjectTable(Table):
    """The whole file."""

    namespace: NamespaceTable = Field(default_factory=NamespaceTable)
    """What all tasks share."""
    tasks: list[TaskFile] = Field(default_factory=list, max_length=256)
    """What is decided."""
    sources: list[SourceTable] = Field(default_factory=list, max_length=256)
    """Topics of the shop whose events are outcomes."""

    @model_validator(mode="after")
    def _names_differ(self) -> ProjectTable:
        _refuse_twins("task", [task.name for task in self.tasks])
        _refuse_twins("source topic", [source.topic for source in self.sources])
        return self


def _refuse_twins(what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is declared twice")
        seen.add(name)
