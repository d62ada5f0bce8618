"""Task shape: which columns the decisions of a task have, and how wide. Join, learner and probes ask here.

The codec checks that the columns of a block fit together, not that they are those of its task: a column may be absent.
Blocks of one task are put one after another, so each must have exactly the columns that the definition says.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.decision_columns import DecisionColumns, FeatureColumns
from schemas.task import Task


@dataclass(frozen=True, slots=True)
class Shape:
    """What the columns of a definition must look like."""

    num_slots: int
    context_width: int
    action_width: int
    catalogue: bytes
    """b"": candidates come with the requests, each with a row of its own."""
    catalogue_size: int
    has_context_tokens: bool
    has_action_tokens: bool

    @classmethod
    def of(cls, task: Task) -> Shape:
        """The shape that `task` declares."""
        return cls(
            num_slots=task.num_slots,
            context_width=task.context.width,
            action_width=task.action.width,
            catalogue=task.catalogue,
            catalogue_size=len(task.actions),
            has_context_tokens=task.context.has_tokens,
            has_action_tokens=task.action.has_tokens,
        )

    def fits(self, columns: DecisionColumns) -> bool:
        """Whether columns that fit together are those of the definition; how many candidates a row has is not asked.

        No kind of task has drawn values or steps of an episode yet.
        """
        return (
            columns.num_slots == self.num_slots
            and columns.catalogue == self.catalogue
            and self.fits_features(columns.features, columns.propensities.size // self.num_slots)
            and not (columns.values.size or columns.bounds.size)
            and not (columns.terminal.size or columns.steps.size or columns.episode_keys.size)
        )

    def fits_features(self, features: FeatureColumns, num_candidates: int) -> bool:
        """The same for the features alone; `num_candidates` of all rows. Tokens themselves are not looked at."""
        num_rows = features.num_candidates.size
        listed = 0 if self.catalogue else num_candidates
        actions = features.actions
        return (
            features.context.shape == (num_rows, self.context_width)
            and (actions.shape == (listed, self.action_width) if listed else not actions.shape[0])
            and features.action_keys.shape == (listed,)
            and features.context_token_counts.shape == (num_rows if self.has_context_tokens else 0,)
            and features.action_token_counts.shape == (listed if self.has_action_tokens else 0,)
        )
