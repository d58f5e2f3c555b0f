"""Damage that the pair judge and the proposal are trained on: curves, casts, saturation, fields.

None of it is a named kind of damage such as `training.degrade` has (they validate on those) or
`doodl.evaluation.unseen_damage` (they are tested on those): curves here are drawn at random from
smooth families, in the photo's own gamma-coded values, and never are powers, stops of light or a
hyperbolic sine; casts are moved ends of the channels' ranges; what differs over the frame does so
by soft steps between the photo and its damaged version. All operations are batched, a photo a row.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.training.corrupt import block_compress, blotch, posterise
from doodl.pocket.training.degrade import luma

__all__ = ["DamageDraw", "apply_curves", "draw_damage", "scale_chroma"]

_LEVELS = 64  # of a curve's table; between them it is a straight line


@dataclass(frozen=True)
class DamageDraw:
    """How often each part of the damage is drawn for a photo.

    Attributes:
        bend, range, cast, saturation: shares of photos whose tone curve is bent, whose range of
            values is moved, that are tinted, whose saturation changes.
        field: share whose damage differs over the frame.
        detail: share that is noisy, compressed, stained or posterised, one of them at a time.
        single: share that has one of the first four parts alone: what ails a photo is mostly one
            thing, and among several the smaller ones are not learnt.
    """

    bend: float = 0.45
    range: float = 0.45
    cast: float = 0.35
    saturation: float = 0.3
    field: float = 0.3
    detail: float = 0.15
    single: float = 0.5

    def parts(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which of the first four parts each of `count` photos has, (4, count) bool."""
        shares = torch.tensor([self.bend, self.range, self.cast, self.saturation]).float()
        several = torch.rand(4, count, generator=generator) < shares[:, None]
        if not shares.any():
            return several
        only = torch.multinomial(shares, count, replacement=True, generator=generator)
        alone = torch.arange(4)[:, None] == only
        return torch.where(torch.rand(count, generator=generator) < self.single, alone, several)


def draw_damage(
    image: Tensor, generator: torch.Generator, draw: DamageDraw | None = None
) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], each damaged in its own way, rounded to 8 bits."""
    draw = draw or DamageDraw()
    count, device = len(image), image.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(device)

    def chosen(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).to(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).to(device)

    bend, moved, tinted, coloured = draw.parts(count, generator).to(device)
    grid = torch.linspace(0, 1, _LEVELS, device=device)
    curves = grid.expand(count, 3, -1)
    curves = torch.where(_rows(bend), _bent(grid, normal(1, 3), normal(3, 3)), curves)
    curves = torch.where(_rows(moved), _ranged(curves, generator), curves)
    curves = torch.where(_rows(tinted), _tinted(curves, generator), curves)
    damaged = apply_curves(image, curves)
    # Duller twice as often as garish.
    duller = chosen(0.67)
    scale = torch.where(duller, uniform(0.0, 0.85), uniform(1.2, 2.3))
    scale = torch.where(coloured, scale, torch.ones_like(scale))
    damaged = scale_chroma(damaged, scale).clamp(0, 1)
    field = _soft_step(image, generator)
    damaged = torch.where(_images(chosen(draw.field)), torch.lerp(image, damaged, field), damaged)
    damaged = _spoilt(damaged, draw.detail, generator)
    return (damaged.clamp(0, 1) * 255).round() / 255


def apply_curves(image: Tensor, curves: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] sent through curves (B, 3, N) sampled over [0, 1]."""
    steps = curves.shape[2] - 1
    places = (image.clamp(0, 1) * steps).flatten(2)
    below = places.floor().clamp_max(steps - 1)
    index = below.long()
    low, high = curves.gather(2, index), curves.gather(2, index + 1)
    return torch.lerp(low, high, places - below).view_as(image)


