"""What the kernels of the join see of blocks: `Offered` decisions and `Told` outcomes, of one record or of a group."""

from __future__ import annotations

import numpy as np

from schemas.arrays import I32
from schemas.blocks import DecisionBlock, OutcomeBlock
from streams.join_definitions import Definitions
from streams.join_folding import Offered, Told
from streams.join_groups import NOTHING_TOLD, Group
from streams.join_intake import Intake, owned, take_in


def offer(known: Definitions, index: int, block: DecisionBlock) -> tuple[Intake, Offered]:
    """What is kept of decisions of definition `index`, and what the kernels see of them."""
    kept = take_in(block, known.task(index), known.shapes[index])
    columns = kept.columns
    has_catalogue = bool(columns.catalogue)
    return kept, Offered(
        keys=kept.decision_keys,
        subjects=kept.subject_keys,
        sound=kept.sound,
        chosen=kept.chosen,
        num_candidates=columns.features.num_candidates,
        action_keys=known.catalogue_keys[index] if has_catalogue else columns.features.action_keys,
        catalogue=has_catalogue,
        values=columns.values.view(np.uint64),
    )


def told_of(block: OutcomeBlock, types: I32, type_indices: I32) -> Told:
    """What the kernels see of a block's outcomes; `type_indices` is what the codes in `types` mean."""
    return Told(
        source_offsets=owned(block.source_offsets),
        outcome_keys=owned(block.outcome_keys),
        subjects=owned(block.subject_keys),
        keys=owned(block.decision_keys),
        action_keys=owned(block.action_keys),
        slots=owned(block.slots),
        types=owned(types),
        type_indices=type_indices,
        values=owned(block.values),
    )


def tell_group(group: Group, known: Definitions) -> Told:
    """All outcomes of a group; the type codes of each record count from where its own names begin."""
    merged = group.outcomes
    if merged is None:
        return NOTHING_TOLD
    indices = [known.type_indices(names) for names in merged.type_names]
    ends = np.cumsum([len(each) for each in indices], dtype=np.int32)
    firsts = (ends - [len(each) for each in indices]).astype(np.int32)
    types = merged.block.types + np.repeat(firsts[merged.type_names_of], merged.rows)
    return told_of(merged.block, types, np.concatenate(indices))
