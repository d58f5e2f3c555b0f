"""Views of photos as they should be, some made into scenes that tempt an automatic improvement.

Night, snow, white frames, subjects on black, grey and toned photos are good as they are though
their levels, means or colours are not in the middle.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.training.degrade import luma
from doodl.pocket.training.photos import PhotoSet

__all__ = ["SCENES", "make_scenes", "random_views", "varied"]

# Of the views, the share that each kind of scene takes.
_SHARE = 0.035


def random_views(
    photos: PhotoSet,
    indices: Sequence[int],
    size_px: int,
    generator: torch.Generator,
    *,
    min_side: float = 0.6,
) -> Tensor:
    """Random parts of photos, half of them mirrored, squashed to a square: (B, 3, H, H) in [0, 1].

    Args:
        min_side: shortest side of a part, as a share of the photo's; the sides are drawn apart,
            for a judge sees photos of all shapes squashed.
    """
    views = []
    for i in indices:
        photo = photos.pixels[i]
        u = torch.rand(5, generator=generator).tolist()
        height, width = (
            max(8, round(side * (min_side + (1 - min_side) * draw)))
            for side, draw in zip(photo.shape[1:], u[:2], strict=True)
        )
        top = int(u[2] * (photo.shape[1] - height + 1))
        left = int(u[3] * (photo.shape[2] - width + 1))
        part = photo[:, top : top + height, left : left + width].float() / 255
        views.append(
            F.interpolate(
                (part.flip(2) if u[4] < 0.5 else part)[None],
                size=(size_px, size_px),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )[0].clamp(0, 1)
        )
    return torch.stack(views)


def make_scenes(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], some of them made into one of SCENES."""
    made = image.clone()
    kinds = (torch.rand(len(image), generator=generator) / _SHARE).long()
    for number, make in enumerate(SCENES.values()):
        rows = (kinds == number).nonzero()[:, 0].to(image.device)
        if len(rows):
            made[rows] = make(image[rows], generator).clamp(0, 1)
    return made


def varied(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], half of them rendered a little otherwise.

    No photo has but one right exposure, balance and saturation; and a network that meets a
    thousand photos a hundred times must not learn each one's colours by heart.
    """
    exponent = _rand(image, generator, 0.9, 1.12)
    gain = 1 + 0.04 * torch.randn(len(image), 3, 1, 1, generator=generator).to(image.device)
    other = image.clamp_min(1e-4) ** exponent
    # Gains act between the ends, so that black and white keep theirs.
    other = other + (gain - 1).clamp(-0.08, 0.08) * 4 * other * (1 - other) * luma(image)
    grey = luma(other)
    other = (grey + (other - grey) * _rand(image, generator, 0.88, 1.12)).clamp(0, 1)
    colourless = (image.amax(1, keepdim=True) - image.amin(1, keepdim=True)).amax(
        (2, 3), keepdim=True
    ) < 1e-3
    other = torch.where(colourless, luma(other).expand_as(other), other)
    return torch.where(_rand(image, generator, 0, 1) < 0.5, other, image)


def _rand(image: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    draws = torch.rand(len(image), 1, 1, 1, generator=generator)
    return (low + (high - low) * draws).to(image.device)


def _places(image: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the frame, from -1 to 1."""
    height, width = image.shape[2:]
    rows = torch.linspace(-1, 1, height, device=image.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, device=image.device).view(1, 1, 1, -1)
    return rows, columns


def _subject(image: Tensor, generator: torch.Generator) -> Tensor:
    """Where the subject is, (B, 1, H, W): a round in the middle with a soft border."""
    rows, columns = _places(image)
    height, width = _rand(image, generator, 0.4, 0.8), _rand(image, generator, 0.4, 0.8)
    away = ((rows / height) ** 2 + (columns / width) ** 2).sqrt()
    return torch.sigmoid((1 - away) * _rand(image, generator, 4, 20))


def _grey(image: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return luma(image).expand_as(image)


def _toned(image: Tensor, generator: torch.Generator) -> Tensor:
    brown = torch.tensor([1.05, 0.98, 0.85], device=image.device).view(1, 3, 1, 1)
    return luma(image) * torch.ones_like(image).lerp(brown, _rand(image, generator, 0.4, 1.0))


def _on_black(image: Tensor, generator: torch.Generator) -> Tensor:
    return image * _subject(image, generator) + _rand(image, generator, 0, 0.02)


def _on_white(image: Tensor, generator: torch.Generator) -> Tensor:
    white = torch.ones_like(image) * _rand(image, generator, 0.94, 1.0)
    return white.lerp(image, _subject(image, generator))


def _framed(image: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _places(image)
    border = 1 - _rand(image, generator, 0.06, 0.25)
    inside = ((rows.abs() < border) & (columns.abs() < border)).to(image)
    colour = (_rand(image, generator, 0, 1) < 0.8).to(image)  # white, or now and then black
    return image * inside + colour * (1 - inside)


def _night(image: Tensor, generator: torch.Generator) -> Tensor:
    """A dim scene with lamps: bright, coloured, soft spots before black."""
    dim = image * image * _rand(image, generator, 0.15, 0.5)
    rows, columns = _places(image)
    for _ in range(5):
        row, column = _rand(image, generator, -0.9, 0.9), _rand(image, generator, -0.9, 0.9)
        size = _rand(image, generator, 0.02, 0.12)
        glow = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / size**2)
        tint = torch.rand(len(image), 3, 1, 1, generator=generator).to(image.device) * 0.5 + 0.5
        dim = dim + glow * tint
    return dim


def _snow(image: Tensor, generator: torch.Generator) -> Tensor:
    """Nearly everything bright, with a few dark things whose blacks stay."""
    bright = 1 - (1 - image) ** 2 * _rand(image, generator, 0.5, 1.0)
    pale = luma(bright).lerp(bright, _rand(image, generator, 0.3, 0.8))
    dark = torch.sigmoid((0.22 - luma(image)) * 25)
    return pale.lerp(image, dark)


SCENES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "grey": _grey,
    "toned": _toned,
    "on black": _on_black,
    "on white": _on_white,
    "framed": _framed,
    "night": _night,
    "snow": _snow,
}
