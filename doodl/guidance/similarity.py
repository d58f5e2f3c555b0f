"""Guides by CLIP embeddings: likeness to a text, and to a subject's exemplar photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.guidance.crops import CropViews
from doodl.guidance.terms import Assessment, GuideRow
from doodl.guidance.towers import ImageTower


def spherical_distance(u: Tensor, v: Tensor) -> Tensor:
    """Return 2 arcsin(|u - v| / 2)^2 of unit vectors (..., D): half the square of their angle.

    Computed as 2 atan2(|u - v|, |u + v|)^2, the same for unit vectors: an arcsin has an infinite
    slope at 1 and loses half its digits before. Values and gradients are finite everywhere; they
    are 0 where u = v, and the gradient is 0 at v's antipode, where no direction is the best.
    Source: the guidance of ALGORITHM, section 6, as in the released DOODL code.
    """
    return 2 * torch.atan2(_length(u - v), _length(u + v)).square()


def _length(vector: Tensor) -> Tensor:
    """Return the L2 norms (...), with gradient 0 instead of NaN at the origin."""
    squared = vector.square().sum(-1)
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


@dataclass(frozen=True, eq=False)
class BoundSimilarity:
    """Likeness to one target embedding per photo and tower.

    Attributes:
        targets: per tower (B, D), unit rows.
        weights: per tower, of sum 1.
    """

    towers: tuple[ImageTower, ...]
    weights: tuple[float, ...]
    targets: tuple[Tensor, ...]

    def loss(self, views: CropViews) -> Tensor:
        """Return the mean distances (B,) over crops and towers.

        The released code takes the minimum over crops, which gives one crop all the gradient.
        """
        total: Tensor | None = None
        for tower, weight, target in zip(self.towers, self.weights, self.targets, strict=True):
            embeddings = tower(views.of(tower))
            per_view = target.repeat_interleave(len(embeddings) // len(target), 0)
            term = weight * views.mean(spherical_distance(embeddings, per_view))
            total = term if total is None else total + term
        assert total is not None
        return total

    def assess(self, images: Tensor) -> Assessment:
        """Return the distances and the cosines (B,), both means over the towers."""
        parts = [
            (weight, tower(images), target)
            for tower, weight, target in zip(self.towers, self.weights, self.targets, strict=True)
        ]
        losses = torch.stack([w * spherical_distance(e, t) for w, e, t in parts]).sum(0)
        cosines = torch.stack([w * (e * t).sum(1) for w, e, t in parts]).sum(0)
        return Assessment(losses, cosines)

    def keep(self, places: Sequence[int]) -> BoundSimilarity:
        index = list(places)
        return replace(self, targets=tuple(target[index] for target in self.targets))


@dataclass(frozen=True, eq=False)
class TextGuide:
    """Likeness to words: the guide's own, or each row's prompt."""

    tower: ImageTower
    words: str | None = None

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> BoundSimilarity:
        """Return the guide of these rows. Raises: ValueError on a row without words."""
        texts = [self.words or row.prompt for row in rows]
        if not all(text.strip() for text in texts):
            raise ValueError(
                "guide text has no words: give the row a prompt, or name them, as in "
                'text:"a red rose".'
            )
        return BoundSimilarity((self.tower,), (1.0,), (self.tower.embed_texts(texts),))


@dataclass(frozen=True, eq=False)
class SubjectGuide:
    """Likeness to each row's exemplar photos: to the mean of their embeddings, in every tower.

    Attributes:
        weights: of the towers; brought to a sum of 1.
    """

    towers: tuple[ImageTower, ...]
    weights: tuple[float, ...]

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> BoundSimilarity:
        """Return the guide of these rows. Raises: ValueError on a row without exemplars."""
        if not all(row.subjects for row in rows):
            raise ValueError(
                "guide subject has no exemplar photos: name them with --subject, or in the "
                "manifest's subject_uris."
            )
        total = sum(self.weights)
        return BoundSimilarity(
            self.towers,
            tuple(weight / total for weight in self.weights),
            tuple(_exemplars(tower, rows) for tower in self.towers),
        )


@torch.no_grad()
def _exemplars(tower: ImageTower, rows: Sequence[GuideRow]) -> Tensor:
    """Return each row's target (B, D); rows of one subject embed it once."""
    known: dict[tuple[int, ...], Tensor] = {}
    targets = []
    for row in rows:
        key = tuple(id(image) for image in row.subjects)
        if key not in known:
            images = [image[None].to(tower.mean.device) for image in row.subjects]
            embeddings = torch.cat([tower(image) for image in images])
            known[key] = F.normalize(embeddings.mean(0), dim=0)
        targets.append(known[key])
    return torch.stack(targets)
