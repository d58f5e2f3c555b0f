"""The exact samplers behind one set of functions: which of them runs is the recipe's say.

edict   two coupled latents of one time, two network calls a step (`doodl.edict`)
belm    O-BELM: two latents of neighbouring times, one network call a step (`doodl.belm`)

Both carry a pair (x, y), outer latent first, of which the first alone is the image's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from doodl import adjoint, belm, edict
from doodl.config import SamplerConfig
from doodl.edict import PredictNoise
from doodl.schedule import Schedule


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Photos at the noise, and back from there.

    Attributes:
        x, y: the pair at the noise, (B, C, h, w). x_0: the latents that come back of it.
        errors: per photo, RMS of the pair's round trip over that of the latents; not finite where
            the way there or back is not.
    """

    x: Tensor
    y: Tensor
    x_0: Tensor
    errors: list[float]

    @classmethod
    def of(
        cls, noise: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor],
        want: tuple[Tensor, Tensor],
    ) -> RoundTrip:  # fmt: skip
        """Return the round trip of the pair `want` to `noise` and `back`; want[0]: the latents."""
        squared = (back[0] - want[0]).square() + (back[1] - want[1]).square()
        # A photo whose latents are all zero has no scale to compare with, and no NaN either.
        tiny = torch.finfo(want[0].dtype).tiny
        rms = want[0].square().mean((1, 2, 3)).sqrt().clamp_min(tiny)
        errors = (squared.mean((1, 2, 3)) / 2).sqrt() / rms
        return cls(*noise, back[0], errors.tolist())


def check_sampler(schedule: Schedule, config: SamplerConfig) -> None:
    """Raise ValueError unless the sampler can optimise through this schedule."""
    acting = int(schedule.noise_calls.sum())
    if config.kind == "belm" and acting < 2:
        # One step has its two ends for a pair: the image itself is one of them.
        raise ValueError(
            f"sampler.kind belm needs two steps that change the noise; got {acting}. Raise "
            "num_inference_steps, depth or optimise_at, or use edict."
        )


@torch.no_grad()
def round_trip(
    predict_noise: PredictNoise, latents: Tensor, schedule: Schedule, config: SamplerConfig
) -> RoundTrip:
    """Return photos' codes (B, C, h, w) inverted to the noise, and generated again from there."""
    if config.kind == "belm":
        # Heun's start: one call more, and a pair that is nearer a trajectory (`noise_first`).
        start = belm.noise_first(predict_noise, latents, schedule, corrected=True)
        noise = belm.invert(predict_noise, *start, schedule)
    else:
        start = latents, latents
        noise = edict.invert(predict_noise, *start, schedule, mix_weight=config.p)
    return RoundTrip.of(noise, generate(predict_noise, *noise, schedule, config), start)


@torch.no_grad()
def denoise_to(
    predict_noise: PredictNoise,
    noise: Tensor,
    schedule: Schedule,
    plain: int,
    config: SamplerConfig,
) -> tuple[Tensor, Tensor]:
    """Return the pair of fresh noise (B, C, h, w) after the schedule's first `plain` steps.

    It is what `generate` takes with `schedule.from_step(plain)`.
    """
    if config.kind == "belm":
        # Its second latent is one step further on, over the next step that acts.
        calls = schedule.noise_calls.tolist()
        upto = next((i + 1 for i in range(plain, len(calls)) if calls[i]), len(calls))
        first = first_steps(schedule, upto)
        further, here = belm.generate(
            predict_noise, *belm.denoise_first(predict_noise, noise, first), first
        )
        return here, further
    if not plain:
        return noise, noise
    return edict.generate(
        predict_noise, noise, noise, first_steps(schedule, plain), mix_weight=config.p
    )


def generate(
    predict_noise: PredictNoise, x: Tensor, y: Tensor, schedule: Schedule, config: SamplerConfig
) -> tuple[Tensor, Tensor]:
    """Denoise a pair (B, C, h, w) along the whole schedule; the image's latents come first."""
    if config.kind == "belm":
        return belm.generate(predict_noise, x, y, schedule)
    return edict.generate(predict_noise, x, y, schedule, mix_weight=config.p)


def generate_with_grad(
    predict_noise: PredictNoise, x: Tensor, y: Tensor, schedule: Schedule, config: SamplerConfig
) -> tuple[Tensor, Tensor]:
    """Return `generate`'s pair, differentiable in x and y, in the config's `memory`."""
    if config.kind == "belm":
        return belm.generate_with_grad(predict_noise, x, y, schedule, memory=config.memory)
    return adjoint.generate_with_grad(
        predict_noise, x, y, schedule, mix_weight=config.p, memory=config.memory
    )


def first_steps(schedule: Schedule, count: int) -> Schedule:
    """Return the schedule's first `count` steps."""
    values = {field.name: getattr(schedule, field.name) for field in fields(schedule)}
    steps: dict[str, Any] = {k: v[:count] for k, v in values.items() if isinstance(v, Tensor)}
    return replace(schedule, **steps)
