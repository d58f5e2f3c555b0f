"""Attacked photos: what an unrestrained optimiser would make of a scorer, as negatives."""

from collections.abc import Callable

import torch
from torch import Tensor

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.corrupt import gaussian_blur
from doodl.pocket.loop import autocast
from doodl.pocket.scorer import Scorer

__all__ = ["attack"]

# Score points lost per unit of RMS change, in pixels ([0, 1]) and in whitened latents.
_PIXEL_COST = 40.0
_LATENT_COST = 2.5


def attack(
    scorer: Scorer,
    photo: Tensor,
    autoencoder: PatchAutoencoder | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Photos (B, 3, H, W) moved along the score's gradient without its smooth part, and the cost.

    Half of the photos are moved up, half down; both lose (B,) points. What remains of a gradient
    when its smooth part is taken out is texture that no photographer would add; a change of tone
    is left alone, since that is what an edit should do. With an autoencoder, every other batch is
    attacked in its latents.
    """
    draws = torch.rand(2, len(photo), generator=generator).to(photo.device)
    sign = torch.where(draws[0] < 0.5, 1.0, -1.0).view(-1, 1, 1, 1)
    latent = autoencoder is not None and bool(torch.rand((), generator=generator) < 0.6)
    if latent and autoencoder is not None:
        with torch.no_grad():
            code = autoencoder.encode(photo * 2 - 1).latents
        size = 0.05 + 0.5 * draws[1]
        step = _rough_gradient(
            lambda z: scorer.score((autoencoder.decode(z).sample / 2 + 0.5).clamp(0, 1)), code, 1.5
        )
        with torch.no_grad():
            moved = autoencoder.decode(code + sign * size.view(-1, 1, 1, 1) * step).sample
        return (moved / 2 + 0.5).clamp(0, 1), _LATENT_COST * size
    size = 0.004 + 0.045 * draws[1]
    step = _rough_gradient(scorer.score, photo, 3.0)
    return (photo + sign * size.view(-1, 1, 1, 1) * step).clamp(0, 1), _PIXEL_COST * size


def _rough_gradient(score: Callable[[Tensor], Tensor], start: Tensor, sigma: float) -> Tensor:
    """The gradient of `score` at `start` minus its blur, scaled to an RMS of 1 per photo."""
    point = start.detach().requires_grad_(True)
    with torch.enable_grad(), autocast(start.device):
        total = score(point).sum()
    (gradient,) = torch.autograd.grad(total, point)
    gradient = gradient.float()
    sigmas = torch.full((len(start),), sigma, device=start.device)
    rough = gradient - gaussian_blur(gradient, sigmas)
    return rough / rough.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
