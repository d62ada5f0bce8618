"""Scaling: mean and scale of each dense feature, frozen early so that everything downstream speaks one language.

Pure. learning.md rule 2, with three things said exactly:
- a feature that is 0/1 by declaration (boolean, one-hot) is left as it is: frozen early, a rare value that the first
  rows do not show would be 0 for good;
- before moments are taken, each column is cut to its 1st..99th percentile widened by their distance, so a single
  x = 1e30 among the first rows does not make the feature vanish;
- a column that has been constant is 0 and stays exactly consistent: mean is that constant, so whenever it first
  varies it gets a scale, and all earlier rows were 0 under that scale too.

Shape legend: N rows, D dense features of one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import F32, F64
from schemas.feature_spec import FeatureSpec

NUM_ROWS_FREEZE = 512
CONSTANT = 1e-6
"""A column whose sd is below this times its rms has not varied."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """z = clip((x - mean) · scale, ±10)."""

    mean: F64
    """(D,)"""
    scale: F64
    """(D,) 1/sd, 0 for a column that has not varied."""


def indicator_columns(spec: FeatureSpec) -> list[bool]:
    """For each dense column whether it is 0/1 by declaration."""
    out: list[bool] = []
    for feature in spec.features:
        out += [feature.kind in ("boolean", "category")] * feature.width
    return out


def scaling_of(dense: F32, indicators: list[bool]) -> Scaling:
    """Scaling from the first rows (N, D); N may be 0, then nothing has varied."""
    width = dense.shape[1]
    mean, scale = np.zeros(width), np.zeros(width)
    flags = np.array(indicators, bool)
    if len(dense) and width:
        columns = dense.astype(np.float64)
        low, high = np.percentile(columns, (1.0, 99.0), axis=0)
        spread = high - low
        inside = np.clip(columns, low - spread, high + spread)
        cut = np.where(spread > 0.0, inside, columns)
        mean = cut.mean(0)
        scale = _scale(cut.std(0), np.sqrt((cut * cut).mean(0)))
        constant = scale == 0.0
        mean[constant] = columns[0, constant]
    mean[flags], scale[flags] = 0.0, 1.0
    return Scaling(mean, scale)


def widened(scaling: Scaling, dense: F32) -> Scaling:
    """`scaling` with a scale for the columns that vary for the first time in these rows (N, D)."""
    constant = np.flatnonzero(scaling.scale == 0.0)
    if not len(constant) or not len(dense):
        return scaling
    off = dense[:, constant].astype(np.float64) - scaling.mean[constant]
    deviation = np.sqrt((off * off).mean(0))
    scale = scaling.scale.copy()
    scale[constant] = _scale(deviation, np.abs(scaling.mean[constant]) + deviation)
    return Scaling(scaling.mean, scale)


def _scale(sd: F64, rms: F64) -> F64:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sd > CONSTANT * rms, 1.0 / sd, 0.0)
