"""The reward curve as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from schemas.arrays import F64

WINDOW = 500
"""Decisions averaged per point."""
VW_AVERAGE = 0.213
"""Vowpal Wabbit's best setting of a grid, without delay, averaged over one pass of the same messages."""


def moving_mean(rewards: F64, window: int = WINDOW) -> tuple[F64, F64]:
    """(number of the last decision, mean of the `window` up to it); a shorter window at the start."""
    sums = np.concatenate([[0.0], np.cumsum(rewards)])
    ends = np.arange(1, len(rewards) + 1)
    starts = np.maximum(0, ends - window)
    return ends.astype(np.float64), (sums[ends] - sums[starts]) / (ends - starts)


def draw(path: Path, rewards: F64, uniform: float, best_constant: float) -> bool:
    """Write the PNG; False when matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=120)
    axes.plot(*moving_mean(rewards), color="#0b6e99", linewidth=1.8, label=f"headrace, mean of the last {WINDOW}")
    axes.axhline(VW_AVERAGE, color="#c26a00", linestyle="--", label=f"VW's best, average over one pass ({VW_AVERAGE})")
    axes.axhline(best_constant, color="#777777", linestyle="-.", label=f"best constant route ({best_constant:.3f})")
    axes.axhline(uniform, color="#aaaaaa", linestyle=":", label=f"uniform ({uniform:.3f})")
    axes.set_xlabel("decisions that were learnt from")
    axes.set_ylabel("reward: share of messages routed right")
    axes.set_title("BANKING77: 77 routes, one right, only the chosen one's outcome is seen")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True
