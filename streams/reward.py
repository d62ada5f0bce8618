"""Rule 4: the outcomes of a decision become one reward per slot.

What came in is held in nodes, one per (slot, outcome type) of a decision that has outcomes: a decision without any
costs nothing, one with a million costs as many nodes as its task has types and slots.

    reward(slot) = clip(sum over types of weight * aggregate(values), min, max), the default without an outcome

Types are summed in order of name in float64, so every process gets the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from schemas.arrays import I64
from schemas.blocks import FLAG_CLIPPED
from schemas.compiled import KERNEL, SMALL
from schemas.task import AGGREGATES
from streams.join_definitions import Rules

NODE = np.dtype([("next", "i4"), ("slot", "i2"), ("type", "i2"), ("count", "i8"), ("value", "f8")])
"""24 bytes. With type `ACTION_KEY` it holds in `count` the bits of the action key chosen for the slot."""
ACTION_KEY = -1

FREE, USED = 0, 1
"""Cursor of the nodes: first of the list of free ones (-1 none), and how many were ever taken from the end."""

_SUM, _FIRST, _LAST, _MIN, _MAX, _MEAN, _COUNT = range(len(AGGREGATES))


class Nodes(NamedTuple):
    """Arrays of the nodes, as numba functions take them."""

    nodes: npt.NDArray[Any]
    cursor: I64


def make_room(held: Nodes, num_nodes: int) -> Nodes:
    """`held` with room for at least `num_nodes` more; the same object when there is room already."""
    wanted = int(held.cursor[USED]) + num_nodes
    if wanted <= len(held.nodes):
        return held
    grown = np.empty(max(2 * len(held.nodes), wanted), NODE)
    grown[: len(held.nodes)] = held.nodes
    return held._replace(nodes=grown)


def new_nodes() -> Nodes:
    """An empty store."""
    return Nodes(np.empty(1024, NODE), np.array([-1, 0], np.int64))


@njit(**SMALL)
def take_node(held: Nodes, slot: int, kind: int) -> int:
    """A fresh node for (slot, kind): count and value 0, no next."""
    index = held.cursor[FREE]
    if index >= 0:
        held.cursor[FREE] = held.nodes[index].next
    else:
        index = held.cursor[USED]
        held.cursor[USED] += 1
    node = held.nodes[index]
    node.next = -1
    node.slot = slot
    node.type = kind
    node.count = 0
    node.value = 0.0
    return int(index)


@njit(**KERNEL)
def free_nodes(held: Nodes, first: int) -> None:
    """Give a decision's nodes back."""
    while first >= 0:
        following = held.nodes[first].next
        held.nodes[first].next = held.cursor[FREE]
        held.cursor[FREE] = first
        first = following


@njit(**SMALL)
def find_node(held: Nodes, first: int, slot: int, kind: int) -> int:
    """The node of (slot, kind) in the list at `first`, -1 when there is none."""
    while first >= 0:
        node = held.nodes[first]
        if node.type == kind and node.slot == slot:
            return first
        first = node.next
    return -1


@njit(**KERNEL)
def accumulate(held: Nodes, first: int, slot: int, kind: int, aggregate: int, value: float) -> int:
    """Count `value` for (slot, type); returns the first node of the list."""
    index = find_node(held, first, slot, kind)
    if index < 0:
        index = take_node(held, slot, kind)
        held.nodes[index].next = first
        first = index
    node = held.nodes[index]
    node.count += 1
    if node.count == 1 or aggregate == _LAST:
        node.value = value
    elif aggregate in (_SUM, _MEAN):
        node.value += value
    elif aggregate == _MIN:
        node.value = min(node.value, value)
    elif aggregate == _MAX:
        node.value = max(node.value, value)
    return first


@njit(**KERNEL)
def reward_of(held: Nodes, first: int, slot: int, rules: Rules, definition: int) -> tuple[float, int]:
    """(reward, flags) of one slot. A sum of infinities that is no number becomes the default, flagged as clipped."""
    total, found = 0.0, False
    types = rules.types[definition]
    for place in range(types.shape[0]):
        kind = types[place]
        if kind < 0:
            break
        index = find_node(held, first, slot, kind)
        if index < 0:
            continue
        found = True
        node = held.nodes[index]
        aggregate = rules.aggregates[definition, kind]
        value = node.value
        if aggregate == _MEAN:
            value = node.value / node.count
        elif aggregate == _COUNT:
            value = float(node.count)
        total += rules.weights[definition, kind] * value
    default, smallest, largest = rules.bounds[definition, 0], rules.bounds[definition, 1], rules.bounds[definition, 2]
    if not found:
        return default, 0
    if np.isnan(total):
        return default, FLAG_CLIPPED
    if total < smallest:
        return smallest, FLAG_CLIPPED
    if total > largest:
        return largest, FLAG_CLIPPED
    return total, 0
