"""Batches for the pair judge: photos, candidates of each, and how much nearer each candidate is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.candidates import CANDIDATES
from doodl.pocket.colour import ciede2000, lab
from doodl.pocket.training.clean import make_scenes, random_views, varied
from doodl.pocket.training.damage import DamageDraw, draw_damage
from doodl.pocket.training.photos import PhotoSet

__all__ = ["PairBatch", "PairDraw", "draw_pairs", "gains"]

# What is done to a photo that is already laid before the judge: rarely as much as damage is.
_SPOILING = DamageDraw(bend=0.3, range=0.3, cast=0.35, saturation=0.3, field=0.3, detail=0.35)


@dataclass(frozen=True)
class PairDraw:
    """What a batch of pairs holds.

    Attributes:
        photos: how many; candidates of each are simple changes, spoilt versions, steps toward the
            clean photo and beyond it, and the proposal's, if there is one.
        untouched: share of the photos that are shown as they should be.
    """

    photos: int = 28
    simple: int = 8
    spoilt: int = 2
    repaired: int = 2
    untouched: float = 0.5


@dataclass(frozen=True)
class PairBatch:
    """Photos (B, 3, H, W), clean and as given, and candidates (B, K, 3, H, W) in [0, 1].

    gain: (B, K) CIEDE2000 gained; map: (B, K, rows, columns) the same by region. The first
    candidate is the photo itself.
    """

    clean: Tensor
    photo: Tensor
    candidates: Tensor
    gain: Tensor
    map: Tensor


@torch.no_grad()
def draw_pairs(
    photos: PhotoSet,
    indices: list[int],
    size_px: int,
    draw: PairDraw,
    generator: torch.Generator,
    propose: Callable[[Tensor], Tensor] | None = None,
) -> PairBatch:
    """Return the pairs of the photos at `indices`.

    Args:
        propose: images -> proposed repairs (B, 3, H, W); its whole and its half are candidates.
    """
    views = random_views(photos, indices, size_px, generator)
    clean = (varied(make_scenes(views, generator), generator) * 255).round() / 255
    damaged = draw_damage(clean, generator)
    untouched = torch.rand(len(clean), generator=generator) < draw.untouched
    photo = torch.where(untouched.view(-1, 1, 1, 1), clean, damaged)
    names = list(CANDIDATES)
    order = torch.randperm(len(names) - 1, generator=generator)[: draw.simple]
    made = [photo] + [CANDIDATES[names[1 + i]](photo) for i in order.tolist()]
    made += [draw_damage(photo, generator, _SPOILING) for _ in range(draw.spoilt)]
    for _ in range(draw.repaired):
        # From a first step toward the clean photo to a step past it, at times in colour alone.
        share = 0.1 + 1.3 * torch.rand(len(clean), 1, 1, 1, generator=generator)
        step = photo.lerp(clean, share)
        also = draw_damage(step.clamp(0, 1), generator, _SPOILING)
        spoilt = (torch.rand(len(clean), generator=generator) < 0.3).view(-1, 1, 1, 1)
        made.append(torch.where(spoilt, also, step))
    if propose is not None:
        proposed = propose(photo)
        made += [proposed, photo.lerp(proposed, 0.5)]
    candidates = torch.stack(made, 1).clamp(0, 1)
    gain, regions = gains(clean, photo, candidates, generator)
    return PairBatch(clean, photo, candidates, gain, regions)


def gains(
    clean: Tensor,
    photo: Tensor,
    candidates: Tensor,
    generator: torch.Generator,
    regions: int = 8,
    stride: int = 4,
) -> tuple[Tensor, Tensor]:
    """Return the mean CIEDE2000 gained, (B, K), and by region (B, K, regions, regions).

    It is measured on every `stride`-th pixel of every `stride`-th row, from a place drawn anew.
    """
    top, left = torch.randint(stride, (2,), generator=generator).tolist()

    def seen(image: Tensor) -> Tensor:
        return image[..., top::stride, left::stride]

    batch, count = candidates.shape[:2]
    goal = lab(seen(clean))
    before = ciede2000(lab(seen(photo)), goal)
    after = ciede2000(lab(seen(candidates).flatten(0, 1)), goal.repeat_interleave(count, 0)).view(
        batch, count, *before.shape[1:]
    )
    gained = before[:, None] - after
    return gained.mean((2, 3)), F.adaptive_avg_pool2d(gained, regions)
