"""Layout: the flat fields of a block's schema in wire order, with the kind of each.

Knows the kinds of fields, not their meaning: `schemas.columns` gives the columns names, types and shapes. A block's
schema is flat by design: scalars, bytes, and arrays of one primitive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.arrays import I64

TEXT, NUMBER, FIXED, BYTES, F32S, F64S, I32S, I64S, STRINGS, UNREAD_STRINGS = range(10)
"""Kinds of fields. Unread strings are checked like the others, but only their number is kept."""
_ARRAYS = {"float": F32S, "double": F64S, "int": I32S, "long": I64S, "string": STRINGS}
_SCALARS = {"string": TEXT, "int": NUMBER, "long": NUMBER, "bytes": BYTES}
DTYPES: dict[int, np.dtype[Any]] = {
    F32S: np.dtype("<f4"),
    F64S: np.dtype("<f8"),
    I32S: np.dtype("<i4"),
    I64S: np.dtype("<i8"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The fields of a flat schema in wire order."""

    names: tuple[str, ...]
    kinds: tuple[int, ...]
    table: I64
    """(num_fields, 2): kind, size of a fixed field or 1 if a NUMBER has only 32 bits."""


def layout_of(schema: dict[str, Any]) -> Layout:
    """Layout of a parsed record schema whose fields are all flat; raises KeyError for any other."""
    rows: list[tuple[int, int]] = []
    fixed_sizes: dict[str, int] = {}
    for field in schema["fields"]:
        kind = field["type"]
        if isinstance(kind, str):
            rows.append((FIXED, fixed_sizes[kind]) if kind in fixed_sizes else (_SCALARS[kind], int(kind == "int")))
        elif kind["type"] == "fixed":
            fixed_sizes[kind["name"]] = kind["size"]
            rows.append((FIXED, kind["size"]))
        else:
            rows.append((_ARRAYS[kind["items"]], 0))
    names = tuple(field["name"] for field in schema["fields"])
    return Layout(names, tuple(kind for kind, _ in rows), np.array(rows, np.int64).reshape(-1, 2))


def without_strings(layout: Layout, keep: frozenset[str]) -> Layout:
    """The layout for readers that want numbers only: string columns stay unread, but for those named in `keep`."""
    kinds = tuple(
        UNREAD_STRINGS if kind == STRINGS and name not in keep else kind
        for name, kind in zip(layout.names, layout.kinds, strict=True)
    )
    table = layout.table.copy()
    table[:, 0] = kinds
    return Layout(layout.names, kinds, table)
