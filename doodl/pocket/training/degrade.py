"""Graded degradations of photos: batched torch operations, severity in [0, 1] per photo.

Every function takes images (B, 3, H, W) in [0, 1], severities (B,) and a generator, and returns
images in [0, 1]. Severity 0 changes nothing; 1 is as bad as a photo plausibly gets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.training.corrupt import block_compress, blotch, gaussian_blur, mosaic, posterise

__all__ = ["DEGRADATIONS", "TONE", "Degradation", "degrade", "luma"]

Severity = Tensor
_LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of images in [0, 1] (Rec. 601 weights)."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def _b(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _rand(image: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    draws = torch.rand(len(image), 1, 1, 1, generator=generator)
    return (low + (high - low) * draws).to(image.device)


def smooth_field(image: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth random field (B, 1, H, W) in [0, 1] with a few bumps over the frame."""
    knots = torch.rand(len(image), 1, 3, 3, generator=generator).to(image.device)
    field = F.interpolate(knots, size=image.shape[2:], mode="bicubic", align_corners=True)
    low, high = field.amin((2, 3), keepdim=True), field.amax((2, 3), keepdim=True)
    return (field - low) / (high - low).clamp_min(1e-3)


def colour_direction(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random tint (B, 3, 1, 1): unit length, no change of luma."""
    tint = torch.randn(len(image), 3, 1, 1, generator=generator).to(image.device)
    tint = tint - luma(tint)
    return tint / tint.square().sum(1, keepdim=True).sqrt().clamp_min(1e-3)


def under_expose(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image * torch.exp2(-1.7 * _b(severity))


def over_expose(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image * (1 + 1.3 * _b(severity))


def lower_contrast(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    mean = luma(image).mean((2, 3), keepdim=True)
    pivot = mean.lerp(torch.full_like(mean, 0.5), _rand(image, generator))
    return pivot + (image - pivot) * (1 - 0.8 * _b(severity))


def haze(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    airlight = _rand(image, generator, 0.72, 0.95) + 0.04 * colour_direction(image, generator)
    return image.lerp(airlight.expand_as(image), 0.75 * _b(severity))


def patchy_haze(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    airlight = _rand(image, generator, 0.72, 0.95).expand_as(image)
    return image.lerp(airlight, 0.85 * _b(severity) * smooth_field(image, generator))


def uneven_light(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    stops = (smooth_field(image, generator) - _rand(image, generator, 0.4, 1.0)) * 2.4
    return image * torch.exp2(stops * _b(severity))


def vignette(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    rows = torch.linspace(-1, 1, image.shape[2], device=image.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, image.shape[3], device=image.device).view(1, 1, 1, -1)
    return image * (1 - 0.85 * _b(severity) * (rows**2 + columns**2) / 2)


def darken_midtones(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image.clamp_min(1e-4) ** (1 + 1.6 * _b(severity))


def wash_midtones(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image.clamp_min(1e-4) ** (1 / (1 + 1.6 * _b(severity)))


def flatten_midtones(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    signed = 2 * image - 1
    return 0.5 + 0.5 * signed.sign() * signed.abs().clamp_min(1e-4) ** (1 + 2.5 * _b(severity))


def harden(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    mean = luma(image).mean((2, 3), keepdim=True) + _rand(image, generator, -0.05, 0.05)
    return mean + (image - mean) * (1 + 2.2 * _b(severity))


def desaturate(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image.lerp(luma(image).expand_as(image), 0.95 * _b(severity))


def oversaturate(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    grey = luma(image)
    return grey + (image - grey) * (1 + 2.5 * _b(severity))


def cast(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return image * (1 + 0.55 * _b(severity) * colour_direction(image, generator))


def tint_whites(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    spread = image.amax(1, keepdim=True) - image.amin(1, keepdim=True)
    weight = luma(image) ** 2 * (1 - spread)
    return image + 0.3 * _b(severity) * weight * colour_direction(image, generator)


def tint_midtones(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    weight = 4 * image * (1 - image)
    return image + 0.35 * _b(severity) * weight * colour_direction(image, generator)


def dull(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    grey = image.lerp(luma(image).expand_as(image), 0.7 * _b(severity))
    return lower_contrast(grey, 0.75 * severity, generator) * (1 - 0.25 * _b(severity))


def fade(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    black = 0.22 + 0.06 * colour_direction(image, generator)
    faded = black + image.lerp(luma(image).expand_as(image), 0.5) * 0.6
    return image.lerp(faded, _b(severity))


def blur(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return gaussian_blur(image, severity * 0.028 * image.shape[2])


def add_noise(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    colour = _rand(image, generator)
    return image + 0.22 * _b(severity) * noise.lerp(noise.mean(1, keepdim=True) * 1.5, colour)


@dataclass(frozen=True)
class Degradation:
    """One kind of damage: the operation, how a caption names it, and the score it costs.

    penalty: score points lost at severity 1. Corruptions that only an optimiser makes cost less
    than dullness, so that an edit asked to lower a score makes a photo dull, not corrupt.
    """

    apply: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    words: tuple[str, ...]
    penalty: float = 8.0


DEGRADATIONS: dict[str, Degradation] = {
    "under_exposed": Degradation(under_expose, ("dark", "underexposed")),
    "over_exposed": Degradation(over_expose, ("overexposed", "blown out")),
    "low_contrast": Degradation(lower_contrast, ("flat", "low contrast")),
    "hazy": Degradation(haze, ("hazy", "foggy")),
    "patchy_haze": Degradation(patchy_haze, ("unevenly hazy",)),
    "uneven_light": Degradation(uneven_light, ("unevenly lit",)),
    "vignetted": Degradation(vignette, ("vignetted",), 6.0),
    "murky": Degradation(darken_midtones, ("murky", "dark")),
    "washed_out": Degradation(wash_midtones, ("washed out", "pale")),
    "flat_midtones": Degradation(flatten_midtones, ("flat",), 7.0),
    "harsh": Degradation(harden, ("harsh", "high contrast"), 7.0),
    "grey": Degradation(desaturate, ("grey", "desaturated")),
    "garish": Degradation(oversaturate, ("garish", "oversaturated"), 7.0),
    "cast": Degradation(cast, ("tinted", "colour cast")),
    "tinted_whites": Degradation(tint_whites, ("tinted",)),
    "tinted_midtones": Degradation(tint_midtones, ("tinted",)),
    "dull": Degradation(dull, ("dull", "grey and flat")),
    "faded": Degradation(fade, ("faded",)),
    "blurry": Degradation(blur, ("blurry", "out of focus")),
    "noisy": Degradation(add_noise, ("noisy", "grainy"), 6.0),
    "compressed": Degradation(block_compress, ("compressed", "blocky"), 6.0),
    "mosaic": Degradation(mosaic, ("pixelated",), 5.0),
    "blotchy": Degradation(blotch, ("blotchy",), 6.0),
    "posterised": Degradation(posterise, ("posterised",), 5.0),
}

# Damage of tone and colour, which leaves the drawing as it was.
TONE = tuple(
    name
    for name in DEGRADATIONS
    if name not in ("blurry", "noisy", "compressed", "mosaic", "blotchy", "posterised")
)


def degrade(name: str, image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """`image` damaged by the degradation `name`, clamped to [0, 1] and rounded to 8 bits.

    Raises: ValueError for a name that is not in DEGRADATIONS.
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"degradation {name!r} is unknown; known: {', '.join(DEGRADATIONS)}")
    damaged = DEGRADATIONS[name].apply(image, severity, generator).clamp(0, 1)
    return (damaged * 255).round() / 255
