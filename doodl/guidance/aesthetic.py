"""The aesthetic guide: a score pushed up, down, or to a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from doodl.guidance.crops import CropViews
from doodl.guidance.terms import Assessment, GuideRow
from doodl.scores import AestheticScorer, ScorerEnsemble

DIRECTIONS = ("up", "down", "target")


def check_direction(direction: str, target: float | None) -> None:
    """Raise ValueError unless direction is up, down, or target with a finite target score."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction (={direction!r}) must be one of {', '.join(DIRECTIONS)}.")
    if (direction == "target") != (target is not None):
        raise ValueError(
            f"direction={direction!r} with target={target}: a target score goes with "
            "direction 'target', and only with it."
        )
    if target is not None and not math.isfinite(target):
        raise ValueError(f"target (={target}) must be a finite score, nominally in 1..10.")


def aesthetic_loss(scores: Tensor, direction: str, target: float | None = None) -> Tensor:
    """Return the loss of aesthetic scores, of their shape: -s, +s, or |s - target|.

    The score is not clipped to its nominal 1..10: clipping would zero the gradient outside.
    """
    check_direction(direction, target)
    if direction == "up":
        return -scores
    if direction == "down":
        return scores
    assert target is not None  # check_direction saw to it
    return (scores - target).abs()


@dataclass(frozen=True, eq=False)
class AestheticGuide:
    """Scorers of images, loaded; each photo has its own direction and target."""

    scorer: AestheticScorer | ScorerEnsemble

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> BoundAesthetic:
        """Return the term of these photos. Raises: ValueError as `check_direction`."""
        for row in rows:
            check_direction(row.direction, row.target)
        return BoundAesthetic(self.scorer, tuple((row.direction, row.target) for row in rows))


@dataclass(frozen=True, eq=False)
class BoundAesthetic:
    """The aesthetic term of one batch of photos."""

    scorer: AestheticScorer | ScorerEnsemble
    aims: tuple[tuple[str, float | None], ...]

    def loss(self, views: CropViews) -> Tensor:
        """Return the losses (B,) of the mean scores over crops, as the released code."""
        scorer = self.scorer
        if isinstance(scorer, ScorerEnsemble):
            parts = [w * views.mean(one(views.of(one.tower))) for one, w in scorer.parts()]
            return self._losses(torch.stack(parts).sum(0))
        return self._losses(views.mean(scorer(views.of(scorer.tower))))

    def assess(self, images: Tensor) -> Assessment:
        """Return the losses, and the scores with the sign under which higher is better."""
        scores = self.scorer(images)
        losses = self._losses(scores)
        return Assessment(losses, -losses)

    def keep(self, places: Sequence[int]) -> BoundAesthetic:
        return replace(self, aims=tuple(self.aims[i] for i in places))

    def _losses(self, scores: Tensor) -> Tensor:
        return torch.stack([aesthetic_loss(scores[i], *aim) for i, aim in enumerate(self.aims)])
