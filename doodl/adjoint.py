"""Gradients through the whole EDICT sampler, in the memory of one network call.

`memory` chooses how much of the way down is kept for the way back: see `doodl.tape`. Un-mixing
swells the rounding of a rebuilt pair by p^-2 a step, hence its float64 under `invert` and the
stored pairs, four steps apart at most, under `checkpoint`.

Cost in forward passes of the predictor, at T steps with two calls each (backward through
activations counts as one): 6T for checkpoint and invert, 4T for full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl.config import MIX_WEIGHT
from doodl.edict import PredictNoise, Steps, check_pair, generate, mix, unmix
from doodl.schedule import Schedule
from doodl.tape import Tape, activation_bytes, parse_memory

__all__ = ["activation_bytes", "generate_with_grad", "parse_memory"]


@dataclass
class _Walk:
    tape: Tape
    steps: Steps
    mix_weight: float


class _Generate(torch.autograd.Function):
    """`edict.generate` whose backward walks the steps with one call's activations at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, walk: _Walk) -> tuple[Tensor, Tensor]:
        steps, tape, dtype = walk.steps, walk.tape, x.dtype
        first = next((i for i in steps.denoising() if steps.calls[i]), None)
        predict = tape.predictor(x, 2 * sum(steps.calls), None if first is None else steps.t[first])
        x, y = tape.state(x), tape.state(y)
        for i in steps.denoising():
            if steps.calls[i]:
                a, b, t = steps.a[i], steps.b[i], steps.t[i]
                u, v = (x, y) if steps.x_first[i] else (y, x)
                u = a * u + b * predict(v, t)
                v = a * v + b * predict(u, t)
                x, y = (u, v) if steps.x_first[i] else (v, u)
            x, y = mix(x, y, walk.mix_weight)
            tape.passed(i, x, y, last=i == len(steps) - 1)
        ctx.walk = walk
        # Copies: the caller may change them in place, and an output that its own walk back keeps
        # would be a cycle that holds the whole walk.
        return x.to(dtype, copy=True), y.to(dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        walk: _Walk = ctx.walk
        steps, tape, p = walk.steps, walk.tape, walk.mix_weight
        x: Any = None
        y: Any = None
        pull_back = tape.walk_back()
        for i in steps.noising():
            x, y = tape.rebuilt_from(i, x, y)
            a, b, t = steps.a[i], steps.b[i], steps.t[i]
            # Transpose of mix: y' = p y + (1-p) x', x' = p x + (1-p) y.
            grad_x = grad_x + (1 - p) * grad_y
            grad_x, grad_y = p * grad_x, p * grad_y + (1 - p) * grad_x
            if tape.rebuild:
                x, y = unmix(x, y, p)
            if not steps.calls[i]:
                continue
            x_first = steps.x_first[i]
            grad_u, grad_v = (grad_x, grad_y) if x_first else (grad_y, grad_x)
            u, v = (x, y) if x_first else (y, x)
            # v' = a v + b eps(u'), then u' = a u + b eps(v), transposed and undone in turn.
            noise_pred, pulled = pull_back(t, b * grad_v, u)
            grad_u, grad_v = grad_u + pulled, a * grad_v
            if tape.rebuild:
                v = (v - b * noise_pred) / a
            noise_pred, pulled = pull_back(t, b * grad_u, v)
            grad_u, grad_v = a * grad_u, grad_v + pulled
            if tape.rebuild:
                u = (u - b * noise_pred) / a
            grad_x, grad_y = (grad_u, grad_v) if x_first else (grad_v, grad_u)
            x, y = (u, v) if x_first else (v, u)
        return grad_x, grad_y, None


def generate_with_grad(
    predict_noise: PredictNoise,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    mix_weight: float = MIX_WEIGHT,
    memory: str = "checkpoint",
) -> tuple[Tensor, Tensor]:
    """Return `edict.generate`'s (x_0, y_0), differentiable in x and y.

    Args:
        memory: checkpoint | invert | full | budget:SIZE, see `doodl.tape`. All give plain
            autograd's gradient: to 1e-10 in float64, 1e-4 in float32.
        others: as `edict.generate`. Freeze the predictor's weights: they get no gradient, save
            under `full`, where autograd computes one for each that asks.
    Raises: ValueError as `edict.generate`, or on an unknown memory mode.
    Source: DOODL (arXiv:2303.13703), section 3.3: gradients through invertible EDICT steps.
    """
    if parse_memory(memory)[0] == "full":
        return generate(predict_noise, x, y, schedule, mix_weight=mix_weight)
    if not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)):
        with torch.no_grad():
            return generate(predict_noise, x, y, schedule, mix_weight=mix_weight)
    check_pair(x, y, mix_weight)
    tape = Tape.of(predict_noise, memory, len(schedule), swelling=mix_weight**-2)
    return _Generate.apply(x, y, _Walk(tape, Steps(schedule, x.device), mix_weight))
