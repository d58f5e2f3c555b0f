"""What a term of the loss is: loaded once as a guide, bound to the photos of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from doodl.guidance.crops import CropViews


@dataclass(frozen=True, eq=False)
class GuideRow:
    """What one photo's guides need to know.

    Attributes:
        prompt: the words of a text guide that names none.
        direction, target: of an aesthetic guide: up | down | target with its score.
        subjects: exemplar images (3, H, W) in [-1, 1], of any sizes, of a subject guide.
        label: class name or index of a classifier guide that names none.
    """

    prompt: str = ""
    direction: str = "up"
    target: float | None = None
    subjects: tuple[Tensor, ...] = ()
    label: str | None = None


class Assessment(NamedTuple):
    """How whole images stand with one guide, without crops.

    Attributes:
        losses: (B,), lower is better, in the units of the gradient's loss.
        values: (B,), higher is better, in the guide's own unit: a score, a cosine, a probability.
    """

    losses: Tensor
    values: Tensor


class BoundGuide(Protocol):
    """One guide and the photos of one batch; what it says of a photo depends on that photo only."""

    def loss(self, views: CropViews) -> Tensor:
        """Return the losses (B,), differentiable in the images."""

    def assess(self, images: Tensor) -> Assessment:
        """Return how images (B, 3, H, W) in [-1, 1] stand."""

    def keep(self, places: Sequence[int]) -> Self:
        """Return the guide of only these photos of the batch."""


class Guide(Protocol):
    """A loaded guide."""

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> BoundGuide:
        """Return the guide bound to photos. Raises: ValueError if a row lacks what it needs."""
