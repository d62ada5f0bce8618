"""Losses: one function per equation.

Torch tensors in, a scalar tensor out. The wide and cross experts have closed forms and need no loss of this kind.
"""

from __future__ import annotations

import torch


def reward_regression(prediction_N: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the chosen action's predicted reward, unweighted (learning.md rule 19).

    Both (N,) in units of the reward's standard deviation. Regression on what was chosen needs no importance weights:
    they belong to off-policy estimates and policy gradients (Foster & Rakhlin 2020, arXiv 2002.04926, §3).
    """
    if prediction_N.shape != target_N.shape or prediction_N.ndim != 1:
        raise ValueError(f"expected two tensors of one shape (N,), got {prediction_N.shape} and {target_N.shape}")
    return ((prediction_N - target_N) ** 2).mean()
