"""Deep: the neural expert, SiLU 64-64 over context, action and token embeddings, with replay.

Owns parameters, AdamW, and the four steps per 256 rows: one on the fresh rows, three on replayed ones
(hybrid-learner.md §2). Layer by layer it is the forward pass of `learner.policy.network`; a test holds them together.

Shape legend
    N rows, H = 64 hidden units, J = 16 dimensions of a token embedding, T tokens per side
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learner import losses
from learner.design import uniforms
from learner.policy import network
from learner.replay import Ring, Rows
from learner.scaling import Scaling
from schemas.arrays import F64
from schemas.task import Task

HIDDEN = 64
EMBEDDING = 16
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
NORM_MAX = 1.0
STEPS_REPLAYED = 3
IDS_MAX = 4096
"""Catalogues above this give the net no input per action id: AdamW moves every parameter at every step."""
_STREAM_INIT = 3


class Deep:
    """Parameters and optimiser of one task's net."""

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self.ring = Ring()
        self._step = 0
        self._mean, self._sd = 0.0, 1.0
        self._parameters = {name: value.to(device) for name, value in _initial(task).items()}
        self._first = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._second = {name: torch.zeros_like(value) for name, value in self._parameters.items()}

    def learn(self, rows: Rows, x_scaling: Scaling, a_scaling: Scaling, var_floor: float) -> None:
        """One step on `rows`, three on replay; `rows` join the ring first."""
        self.ring.add(rows)
        mean, variance = self.ring.reward_moments()
        self._mean, self._sd = mean, float(np.sqrt(max(variance, var_floor)))
        seed = self._task.learner.seed
        for turn in range(1 + STEPS_REPLAYED):
            self._descend(rows if turn == 0 else self.ring.sample(len(rows), seed, self._step), x_scaling, a_scaling)
            self._step += 1

    def _descend(self, rows: Rows, x_scaling: Scaling, a_scaling: Scaling) -> None:
        """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) with the gradient's norm clipped."""
        live = {name: value.requires_grad_() for name, value in self._parameters.items()}
        units = self._forward(live, rows, x_scaling, a_scaling)
        target = torch.from_numpy(((rows.y - self._mean) / self._sd).astype(np.float32)).to(self._device)
        loss = losses.reward_regression(units, target)
        gradients = dict(zip(live, torch.autograd.grad(loss, list(live.values())), strict=True))
        with torch.no_grad():
            norm = torch.sqrt(sum(((g * g).sum() for g in gradients.values()), torch.zeros((), device=self._device)))
            if not bool(torch.isfinite(norm)):
                return
            shrink = torch.clamp(NORM_MAX / (norm + 1e-6), max=1.0)
            time = self._step + 1
            for name, value in self._parameters.items():
                gradient = gradients[name] * shrink
                first = self._first[name].mul_(BETA_1).add_(gradient, alpha=1.0 - BETA_1)
                second = self._second[name].mul_(BETA_2).addcmul_(gradient, gradient, value=1.0 - BETA_2)
                rate = second.div(1.0 - BETA_2**time).sqrt_().add_(EPSILON)
                stepped = value.detach().mul(1.0 - LEARNING_RATE * WEIGHT_DECAY)
                stepped.addcdiv_(first, rate, value=-LEARNING_RATE / (1.0 - BETA_1**time))
                self._parameters[name] = stepped

    def _forward(
        self, live: Mapping[str, torch.Tensor], rows: Rows, x_scaling: Scaling, a_scaling: Scaling
    ) -> torch.Tensor:
        """Prediction (N,) in units of the reward's sd, centred."""
        zx, za = self._scaled(rows.x, x_scaling), self._scaled(rows.a, a_scaling)
        first = zx @ live["deep_x"] + za @ live["deep_a"] + live["deep_b1"]
        if "deep_id" in live:
            first = first + live["deep_id"][self._on_device(rows.ids)]
        for side, slots, weights in (
            ("deep_tx", rows.x_slots, rows.x_weights),
            ("deep_ta", rows.a_slots, rows.a_weights),
        ):
            if side in live:
                gathered = live["deep_embedding"][self._on_device(slots.astype(np.int64))]
                pooled = (gathered * self._on_device(weights)[:, :, None]).sum(1)
                first = first + pooled @ live[side]
        hidden = network.silu(network.silu(first) @ live["deep_w2"] + live["deep_b2"])
        units: torch.Tensor = hidden @ live["deep_w3"] + live["deep_b3"]
        return units

    def _scaled(self, dense: npt.NDArray[np.float32], scaling: Scaling) -> torch.Tensor:
        z = np.clip((dense.astype(np.float64) - scaling.mean) * scaling.scale, -network.CLIP, network.CLIP)
        return self._on_device(z.astype(np.float32))

    def _on_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def predict(self, rows: Rows, x_scaling: Scaling, a_scaling: Scaling) -> F64:
        """Prediction (N,) of the reward, by the present parameters."""
        with torch.no_grad():
            units = self._forward(self._parameters, rows, x_scaling, a_scaling)
        out: F64 = self._mean + self._sd * units.cpu().numpy().astype(np.float64)
        return out

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The present arrays as published."""
        out = {name: value.detach().cpu().numpy().copy() for name, value in self._parameters.items()}
        bias = float(out.pop("deep_b3"))
        return out | {"deep_norm": np.array([self._mean, self._sd, bias])}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of everything."""
        out: dict[str, npt.NDArray[Any]] = {"norm": np.array([self._mean, self._sd]), "step": np.array([self._step])}
        for prefix, tensors in (("p_", self._parameters), ("m_", self._first), ("v_", self._second)):
            out |= {prefix + name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        return out | {"ring_" + name: value for name, value in self.ring.state().items()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same task."""
        self._mean, self._sd = (float(value) for value in state["norm"])
        self._step = int(state["step"][0])
        for prefix, tensors in (("p_", self._parameters), ("m_", self._first), ("v_", self._second)):
            for name in tensors:
                tensors[name] = torch.from_numpy(np.array(state[prefix + name])).to(self._device)
        ring = {name.removeprefix("ring_"): value for name, value in state.items() if name.startswith("ring_")}
        self.ring.load_state(ring)


def _initial(task: Task) -> dict[str, torch.Tensor]:
    """Parameters before the first row, a function of the task's seed; the last layer is 0, so it predicts the mean."""
    dx, da, k = task.context.width, task.action.width, len(task.actions)
    sides = [name for name, spec in (("deep_tx", task.context), ("deep_ta", task.action)) if spec.has_tokens]
    fan_in = max(1, dx + da + k + EMBEDDING * len(sides))
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "deep_x": ((dx, HIDDEN), fan_in**-0.5),
        "deep_a": ((da, HIDDEN), fan_in**-0.5),
        "deep_b1": ((HIDDEN,), fan_in**-0.5),
        "deep_w2": ((HIDDEN, HIDDEN), HIDDEN**-0.5),
        "deep_b2": ((HIDDEN,), HIDDEN**-0.5),
        "deep_w3": ((HIDDEN,), 0.0),
        "deep_b3": ((), 0.0),
    }
    if 0 < k <= IDS_MAX:
        shapes["deep_id"] = ((k, HIDDEN), fan_in**-0.5)
    for name in sides:
        shapes[name] = ((EMBEDDING, HIDDEN), fan_in**-0.5)
    if sides:
        shapes["deep_embedding"] = ((1 << network.EMBEDDING_BITS, EMBEDDING), 0.3 * 3.0**0.5)
    total = sum(int(np.prod(shape)) for shape, _ in shapes.values())
    drawn = 2.0 * uniforms(task.learner.seed, _STREAM_INIT, total) - 1.0
    out, start = {}, 0
    for name, (shape, reach) in shapes.items():
        stop = start + int(np.prod(shape))
        out[name] = torch.from_numpy((drawn[start:stop] * reach).astype(np.float32).reshape(shape))
        start = stop
    return out
