"""Simple changes of a photo, laid before the pair judge: the photo itself is the first of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.training.damage import scale_chroma
from doodl.pocket.training.degrade import luma

__all__ = ["CANDIDATES", "make_candidates"]

Change = Callable[[Tensor], Tensor]

# A range flatter than this is not stretched further: what it holds beyond is noise.
_SMALLEST_RANGE = 0.1


def levels(image: Tensor, clipped: float, *, by_channel: bool) -> Tensor:
    """Return images with their levels stretched to the full range, (B, 3, H, W) in [0, 1].

    Args:
        clipped: share of the values that is clipped at either end.
        by_channel: each channel by its own levels; else all by those of the luma.
    """
    values = (image if by_channel else luma(image)).flatten(2).sort(dim=2).values
    last = values.shape[2] - 1
    low = values[..., round(clipped * last)][..., None, None]
    high = values[..., round((1 - clipped) * last)][..., None, None]
    return ((image - low) / (high - low).clamp_min(_SMALLEST_RANGE)).clamp(0, 1)


def power(image: Tensor, exponent: float | Tensor) -> Tensor:
    """Return images to the power of an exponent, a number or (B, 1, 1, 1)."""
    return image.clamp_min(1e-4) ** exponent


def auto_gamma(image: Tensor, share: float) -> Tensor:
    """Return images with the power that brings their mean luma toward the middle, by a share."""
    mean = luma(image).mean((2, 3), keepdim=True).clamp(0.02, 0.98)
    exponent = torch.log(torch.tensor(0.5)) / mean.log()
    return power(image, exponent.clamp(0.25, 4) ** share)


def saturation(image: Tensor, factor: float) -> Tensor:
    """Return images with their saturation times a factor."""
    return scale_chroma(image, torch.full((len(image),), factor, device=image.device)).clamp(0, 1)


def grey_world(image: Tensor, share: float) -> Tensor:
    """Return images whose channels' means are drawn together by gains, by a share."""
    means = image.mean((2, 3), keepdim=True).clamp_min(0.02)
    gain = (means.mean(1, keepdim=True) / means).clamp(0.5, 2)
    return (image * gain**share).clamp(0, 1)


def white_patch(image: Tensor, share: float) -> Tensor:
    """Return images whose channels' bright ends are drawn together by gains, by a share."""
    ordered = image.flatten(2).sort(dim=2).values
    bright = ordered[..., round(0.98 * (ordered.shape[2] - 1))].clamp_min(0.05)[..., None, None]
    gain = (bright.amax(1, keepdim=True) / bright).clamp(max=2)
    return (image * gain**share).clamp(0, 1)


def balance(image: Tensor, warmth: float, tint: float) -> Tensor:
    """Return images made warmer (negative: cooler) and more magenta (negative: greener)."""
    gain = torch.tensor([1 + warmth, 1 - tint, 1 - warmth], device=image.device).view(1, 3, 1, 1)
    return (image * gain).clamp(0, 1)


def contrast(image: Tensor, amount: float) -> Tensor:
    """Return images through a smooth S between fixed ends; a negative amount flattens."""
    return image.lerp(image * image * (3 - 2 * image), amount).clamp(0, 1)


def even_light(image: Tensor, share: float) -> Tensor:
    """Return images whose slow changes of brightness over the frame are evened by gains."""
    slow = F.interpolate(
        F.adaptive_avg_pool2d(luma(image), (3, 3)),
        size=image.shape[2:],
        mode="bicubic",
        align_corners=False,
    ).clamp_min(0.05)
    gain = (slow.mean((2, 3), keepdim=True) / slow).clamp(0.4, 2.5)
    return (image * gain**share).clamp(0, 1)


def local_levels(image: Tensor, share: float) -> Tensor:
    """Return images with levels stretched by the ranges of their regions: haze from one side."""
    grey = luma(image)
    low = -F.adaptive_max_pool2d(-F.avg_pool2d(grey, 3, 1, 1), (3, 3))
    high = F.adaptive_max_pool2d(F.avg_pool2d(grey, 3, 1, 1), (3, 3))
    size = image.shape[2:]
    low, high = (
        F.interpolate(end, size=size, mode="bilinear", align_corners=False) for end in (low, high)
    )
    stretched = (image - low) / (high - low).clamp_min(0.2)
    return image.lerp(stretched.clamp(0, 1), share)


def _mixed(change: Change, share: float) -> Change:
    return lambda image: image.lerp(change(image), share)


def _after(first: Change, second: Change) -> Change:
    return lambda image: second(first(image))


def _simple() -> dict[str, Change]:
    stretch: Change = lambda image: levels(image, 0.005, by_channel=False)  # noqa: E731
    per_channel: Change = lambda image: levels(image, 0.005, by_channel=True)  # noqa: E731
    gamma: Change = lambda image: auto_gamma(image, 0.7)  # noqa: E731
    vivid: Change = lambda image: saturation(image, 1.3)  # noqa: E731
    changes: dict[str, Change] = {
        "as it is": lambda image: image,
        "min-max": lambda image: levels(image, 0.0, by_channel=False),
        "stretch": stretch,
        "stretch, half": _mixed(stretch, 0.5),
        "per channel": per_channel,
        "per channel, half": _mixed(per_channel, 0.5),
        "auto gamma": lambda image: auto_gamma(image, 1.0),
        "auto gamma, half": lambda image: auto_gamma(image, 0.5),
        "stretch, gamma": _after(stretch, gamma),
        "per channel, gamma": _after(per_channel, gamma),
        "stretch, vivid": _after(stretch, vivid),
        "gamma, vivid": _after(gamma, vivid),
    }
    tables: list[tuple[str, tuple[float, ...], Callable[[Tensor, float], Tensor]]] = [
        ("gamma", (0.5, 0.65, 0.8, 1.25, 1.6), power),
        ("saturation", (0.6, 0.8, 1.2, 1.5, 2.0), saturation),
        ("grey world", (0.5, 1.0), grey_world),
        ("white patch", (0.5, 1.0), white_patch),
        ("contrast", (-0.5, 0.4, 0.8), contrast),
        ("even light", (0.4, 0.8), even_light),
        ("local levels", (0.4, 0.8), local_levels),
        ("warmer", (-0.16, -0.08, 0.08, 0.16), lambda image, w: balance(image, w, 0.0)),
        ("magenta", (-0.08, 0.08), lambda image, t: balance(image, 0.0, t)),
    ]
    for name, values, change in tables:
        for value in values:
            changes[f"{name} {value:+g}"] = lambda image, v=value, c=change: c(image, v)  # type: ignore[misc]
    return changes


CANDIDATES: dict[str, Change] = _simple()
"""Changes of images (B, 3, H, W) in [0, 1] by name; the first leaves them as they are."""


def make_candidates(image: Tensor, names: tuple[str, ...] = tuple(CANDIDATES)) -> Tensor:
    """Return the named changes of images (B, 3, H, W), as (B, K, 3, H, W) in [0, 1]."""
    return torch.stack([CANDIDATES[name](image).clamp(0, 1) for name in names], 1)
