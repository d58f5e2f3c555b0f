"""Damage that no training and no choice of settings ever sees: what an evaluation proves itself on.

How it differs from what there is elsewhere. `training.damage` draws random slow
curves and moved ends in gamma-coded values, and differs over the frame by soft steps between two
versions; `training.degrade` (validation, and the scorers' training) multiplies and mixes
gamma-coded values, its fields have bumps. Here exposure, haze, shade and casts act on light, as in
a camera; the flat middle is a hyperbolic sine, which neither has; the dark curve is a true power,
which `degrade` has only with other strengths; what lies on one side falls off along a line;
desaturation mixes light; files are compressed by a real JPEG encoder. Severity 0 is already visible
damage, 1 is as bad as a photo still worth mending.

The functions take images (B, 3, H, W) in [0, 1], severities (B,) in [0, 1] and a generator.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doodl.pocket.colour import from_linear, to_linear

__all__ = ["NO_STRETCH", "PLAIN", "UNSEEN_DAMAGE", "damage_unseen"]

Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]

# The weights of light in luminance (Rec. 709), for light is what is mixed.
_LUMINANCE = (0.2126, 0.7152, 0.0722)


def _flat_middle(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Black and white stay, the slope between them falls to a third or a tenth in the middle."""
    bend = _along(1.8 + 2.2 * severity)
    return 0.5 + 0.5 * torch.sinh(bend * (2 * image - 1)) / torch.sinh(bend)


def _dark_gamma(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return image.clamp_min(1e-6) ** _along(1.5 + 1.1 * severity)


def _desaturated(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    light = to_linear(image)
    return from_linear(light.lerp(_luminance(light), _along(0.45 + 0.4 * severity)))


def _side_haze(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    depth = _from_one_side(image, generator) * _along(0.6 + 1.4 * severity)
    return _hazed(image, depth, generator)


def _side_shade(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    stops = _from_one_side(image, generator) * _along(1.2 + 1.6 * severity)
    return from_linear(to_linear(image) * torch.exp2(-stops))


def _under(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return from_linear(to_linear(image) * torch.exp2(-_along(0.9 + 1.6 * severity)))


def _over(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return from_linear(to_linear(image) * torch.exp2(_along(0.5 + 1.0 * severity)))


def _hazy(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return _hazed(image, _along(0.35 + 0.8 * severity), generator)


def _low_contrast(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """The range of brightness is squeezed, its two ends each by its own share."""
    lost = 0.25 + 0.4 * severity
    share = torch.rand(len(image), generator=generator).to(image)
    low = (lost * (0.25 + 0.5 * share)).clamp(max=0.45)
    return _along(low) + image * _along(1 - lost)


def _warm(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return _lit(image, 0.12 + 0.4 * severity, (1.0, -0.1, -1.2))


def _cool(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return _lit(image, 0.12 + 0.4 * severity, (-1.1, 0.0, 0.9))


def _dark_and_flat(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    flat = _low_contrast(image, 0.7 * severity, generator)
    return from_linear(to_linear(flat) * torch.exp2(-_along(0.6 + 1.1 * severity)))


def _noisy_jpeg(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Noise that grows with brightness, then a JPEG file of quality 45 down to 12."""
    noise = torch.randn(image.shape, generator=generator).to(image)
    noisy = image + noise * _along(0.015 + 0.05 * severity) * (0.3 + image).sqrt()
    files = [
        _through_jpeg(photo, round(45 - 33 * float(s)))
        for photo, s in zip(noisy, severity, strict=True)
    ]
    return torch.stack(files).to(image)


def _along(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luminance(light: Tensor) -> Tensor:
    weights = torch.tensor(_LUMINANCE, dtype=light.dtype, device=light.device)
    return (light * weights.view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(light)


def _from_one_side(image: Tensor, generator: torch.Generator) -> Tensor:
    """Fields (B, 1, H, W): 1 at one side or corner, falling along a line to 0 at the other."""
    angle = _along(2 * math.pi * torch.rand(len(image), generator=generator)).to(image)
    rows = torch.linspace(-1, 1, image.shape[2], device=image.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, image.shape[3], device=image.device).view(1, 1, 1, -1)
    reach = angle.sin().abs() + angle.cos().abs()
    return (1 + (angle.sin() * rows + angle.cos() * columns) / reach) / 2


def _hazed(image: Tensor, depth: Tensor, generator: torch.Generator) -> Tensor:
    """Light scattered in over an optical depth (Koschmieder's law), from a pale bluish sky."""
    bright = _along(torch.rand(len(image), generator=generator)).to(image) * 0.25 + 0.6
    sky = torch.tensor([0.96, 1.0, 1.05], dtype=image.dtype, device=image.device)
    passed = torch.exp(-depth)
    return from_linear(to_linear(image) * passed + bright * sky.view(1, 3, 1, 1) * (1 - passed))


def _lit(image: Tensor, amount: Tensor, stops: tuple[float, float, float]) -> Tensor:
    """Light of another colour: each channel by its own stops, times the amount."""
    colour = torch.tensor(stops, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return from_linear(to_linear(image) * torch.exp2(colour * _along(amount)))


def _through_jpeg(photo: Tensor, quality: int) -> Tensor:
    pixels = (photo.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


NO_STRETCH: dict[str, Damage] = {
    "flat middle": _flat_middle,
    "dark gamma": _dark_gamma,
    "desaturated": _desaturated,
    "haze from one side": _side_haze,
    "shade from one side": _side_shade,
}
"""Damage that no stretch of the levels undoes."""

PLAIN: dict[str, Damage] = {
    "under": _under,
    "over": _over,
    "hazy": _hazy,
    "low contrast": _low_contrast,
    "warm": _warm,
    "cool": _cool,
    "dark and flat": _dark_and_flat,
    "JPEG with noise": _noisy_jpeg,
}
"""Damage that levels, or each channel's levels, undo for the most part; and a bad file."""

UNSEEN_DAMAGE: dict[str, Damage] = NO_STRETCH | PLAIN


def damage_unseen(name: str, image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """`image` damaged by the kind `name`, clamped to [0, 1] and rounded to 8 bits.

    Raises: ValueError for a name that is not in UNSEEN_DAMAGE.
    """
    if name not in UNSEEN_DAMAGE:
        raise ValueError(f"damage {name!r} is unknown; known: {', '.join(UNSEEN_DAMAGE)}")
    damaged = UNSEEN_DAMAGE[name](image, severity, generator).clamp(0, 1)
    return (damaged * 255).round() / 255
