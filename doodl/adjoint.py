"""Gradients through the whole EDICT sampler, in the memory of one network call."""

from __future__ import annotations

from torch import Tensor

from doodl import moves
from doodl.engine.network_call import PredictNoise
from doodl.recipes.config import MIX_WEIGHT
from doodl.schedule import Schedule


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

    Arguments and errors are its; `memory`, what it costs and how exact the gradient is:
    `moves.generate_with_grad`, of which this is EDICT's.
    """
    sampler = moves.edict(schedule.on(x.device), mix_weight)
    x, y = moves.generate_with_grad(predict_noise, sampler, (x, y), memory=memory)
    return x, y