def scale_chroma(image: Tensor, scale: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with the distance from their luma scaled by (B,); unclamped."""
    grey = luma(image)
    return grey + (image - grey) * _images(scale)


def _rows(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _images(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _bent(grid: Tensor, shared: Tensor, own: Tensor) -> Tensor:
    """Curves (B, 3, N) between fixed ends, monotone: their slope is the exponent of slow waves.

    Args:
        shared, own: (B, 1, 3) and (B, 3, 3) standard normal, for all channels and each channel.
    """
    waves = torch.stack([torch.cos(math.pi * k * grid) for k in (1, 2, 3)])
    size = torch.tensor([1.0, 0.7, 0.3], device=grid.device)
    slope = ((shared + 0.12 * own) * size @ waves).exp()
    area = F.pad((slope[..., 1:] + slope[..., :-1]).cumsum(-1), (1, 0))
    return area / area[..., -1:]


def _ranged(curves: Tensor, generator: torch.Generator) -> Tensor:
    """Curves whose values are squeezed into a part of the range, or stretched beyond it."""
    u = torch.rand(5, len(curves), 1, 1, generator=generator).to(curves)
    kind = u[4] * 5
    none, full = torch.zeros_like(kind), torch.ones_like(kind)
    # Where 0 and 1 of the photo come to lie: dark, hazy, flat, too bright, harsh.
    low = torch.where(kind < 1, none, torch.where(kind < 3, 0.05 + 0.4 * u[0], none))
    high = torch.where(kind < 1, 0.25 + 0.65 * u[1], full)
    high = torch.where((kind >= 2) & (kind < 3), 0.6 + 0.35 * u[1], high)
    high = torch.where((kind >= 3) & (kind < 4), 1.1 + 0.9 * u[1], high)
    harsh = kind >= 4
    low = torch.where(harsh, -0.05 - 0.35 * u[2], low)
    high = torch.where(harsh, 1.0 + 0.5 * u[3], high)
    return (low + curves * (high - low)).clamp(0, 1)


def _tinted(curves: Tensor, generator: torch.Generator) -> Tensor:
    """Curves whose channels' white, black or both ends are moved apart."""
    count = len(curves)
    u = torch.rand(4, count, 1, 1, generator=generator).to(curves)
    free = torch.randn(count, 3, 1, generator=generator).to(curves)
    # Light is mostly too warm or too cool; green and magenta are rarer.
    warm = torch.tensor([1.0, 0.1, -1.0], device=curves.device).view(1, 3, 1)
    sign = (u[0] > 0.5).to(curves) * 2 - 1
    tint = torch.where(u[1] < 0.6, sign * warm + 0.15 * free, free)
    tint = tint - tint.mean(1, keepdim=True)
    tint = tint / tint.abs().amax(1, keepdim=True).clamp_min(1e-3)
    size = 0.06 + 0.3 * u[2]
    white = curves * (1 + size * tint - 0.5 * size)
    # Black becomes a colour: the brightest channel is lifted most.
    lifted = (0.6 * size * (tint + 1) / 2).expand_as(curves)
    black = curves * (1 - lifted) + lifted
    return torch.where(u[3] < 0.7, white, torch.where(u[3] < 0.85, black, (white + black) / 2))


def _soft_step(image: Tensor, generator: torch.Generator) -> Tensor:
    """Fields (B, 1, H, W) in [0, 1] that rise across the frame, or from its middle outward."""
    count, (height, width) = len(image), image.shape[2:]
    u = torch.rand(6, count, 1, 1, 1, generator=generator).to(image)
    rows = torch.linspace(-1, 1, height, device=image.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, device=image.device).view(1, 1, 1, -1)
    angle = 2 * math.pi * u[0]
    across = torch.sin(angle) * rows + torch.cos(angle) * columns
    around = ((rows - u[1] + 0.5) ** 2 + (columns - u[2] + 0.5) ** 2).sqrt() * 1.4 - 1
    place = torch.where(u[3] < 0.7, across, around)
    return torch.sigmoid((place - (u[4] - 0.5)) * (1.5 + 6 * u[5]))


def _spoilt(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images of which a share is noisy, compressed, stained or posterised."""
    count = len(image)
    kinds = torch.randint(4, (count,), generator=generator)
    kinds[torch.rand(count, generator=generator) >= share] = -1
    spoilt = image.clone()
    for kind in kinds.unique().tolist():
        if kind < 0:
            continue
        rows = (kinds == kind).nonzero()[:, 0].to(image.device)
        severity = (0.1 + 0.6 * torch.rand(len(rows), generator=generator)).to(image.device)
        part = image[rows]
        if kind == 0:
            noise = torch.randn(part.shape, generator=generator).to(image.device)
            spoilt[rows] = part + 0.12 * _images(severity) * noise
        else:
            spoilt[rows] = (block_compress, blotch, posterise)[kind - 1](part, severity, generator)
    return spoilt
