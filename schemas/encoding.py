"""Named feature values to columns and tokens: what a policy sees of one side, of many contexts or candidates at once.

A missing feature, and a value that a category does not declare, is all zeros. A feature that the task does not
declare is passed over (`headrace lint` names it). Numbers: ``z = x / scale``, then ``sign(z)·log1p(|z|)`` if `log`;
finiteness is checked after the cast to float32 (learning.md rule 2). Tokens: categories and lists of strings
first, then texts, each in order of feature name.

An error belongs to one owner; the columns of the others are right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numba import njit

from schemas.arrays import F32, I32, empty
from schemas.decision_columns import TEXT_TOKEN, FeatureColumns
from schemas.errors import UserError
from schemas.feature_spec import Feature, FeatureSpec
from schemas.frozen import frozen
from schemas.hashing import action_keys
from schemas.records import Vector
from schemas.text import AS_IT_STANDS, WORDS, WORDS_COUNTED, Pieces, seed_of, tokens_of

_FLOAT = {float}
_NO_TOKENS, _NO_TOKEN_VALUES = empty(np.int32), empty(np.float32)

Values = Mapping[str, Any]
"""Feature name → `schemas.records.FeatureValue`, or plain JSON from a definition."""


@frozen
class SideError:
    """Why one context or candidate cannot be encoded."""

    reason: str
    """wrong-type, wrong-size or not-finite."""
    detail: str
    """Feature, what was expected, what came."""


@frozen
class SideColumns:
    """One side of N owners, encoded."""

    dense: F32
    """(N, width)"""
    token_counts: I32
    """(N,), or (0,) when the side has no token features."""
    tokens: I32
    token_values: F32
    errors: Mapping[int, SideError]
    """By owner; the columns of these owners mean nothing."""
    num_cut: int = 0
    """Texts cut: longer than `schemas.text.LENGTH_MAX` characters, or with more marks on a letter than are read."""
    num_dropped: int = 0
    """Owners that had more tokens than the side allows."""


class SideEncoder:
    """Encodes one side of a task. Holds nothing but the plan made from the specification."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._width = spec.width
        self._plain: list[tuple[int, str, bool]] = []
        """(column, name, boolean) of numbers and booleans."""
        self._one_hot: list[tuple[str, dict[str, int]]] = []
        self._vectors: list[tuple[int, str, int]] = []
        self._tokens: list[tuple[str, int, int]] = []
        """(name, seed, mode), categories before texts."""
        self._scale = np.ones(self._width)
        self._log = np.zeros(self._width, bool)
        column = 0
        for feature in spec.features:
            self._plan(feature, column)
            column += feature.width
        self._tokens.sort(key=lambda token: token[2] & TEXT_TOKEN)  # stable: names stay in order
        names = [name for _, name, boolean in self._plain if not boolean]
        self._getter = itemgetter(*names) if len(names) == self._width >= 2 else None

    def _plan(self, feature: Feature, column: int) -> None:
        if feature.kind == "text":
            mode = TEXT_TOKEN | (WORDS_COUNTED if feature.count else WORDS)
            self._tokens.append((feature.name, seed_of(feature.name), mode))
        elif feature.is_token:
            self._tokens.append((feature.name, seed_of(feature.name), AS_IT_STANDS))
        elif feature.kind == "category":
            self._one_hot.append((feature.name, {value: column + i for i, value in enumerate(feature.values)}))
        elif feature.kind == "vector":
            self._vectors.append((column, feature.name, feature.size))
        else:
            self._plain.append((column, feature.name, feature.kind == "boolean"))
            self._scale[column], self._log[column] = feature.scale, feature.log

    def encode(self, owners: Sequence[Values]) -> SideColumns:
        """Encode the named values of N owners; never raises for what a user sent."""
        errors: dict[int, SideError] = {}
        dense = self._dense(owners, errors)
        if not self._tokens:
            return SideColumns(dense, _NO_TOKENS, _NO_TOKENS, _NO_TOKEN_VALUES, errors)
        pieces = Pieces.none()
        for owner, values in enumerate(owners):
            self._add_pieces(owner, values, pieces, errors)
        tokens = tokens_of(pieces, len(owners), self.spec.num_tokens_max)
        return SideColumns(dense, tokens.counts, tokens.ids, tokens.values, errors, tokens.num_cut, tokens.num_dropped)

    def _dense(self, owners: Sequence[Values], errors: dict[int, SideError]) -> F32:
        width = self._width
        if not width:
            return np.empty((len(owners), 0), np.float32)
        vectors: list[tuple[int, int, F32]] = []
        cells = self._numbers_only(owners)
        if cells is None:
            cells = [0.0] * (len(owners) * width)
            for owner, values in enumerate(owners):
                self._fill(owner, values, cells, vectors, errors)
        dense = np.empty((len(owners), width), np.float32)
        finite = _transform(np.array(cells), self._scale, self._log, dense)
        for owner, column, elements in vectors:
            dense[owner, column : column + len(elements)] = elements
            finite = finite and bool(np.isfinite(elements).all())
        if not finite:
            self._name_not_finite(dense, errors)
        return dense

    def _numbers_only(self, owners: Sequence[Values]) -> list[float] | None:
        """All cells at once in the usual case: every dense feature is a number, present, and a float."""
        if self._getter is None:
            return None
        try:
            cells = list(chain.from_iterable(map(self._getter, owners)))
        except KeyError:
            return None
        return cells if set(map(type, cells)) <= _FLOAT else None

    def _fill(
        self,
        owner: int,
        values: Values,
        cells: list[float],
        vectors: list[tuple[int, int, F32]],
        errors: dict[int, SideError],
    ) -> None:
        base = owner * self._width
        for column, name, boolean in self._plain:
            value = values.get(name)
            if value is not None:
                is_float = type(value) is float and not boolean
                cells[base + column] = value if is_float else _number(name, value, boolean, owner, errors)
        for name, columns in self._one_hot:
            value = values.get(name)
            for item in () if value is None else _strings(name, value, owner, errors):
                if item in columns:
                    cells[base + columns[item]] = 1.0
        for column, name, size in self._vectors:
            value = values.get(name)
            if value is not None:
                vectors.append((owner, column, _vector(name, value, size, owner, errors)))

    def _name_not_finite(self, dense: F32, errors: dict[int, SideError]) -> None:
        names, finite = self.spec.columns(), np.isfinite(dense)
        for owner in np.flatnonzero(~finite.all(axis=1)).tolist():
            name = names[int(np.flatnonzero(~finite[owner])[0])]
            errors.setdefault(owner, SideError("not-finite", f"feature {name!r} is not finite as float32"))

    def _add_pieces(self, owner: int, values: Values, pieces: Pieces, errors: dict[int, SideError]) -> None:
        texts = []
        for name, seed, mode in self._tokens:
            value = values.get(name)
            if value is None:
                continue
            if mode & TEXT_TOKEN and type(value) is str:
                texts.append((seed, mode, value))
                continue
            for item in _strings(name, value, owner, errors):
                pieces.add(owner, seed, mode & TEXT_TOKEN | AS_IT_STANDS, item)
        for seed, mode, value in texts:
            pieces.add(owner, seed, mode, value)


