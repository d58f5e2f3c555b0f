"""DDIM: one latent, one network call a step; its inversion is approximate.

Kept for the rivals that work on a single chain. Edits by the whole chain use the exact samplers
(`doodl.sampling`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl.edict import PredictNoise, as_state
from doodl.schedule import Schedule
from doodl.tape import Tape, parse_memory


@dataclass(frozen=True, eq=False)
class Step:
    """One step that acts, z_s = a z_t + b epsilon: t on the device, the rest plain numbers.

    Attributes:
        alpha: cumulative alpha at t.
    """

    t: Tensor
    a: float
    b: float
    alpha: float


def acting_steps(schedule: Schedule, device: torch.device) -> list[Step]:
    """Return the schedule's steps that change alpha, from noise to image."""
    columns = zip(
        # Moved once: a copy per step would synchronise the host with the accelerator.
        schedule.timesteps.to(device).unbind(0),
        schedule.a.tolist(),
        schedule.b.tolist(),
        schedule.alphas.tolist(),
        schedule.noise_calls.tolist(),
        strict=True,
    )
    return [Step(t, a, b, alpha) for t, a, b, alpha, acts in columns if acts]


def denoise_step(z: Tensor, noise_pred: Tensor, step: Step) -> Tensor:
    """Return z_s = a z + b epsilon."""
    return step.a * z + step.b * noise_pred


def denoised(z: Tensor, noise_pred: Tensor, alpha: float) -> Tensor:
    """Return the estimate x̂_0 = (z - sqrt(1 - alpha) epsilon) / sqrt(alpha)."""
    return (z - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)


def invert(predict_noise: PredictNoise, latents: Tensor, schedule: Schedule) -> Tensor:
    """Return the noise that DDIM walks back to about these latents, (B, C, h, w).

    Each step's noise is predicted at the latents it starts from, not at those it leads to: the
    round trip is not exact. Source: DDIM (arXiv:2010.02502), section 4.3.
    """
    z = latents
    for step in reversed(acting_steps(schedule, latents.device)):
        z = (z - step.b * as_state(predict_noise(z, step.t), z)) / step.a
    return z


def generate(predict_noise: PredictNoise, z: Tensor, steps: list[Step]) -> Tensor:
    """Return the latents (B, C, h, w) that the steps lead to from z."""
    for step in steps:
        z = denoise_step(z, as_state(predict_noise(z, step.t), z), step)
    return z


@dataclass
class _Walk:
    tape: Tape
    steps: list[Step]


class _Generate(torch.autograd.Function):
    """`generate` whose backward walks the steps with one call's activations at a time."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, walk: _Walk) -> Tensor:
        predict = walk.tape.predictor(z, len(walk.steps), walk.steps[0].t)
        z = walk.tape.state(z)
        for step in walk.steps:
            z = denoise_step(z, predict(z, step.t), step)
        ctx.walk = walk
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        walk: _Walk = ctx.walk
        pull_back = walk.tape.walk_back()
        for step in reversed(walk.steps):
            _, pulled = pull_back(step.t, step.b * grad, None)
            grad = step.a * grad + pulled
        return grad, None


def generate_with_grad(
    predict_noise: PredictNoise, z: Tensor, steps: list[Step], *, memory: str = "checkpoint"
) -> Tensor:
    """Return `generate`'s latents, differentiable in z.

    Args:
        steps: at least one.
        memory: as `adjoint.generate_with_grad`; there is no inverse to rebuild from, so `invert`
            stores what `checkpoint` does.
    """
    mode, budget_bytes = parse_memory(memory)
    if mode == "full":
        return generate(predict_noise, z, steps)
    return _Generate.apply(z, _Walk(Tape(predict_noise, budget_bytes=budget_bytes), steps))
