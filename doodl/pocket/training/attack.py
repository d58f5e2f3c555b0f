"""Attacked photos: what an unrestrained optimiser would make of a scorer, as negatives."""

from collections.abc import Callable

import torch
from torch import Tensor

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import Scorer
from doodl.pocket.training.corrupt import gaussian_blur
from doodl.pocket.training.improve import improve, natural_score
from doodl.pocket.training.loop import autocast

__all__ = ["attack", "deserved_score"]

# Score points lost per unit of RMS change, in pixels ([0, 1]) and in whitened latents.
_PIXEL_COST = 40.0
_LATENT_COST = 2.5
_STAIN_COST = 25.0
# And per unit of RMS that a change of tone leads away from, or toward, the photo's best version.
# Away it costs what the graded damage of the same size does, or dullness would be forgiven.
_AWAY_COST = 45.0
_TOWARD_GAIN = 14.0


def attack(
    scorer: Scorer,
    photo: Tensor,
    autoencoder: PatchAutoencoder | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Photos (B, 3, H, W) moved along the score's gradient, and the scores (B,) they deserve.

    Without an autoencoder, pixels are moved; with one, mostly latents. A rough step keeps only
    what a blur of the gradient removes: texture that no photographer would add, paid for by its
    size. A smooth step keeps the blur; as far as it is one change of tone over the whole frame it
    counts as such, and what remains are stains of light and colour, which are paid for.
    """
    draws = torch.rand(2, len(photo), generator=generator).to(photo.device)
    kind = float(torch.rand((), generator=generator))
    if autoencoder is None or kind < 0.25:
        sign = torch.where(draws[0] < 0.5, 1.0, -1.0).view(-1, 1, 1, 1)
        size = 0.004 + 0.045 * draws[1]
        step = _gradient(scorer.score, photo, 3.0, rough=True)
        moved = (photo + sign * size.view(-1, 1, 1, 1) * step).clamp(0, 1)
        return moved, natural_score(photo) - _PIXEL_COST * size

    with torch.no_grad():
        code = autoencoder.encode(photo * 2 - 1).latents

    def score_of(latents: Tensor) -> Tensor:
        return scorer.score((autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1))

    rough = kind < 0.5
    sigma = 1.5 if rough else 1.0 + 1.5 * float(torch.rand((), generator=generator))
    step = _gradient(score_of, code, sigma, rough=rough)
    # A smooth attack goes upward more often: that is what an edit will try.
    sign = torch.where(draws[0] < (0.5 if rough else 0.75), 1.0, -1.0).view(-1, 1, 1, 1)
    size = 0.05 + (0.5 if rough else 0.9) * draws[1]
    with torch.no_grad():
        moved = autoencoder.decode(code + sign * size.view(-1, 1, 1, 1) * step).sample
        moved = (moved / 2 + 0.5).clamp(0, 1)
        if rough:
            return moved, natural_score(photo) - _LATENT_COST * size
        source = (autoencoder.decode(code).sample / 2 + 0.5).clamp(0, 1)
    return moved, deserved_score(source, moved)


def deserved_score(source: Tensor, moved: Tensor) -> Tensor:
    """Scores (B,) of photos whose tones and colours were moved smoothly away from `source`.

    What one change of tone over the whole frame explains counts by where it leads, away from the
    photo's best version or toward it; the rest are stains. Images (B, 3, H, W) in [0, 1].
    """
    toned = _global_tone(source, moved)
    stains = _rms(moved - toned)
    best = improve(source, torch.ones(len(source), device=source.device))
    change = _rms(toned - best) - _rms(source - best)
    tone = torch.where(change > 0, _AWAY_COST, _TOWARD_GAIN) * change
    return (natural_score(source, best) - tone - _STAIN_COST * stains).clamp(1.0, 9.4)


def _rms(difference: Tensor) -> Tensor:
    return difference.square().mean((1, 2, 3)).sqrt()


def _global_tone(source: Tensor, moved: Tensor) -> Tensor:
    """`source` under the gain and offset per channel that bring it nearest to `moved`."""
    x, y = source.flatten(2), moved.flatten(2)
    mean_x, mean_y = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
    gain = ((x - mean_x) * (y - mean_y)).mean(2, keepdim=True)
    gain = gain / (x - mean_x).square().mean(2, keepdim=True).clamp_min(1e-6)
    return (mean_y + gain * (x - mean_x)).view_as(source)


def _gradient(
    score: Callable[[Tensor], Tensor], start: Tensor, sigma: float, *, rough: bool
) -> Tensor:
    """The rough or the smooth part of the gradient of `score`, scaled to an RMS of 1 per photo."""
    point = start.detach().requires_grad_(True)
    with torch.enable_grad(), autocast(start.device):
        total = score(point).sum()
    (gradient,) = torch.autograd.grad(total, point)
    gradient = gradient.float()
    smooth = gaussian_blur(gradient, torch.full((len(start),), sigma, device=start.device))
    part = gradient - smooth if rough else smooth
    return part / part.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
