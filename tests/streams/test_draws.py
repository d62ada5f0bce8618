"""A million decisions through the real core: what is logged is what was sampled, exactly, whatever the batch or policy.

The journal's bytes are read back and every draw is made again by `draw_recomputed`, which shares no code with the
product (guarantee 10; learning.md rules 15, 17, 20, 21). The controls spoil the product, the key and the log, and the
same checks must find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from deploy.explain_scores import integer_bounds
from learner.policy import explore, network
from learner.policy.probes import SCORE_TOLERANCE
from schemas import weights as tensors
from schemas.blocks import DecisionBlock
from schemas.codec import decode
from schemas.records import Reason
from schemas.task import Task
from streams import decide as product
from tests.streams import draw_recomputed as again
from tests.streams import draw_world as world

NUM_DRAWS = 1_000_000
SEED = 20
KEY = bytes.fromhex(world.PROJECT.namespace.draw_key)
SAMPLED_EVERY = 90
"""Of the journal's records, for the scores: about ten thousand decisions."""
NORMAL_1E6 = 4.753
"""A standard normal exceeds it with probability 1e-6."""


@dataclass(frozen=True)
class Run:
    """What a million requests left in the journal."""

    rows: again.Rows
    sample: list[DecisionBlock]


def _half(seed: int) -> Run:
    sample: list[DecisionBlock] = []

    def kept(records: Iterable[bytes]) -> Iterator[bytes]:
        for number, record in enumerate(records):
            if number % SAMPLED_EVERY == 0:
                sample.append(decode(record, world.REGISTRY, expect=DecisionBlock))
            yield record

    return Run(again.read(kept(world.journal(NUM_DRAWS // 2, seed))), sample)


@pytest.fixture(scope="module")
def ran() -> Run:
    """Two halves at the same time: one core would take a minute."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(_half, (SEED, SEED + 1))
    return Run(again.joined(first.rows, second.rows), first.sample + second.sample)


@pytest.mark.timeout(900)  # two minutes of two cores that nobody else wants
def test_a_million_draws_follow_from_the_logged_integers_and_the_key(ran: Run) -> None:
    rows = ran.rows
    num = len(rows.ids)
    num_swaps = np.count_nonzero(np.diff(rows.versions))
    assert num >= NUM_DRAWS
    assert len(set(rows.ids)) == num
    assert set(rows.versions.tolist()) == {0, *world.VERSIONS}
    assert num_swaps > 1_000
    assert set(rows.reasons) == {Reason.POLICY, Reason.NO_SNAPSHOT, Reason.SNAPSHOT_REFUSED, Reason.OVERLOAD}
    num_equal = np.count_nonzero(again.choices(rows, KEY) == rows.chosen)
    print(f"{num_equal} of {num} draws equal, {num_swaps} changes of version, {dict(rows.reasons)}")
    assert num_equal == num


def test_the_integers_of_every_row_sum_to_one_and_none_is_below_its_floor(ran: Run) -> None:
    assert (ran.rows.sums() == again.ONE).all()
    integers = ran.rows.integers
    assert integers.min() == 0, "the world has masked candidates"
    assert integers[integers > 0].min() >= explore.PROPENSITY_MIN


def test_the_choices_are_distributed_as_the_integers_say(ran: Run) -> None:
    """χ² over all groups of rows with equal integers. False-alarm rate 1e-6; ids are seeded, so it is fixed."""
    total, freedom = again.chi_square(ran.rows)
    limit = again.chi_square_limit(freedom, NORMAL_1E6)
    print(f"chi-square {total:.0f} with {freedom} degrees of freedom, limit {limit:.0f}")
    assert freedom > 200
    assert total < limit


def test_recomputed_scores_lie_within_the_tolerance_and_explain_the_logged_integers(ran: Run) -> None:
    """Rule 20: from the snapshot's bytes and the logged features, by torch and one row at a time."""
    worst, num_rows, num_equal = 0.0, 0, 0
    for block in ran.sample:
        if block.snapshot_version:
            found = _check_scores(block, block.snapshot_version)
            worst, num_rows, num_equal = max(worst, found[0]), num_rows + len(block), num_equal + found[1]
    print(f"{num_rows} decisions: scores within {worst:.1e} of the reward's range, integers equal in {num_equal}")
    assert num_rows > 5_000
    assert worst <= SCORE_TOLERANCE


def _check_scores(block: DecisionBlock, version: int) -> tuple[float, int]:
    """(largest difference of a score in units of the reward's range, rows whose integers are equal); else asserts."""
    task = world.TABLE[block.fingerprint]
    weights = _weights(task, version)
    width = task.reward.max - task.reward.min
    explorer = explore.Explorer.of(weights, task)
    arrays = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    served = world.snapshot(version).policy.tasks[task.fingerprint].forward.scores(block.columns.features)
    worst, num_equal, start = 0.0, 0, 0
    for row in range(len(block)):
        columns = block.columns.rows(row, row + 1)
        sizes, integers = columns.features.num_candidates, columns.propensities
        stop = start + int(sizes[0])
        scores = network.scores(arrays, task, columns.features).numpy()
        worst = max(worst, float(np.abs(scores - served[start:stop]).max()) / width)
        low, high = integer_bounds(scores, sizes, integers > 0, explorer, SCORE_TOLERANCE * width)
        assert ((low <= integers) & (integers <= high)).all(), f"{block.task} {block.decision_ids[row]}"
        num_equal += np.array_equal(explorer.integers(scores, sizes, integers > 0), integers)
        start = stop
    return worst, num_equal


def _weights(task: Task, version: int) -> dict[str, Any]:
    """The task's arrays, out of the snapshot's bytes."""
    arrays, _ = tensors.unpack(world.snapshot(version).payload)
    prefix = f"{task.fingerprint.hex()}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def test_control_another_versions_weights_do_not_explain_the_integers(ran: Run) -> None:
    of_one = [block for block in ran.sample if block.snapshot_version == 1]
    refused = 0
    for block in of_one:
        try:
            _check_scores(block, 2)
        except AssertionError:
            refused += 1
    assert refused > 0.9 * len(of_one)


@pytest.fixture(scope="module")
def few() -> again.Rows:
    """Rows to spoil."""
    return again.read(world.journal(20_000, SEED + 2))


def _num_wrong(rows: again.Rows, key: bytes = KEY) -> int:
    return int(np.count_nonzero(again.choices(rows, key) != rows.chosen))


def test_control_one_unit_of_one_integer_is_seen(few: again.Rows) -> None:
    """The boundary below the choice is moved onto the draw itself: the smallest change that matters."""
    assert _num_wrong(few) == 0
    before = np.cumsum(few.integers)[few.starts + few.chosen - 1] % again.ONE
    drawn = again.draws(KEY, few.tasks, few.ids)
    row = int(np.flatnonzero((few.chosen > 0) & (few.integers[few.starts + few.chosen - 1] > 0))[0])
    place, room = int(few.starts[row] + few.chosen[row]), int(drawn[row] - before[row])
    integers = few.integers.copy()
    integers[place - 1] += room
    integers[place] -= room
    assert _num_wrong(replace(few, integers=integers)) == 0
    integers[place - 1] += 1
    integers[place] -= 1
    assert _num_wrong(replace(few, integers=integers)) == 1


def test_control_a_sum_that_is_off_by_one_is_seen(few: again.Rows) -> None:
    integers = few.integers.copy()
    integers[int(few.starts[123])] += 1
    assert np.flatnonzero(replace(few, integers=integers).sums() != again.ONE).tolist() == [123]


def test_control_a_wrong_key_and_wrong_ids_are_seen(few: again.Rows) -> None:
    assert _num_wrong(few, KEY[:-1] + bytes([KEY[-1] ^ 1])) > 0.1 * len(few.ids)
    rare = int(np.argmin(few.integers[few.starts + few.chosen]))
    ids = list(few.ids)
    ids[rare] += b"x"
    assert _num_wrong(replace(few, ids=ids)) == 1
    assert _num_wrong(replace(few, tasks=["another"] * len(few.ids))) > 0.1 * len(few.ids)


def test_control_choices_of_another_distribution_are_seen(few: again.Rows) -> None:
    """Every choice uniform over the candidates, whatever the integers."""
    drawn = again.draws(b"another", few.tasks, few.ids)
    total, freedom = again.chi_square(replace(few, chosen=drawn * few.sizes // again.ONE))
    assert total > 10 * again.chi_square_limit(freedom, NORMAL_1E6)


def _with_another_key(key: bytes, purpose: int, slot: int, task: str, decision_id: str) -> int:
    return SOUND_DRAW(b"another" + key, purpose, slot, task, decision_id)


def _for_another_purpose(key: bytes, purpose: int, slot: int, task: str, decision_id: str) -> int:
    return SOUND_DRAW(key, purpose + 1, slot, task, decision_id)


def _without_the_task(key: bytes, purpose: int, slot: int, task: str, decision_id: str) -> int:
    return SOUND_DRAW(key, purpose, slot, "", decision_id)


SOUND_DRAW = product.draw


@pytest.mark.parametrize("draw", [_with_another_key, _for_another_purpose, _without_the_task])
def test_control_a_core_that_draws_otherwise_is_seen(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "draw", draw)
    assert _num_wrong(again.read(world.journal(2_000, SEED + 3))) > 200


def test_control_a_core_that_samples_coarser_than_it_logs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by integers of 8 bits, logged with 24: a hundredth of the draws differ at most."""
    sound = explore.choose

    def choose(propensities: Any, num_candidates: Any, draws: Any) -> Any:
        blurred = propensities // 65_536 * 65_536
        firsts = np.cumsum(num_candidates) - num_candidates
        blurred[firsts] += again.ONE - np.add.reduceat(blurred, firsts)
        return sound(blurred, num_candidates, draws)

    monkeypatch.setattr(explore, "choose", choose)
    wrong = _num_wrong(again.read(world.journal(20_000, SEED + 3)))
    assert 0 < wrong < 400
