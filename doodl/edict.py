"""EDICT: exact inversion of diffusion by two coupled latents (arXiv:2211.12446).

The pair (x, y) is advanced leapfrog: each half is denoised with the noise predicted at the other,
in an order that alternates with the step's index, then the two are mixed. Every operation is
invertible in closed form, so `generate(*invert(x, y))` returns (x, y) up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from doodl.config import MIX_WEIGHT
from doodl.schedule import Schedule

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""`predict_noise(latents (B, C, h, w), t) -> epsilon (B, C, h, w)`, t a 0-d int64 tensor."""


def check_pair(x: Tensor, y: Tensor, mix_weight: float) -> None:
    """Raise ValueError unless (x, y) is a pair of latents EDICT can carry without loss."""
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            "latents must be two (B, C, h, w) of one shape; "
            f"got {tuple(x.shape)}, {tuple(y.shape)}."
        )
    for name, z in (("x", x), ("y", y)):
        # Half precision leaves a round trip of 8e-3 at T = 50: for the networks, not the state.
        if z.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name}.dtype (={z.dtype}) must be float32 or float64; cast with .float()."
            )
    if x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"x and y must share dtype and device; got {x.dtype}/{y.dtype}, {x.device}/{y.device}."
        )
    if not 0 < mix_weight <= 1:
        raise ValueError(
            f"mix_weight (={mix_weight}) must be in (0, 1]; EDICT uses 0.93 at T = 50."
        )


def mix(x: Tensor, y: Tensor, mix_weight: float) -> tuple[Tensor, Tensor]:
    """Average the pair toward each other: x <- p x + (1-p) y, then y <- p y + (1-p) x (new x).

    Source: EDICT (arXiv:2211.12446), eq. 12-13.
    """
    x = mix_weight * x + (1 - mix_weight) * y
    y = mix_weight * y + (1 - mix_weight) * x
    return x, y


def unmix(x: Tensor, y: Tensor, mix_weight: float) -> tuple[Tensor, Tensor]:
    """Undo one mixing layer: the exact inverse of `mix`."""
    y = (y - (1 - mix_weight) * x) / mix_weight
    x = (x - (1 - mix_weight) * y) / mix_weight
    return x, y


class Steps:
    """A schedule made ready for one device and dtype: plain floats for a and b, t as tensors."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self.a = schedule.a.tolist()
        self.b = schedule.b.tolist()
        self.calls = schedule.noise_calls.tolist()
        # Moved once: a copy per step would synchronise the host with the accelerator.
        self.t = list(schedule.timesteps.to(device).unbind(0))
        self.x_first = [(schedule.first_index + i) % 2 == 0 for i in range(len(schedule))]

    def __len__(self) -> int:
        return len(self.t)

    def denoising(self) -> Iterator[int]:
        return iter(range(len(self)))

    def noising(self) -> Iterator[int]:
        return iter(range(len(self) - 1, -1, -1))


def as_state(noise_pred: Tensor, like: Tensor) -> Tensor:
    """Return the prediction in the state's dtype: networks may run in bf16, the pair may not."""
    return noise_pred.to(like.dtype)


def generate(
    predict_noise: PredictNoise,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    mix_weight: float = MIX_WEIGHT,
) -> tuple[Tensor, Tensor]:
    """Denoise the pair along the whole schedule and return (x_0, y_0).

    Args:
        predict_noise: epsilon(latents (B, C, h, w), t), t 0-d int64 on the latents' device.
        x, y: noisy latents (B, C, h, w), float32 or float64; equal (x_T = y_T) for a fresh sample.
        schedule: T steps; a part-way schedule starts in the middle, in its own leapfrog phase.
        mix_weight: p in (0, 1]; 1 leaves the halves unmixed.
    Returns: two (B, C, h, w) tensors of the input's dtype.
    Raises: ValueError on half-precision state, unequal shapes or p outside (0, 1].
    Source: EDICT (arXiv:2211.12446), eq. 14, with the alternating order of its section 4.3.
    """
    check_pair(x, y, mix_weight)
    steps = Steps(schedule, x.device)
    for i in steps.denoising():
        a, b, t = steps.a[i], steps.b[i], steps.t[i]
        # Where alpha does not change the step is the identity: no calls, the mixing stays.
        if steps.calls[i]:
            if steps.x_first[i]:
                x = a * x + b * as_state(predict_noise(y, t), x)
                y = a * y + b * as_state(predict_noise(x, t), y)
            else:
                y = a * y + b * as_state(predict_noise(x, t), y)
                x = a * x + b * as_state(predict_noise(y, t), x)
        x, y = mix(x, y, mix_weight)
    return x, y


def invert(
    predict_noise: PredictNoise,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    mix_weight: float = MIX_WEIGHT,
) -> tuple[Tensor, Tensor]:
    """Return the noise pair (x_T, y_T) that `generate` brings back to (x, y).

    Arguments, errors and dtype are `generate`'s; a photo starts from x = y = its VAE code.
    Round trip of a photo's x = y, RMS over that of the latents, at T = 50 and p = 0.93: about
    1e-15 in float64, 6e-7 in float32. Un-mixing multiplies rounding by p^-2 a step, so fewer
    steps at the default p = 0.93^(50/T) lose as much, and p = 0.93 at T > 50 loses more; so does
    a network that is steep in its latents (5e-5 in float32 for the tests' random one).
    Source: EDICT (arXiv:2211.12446), eq. 15.
    """
    check_pair(x, y, mix_weight)
    steps = Steps(schedule, x.device)
    for i in steps.noising():
        a, b, t = steps.a[i], steps.b[i], steps.t[i]
        x, y = unmix(x, y, mix_weight)
        if steps.calls[i]:
            if steps.x_first[i]:
                y = (y - b * as_state(predict_noise(x, t), y)) / a
                x = (x - b * as_state(predict_noise(y, t), x)) / a
            else:
                x = (x - b * as_state(predict_noise(y, t), x)) / a
                y = (y - b * as_state(predict_noise(x, t), y)) / a
    return x, y