@njit(cache=True, nogil=True)
def _transform(cells, scale, log, dense):  # type: ignore[no-untyped-def]  # numba
    """Scale, log and cast `cells` (N·width, row-major) into `dense`; whether all came out finite."""
    finite = True
    for row in range(dense.shape[0]):
        for column in range(dense.shape[1]):
            value = cells[row * dense.shape[1] + column] / scale[column]
            if log[column]:
                value = math.copysign(math.log1p(abs(value)), value)
            dense[row, column] = value
            finite = finite and math.isfinite(dense[row, column])
    return finite


def _refuse(name: str, expected: str, value: object, owner: int, errors: dict[int, SideError]) -> None:
    detail = f"feature {name!r}: expected {expected}, got {type(value).__name__} {str(value)[:40]!r}"
    errors.setdefault(owner, SideError("wrong-type", detail))


def _number(name: str, value: Any, boolean: bool, owner: int, errors: dict[int, SideError]) -> float:
    if isinstance(value, int | float) and (not boolean or value in (0, 1)):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    _refuse(name, "true or false" if boolean else "a number", value, owner, errors)
    return 0.0


def _strings(name: str, value: Any, owner: int, errors: dict[int, SideError]) -> Sequence[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    _refuse(name, "text or a list of texts", value, owner, errors)
    return ()


def _vector(name: str, value: Any, size: int, owner: int, errors: dict[int, SideError]) -> F32:
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        with np.errstate(over="ignore"):
            value = Vector(np.array(value, np.float64).astype(np.float32))
    if not isinstance(value, Vector):
        _refuse(name, f"a vector of {size} numbers", value, owner, errors)
        return empty(np.float32)
    if len(value.values) != size:
        detail = f"feature {name!r}: expected a vector of {size} numbers, got {len(value.values)}"
        errors.setdefault(owner, SideError("wrong-size", detail))
        return empty(np.float32)
    return value.values


def catalogue_columns(spec: FeatureSpec, ids: Sequence[str], values: Sequence[Values], where: str) -> FeatureColumns:
    """A declared catalogue as the candidates of one row without context. `where` names the task in errors.

    Raises UserError when an action's features do not fit the specification.
    """
    side = SideEncoder(spec).encode(values)
    for owner, error in side.errors.items():
        raise UserError(
            f"{where}: action {ids[owner]!r}: {error.detail}", "correct its features under [[tasks.actions]]"
        )
    return FeatureColumns(
        context=empty(np.float32, 1, 0),
        num_candidates=np.array([len(ids)], np.int32),
        actions=side.dense,
        action_keys=action_keys(ids),
        context_token_counts=empty(np.int32),
        context_tokens=empty(np.int32),
        context_token_values=empty(np.float32),
        action_token_counts=side.token_counts,
        action_tokens=side.tokens,
        action_token_values=side.token_values,
    )
