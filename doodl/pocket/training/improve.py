"""A cautious automatic improvement of photos: what the scorers learn to rank highest.

A natural photo is rarely the best version of itself. Scoring each photo by its distance to its
own improved version leaves headroom above the untouched one.
"""

import torch
from torch import Tensor

from doodl.pocket.training.degrade import luma

__all__ = ["improve", "natural_score"]

_BEST_SCORE = 9.4


def improve(image: Tensor, amount: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with better levels, balance, exposure and colour.

    Args:
        amount: (B,) in [0, 1]; 0 leaves a photo as it is.
    """
    b = amount.view(-1, 1, 1, 1)
    best = _balanced(_stretched(image))
    grey = luma(best)
    mean = grey.mean((2, 3), keepdim=True).clamp(0.05, 0.95)
    # The exponent that would bring mean brightness to 0.46, taken half-way and bounded.
    gamma = (0.5 * (torch.log(torch.tensor(0.46)) / mean.log() - 1) + 1).clamp(0.8, 1.2)
    best = best.clamp_min(1e-4) ** gamma
    best = best.lerp(best * best * (3 - 2 * best), 0.15)
    grey = luma(best)
    chroma = (best.amax(1, keepdim=True) - best.amin(1, keepdim=True)).mean((2, 3), keepdim=True)
    # A photo without colour stays so: the gain multiplies what is there.
    gain = 1 + 0.25 * ((0.42 - chroma) / 0.42).clamp(0, 1)
    best = (grey + (best - grey) * gain).clamp(0, 1)
    return image.lerp(best, b)


def natural_score(image: Tensor, best: Tensor | None = None) -> Tensor:
    """(B,) scores of undamaged photos, from their distance to their improved versions.

    An already excellent photo gets 9.4; typical ones lie between 7.5 and 9.

    Args:
        best: the fully improved images, if they are at hand.
    """
    if best is None:
        best = improve(image, torch.ones(len(image), device=image.device))
    distance = (best - image).square().mean((1, 2, 3)).sqrt()
    return _BEST_SCORE - (14 * distance).clamp(0, 2.2)


def _stretched(image: Tensor) -> Tensor:
    """Levels moved toward the full range, by at most a gentle gain."""
    grey = luma(image).flatten(1)
    ordered = grey[:, ::7].sort(dim=1).values
    low = ordered[:, int(0.01 * ordered.shape[1])].clamp(max=0.2).view(-1, 1, 1, 1)
    high = ordered[:, int(0.99 * ordered.shape[1])].clamp(min=0.7).view(-1, 1, 1, 1)
    stretched = (image - low) / (high - low)
    return image.lerp(stretched, 0.7).clamp(0, 1)


def _balanced(image: Tensor) -> Tensor:
    """White balance by the bright, nearly neutral pixels, gains within 6 %."""
    spread = image.amax(1, keepdim=True) - image.amin(1, keepdim=True)
    weight = torch.exp(-12 * spread) * luma(image) ** 2
    total = weight.sum((2, 3), keepdim=True)
    tone = (image * weight).sum((2, 3), keepdim=True) / total.clamp_min(1e-3)
    gain = (luma(tone) / tone.clamp_min(1e-3)).clamp(0.94, 1.06)
    # Without neutral pixels there is nothing to balance by.
    trust = (total / (0.01 * image.shape[2] * image.shape[3])).clamp(0, 1) * 0.8
    return (image * (1 + trust * (gain - 1))).clamp(0, 1)
