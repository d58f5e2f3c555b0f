"""The aesthetic loss: a score pushed up, down, or to a target."""

from __future__ import annotations

import math

from torch import Tensor

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
